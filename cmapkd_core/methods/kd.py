"""Classic distillation of the in-batch similarities (Hinton et al. 2015).

L = L_clip + lambda tau^2 1/2 sum over both directions of KL(softmax(Z_T / tau) || softmax(Z_S / tau)),
each Z with its own model's scale; tau = 1 is CLIP-KD's CRD (Yang et al. 2024). With method.kd_standardise each row, and
each column, of both Z is z-scored before it is divided by tau, so that scales do not count (losses/standardised.py).
Of several teachers: the mean over them.
"""

from __future__ import annotations

from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Method, Outcome, Rows, require
from cmapkd_core.models.frozen_teacher import Embeddings


class Kd(Method):
    """L_clip and the teacher's softened similarities."""

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings."""
        return Rows.of(batch, require(targets, Embeddings), *self.towers(batch))

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Terms `task` and `kd`."""
        image, caption, image_t, caption_t = rows.gathered()
        logits = self.logits(image, caption)
        kd = self.kd_of_each(logits, (image, caption), (image_t, caption_t), rows.targets(Embeddings))
        return Outcome({"task": info_nce(logits), "kd": kd}, roots=rows.roots)
