"""No teacher: the student on its own pairs.

L = L_clip = 1/2 [CE(Z, i) + CE(Z^T, i)], Z = s v t^T (Radford et al. 2021). The rows `finetune`
(pretrained towers) and `scratch` (random towers) are this method with different student weights.
"""

from __future__ import annotations

from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Method, Outcome, gathered
from cmapkd_core.models.frozen_teacher import Embeddings


class Contrastive(Method):
    """L_clip on the embeddings that are evaluated."""

    def forward(self, batch: Batch, targets: Embeddings | None, phase: Phase, step: int) -> Outcome:
        """Term `task`."""
        vision, text = self.towers(batch)
        logits = self.logits(*gathered(vision.embedding, text.embedding))
        return Outcome({"task": info_nce(logits)}, roots=[vision.taps[0], text.taps[0]])
