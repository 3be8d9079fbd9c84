"""No teacher: the student on its own pairs.

L = L_clip = 1/2 [CE(Z, i) + CE(Z^T, i)], Z = s v t^T (Radford et al. 2021). The rows `finetune`
(pretrained towers) and `scratch` (random towers) are this method with different student weights.
"""

from __future__ import annotations

from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Method, Outcome, Rows, gathered
from cmapkd_core.models.frozen_teacher import Embeddings


class Contrastive(Method):
    """L_clip on the embeddings that are evaluated."""

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings."""
        return Rows.of(batch, targets, *self.towers(batch))

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Term `task`."""
        logits = self.logits(*gathered(rows.student["image"], rows.student["text"]))
        return Outcome({"task": info_nce(logits)}, roots=rows.roots)
