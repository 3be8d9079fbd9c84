"""MobileCLIP's training objective (Vasu et al., CVPR 2024).

L = (1 - lambda) L_clip + lambda 1/2 [CE(p_T, p_S) of rows + of columns], lambda = 0.75; p are softmaxes of each
model's own scaled similarities (losses/embeddings.py). Of several teachers (the paper's form): the mean over them.

MobileCLIP reads the embeddings from a reinforced data set, one for each stored augmentation: teacher_fit.views > 0.
With 0 the teacher sees the student's own crop as it comes, which stores nothing and repeats no crop.
"""

from __future__ import annotations

from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.streamed import info_nce, relative_entropy
from cmapkd_core.methods.base import Method, Outcome, Rows, mean_over, require, similar
from cmapkd_core.models.frozen_teacher import Embeddings


class MobileClip(Method):
    """The pairs and the teacher's soft targets, a quarter to three."""

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings."""
        return Rows.of(batch, require(targets, Embeddings), *self.towers(batch))

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Terms `task` and `soft`."""
        image, caption, image_t, caption_t = rows.gathered()
        logits, of = self.logits(image, caption), rows.targets(Embeddings)
        each = zip(of.each(image_t), of.each(caption_t), of.scales(), strict=True)
        soft = [relative_entropy(similar(*teacher), logits, tau=1.0, cross=True) for teacher in each]
        return Outcome({"task": info_nce(logits), "soft": mean_over(soft)}, roots=rows.roots)
