"""Classic distillation of the in-batch similarities (Hinton et al. 2015).

L = L_clip + lambda tau^2 1/2 sum over both directions of KL(softmax(Z_T / tau) || softmax(Z_S / tau)),
each Z with its own model's scale; tau = 1 is CLIP-KD's CRD (Yang et al. 2024).
"""

from __future__ import annotations

from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.streamed import info_nce, relative_entropy
from cmapkd_core.methods.base import Method, Outcome, gathered, require, similar
from cmapkd_core.models.frozen_teacher import Embeddings


class Kd(Method):
    """L_clip and the teacher's softened similarities."""

    def forward(self, batch: Batch, targets: Embeddings | None, phase: Phase, step: int) -> Outcome:
        """Terms `task` and `kd`."""
        teacher = require(targets, Embeddings)
        vision, text = self.towers(batch)
        image, caption, image_t, caption_t = gathered(vision.embedding, text.embedding, teacher.image, teacher.text)
        logits = self.logits(image, caption)
        kd = relative_entropy(similar(image_t, caption_t, teacher.scale), logits, self.recipe.method.kd_tau)
        return Outcome({"task": info_nce(logits), "kd": kd}, roots=[vision.taps[0], text.taps[0]])
