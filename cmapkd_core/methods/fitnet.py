"""FitNets: hints at half the depth first, then distillation (Romero et al., ICLR 2015).

    phase coarse          L = hint: 1/2 |r_v(S_v) - LN(T_v)|^2 + 1/2 |r_t(S_t) - LN(T_t)|^2 at the towers' second taps
    phases medium, fine   L = task + kd                                                       (methods/kd.py)

The first phase trains what lies below the hint, and the regressors r: 1x1 convolution and linear layer from the
student's width to the teacher's. The row `fitnet_joint` adds the hint to task and kd in every phase.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.hints import map_hint, token_hint
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Method, Outcome, Rows, require, require_teacher
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.features import Features
from cmapkd_core.models.frozen_teacher import Embeddings, Targets, Teacher
from cmapkd_core.models.hierarchy import masked_mean
from cmapkd_core.models.pyramid import resize

HINT = 1  # the second of four taps: half the depth
PROBE = ["a photo of two sleeping cats, one of them striped"]


class FitNet(Method):
    """The student and its regressors."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        teacher = require_teacher(teacher)
        student_spec, teacher_spec = student.spec, teacher.backbone.spec
        self.map_regressor = nn.Conv2d(student_spec.vision_widths[HINT], teacher_spec.vision_widths[HINT], 1)
        self.token_regressor = nn.Linear(student_spec.text_widths[HINT], teacher_spec.text_widths[HINT])
        self.below = student.before(HINT) - student.frozen
        self.pair = tokens_of if same_tokens(student, teacher.backbone) else means_of

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """In a phase of hints alone what is below them; the regressors wherever hints count."""
        counting = set(phase.terms) or {"hint", "task", "kd"}
        below = [p for name, p in self.student.named_parameters() if name in self.below]
        regressors = [*self.map_regressor.parameters(), *self.token_regressor.parameters()]
        return {
            "student": below if counting == {"hint"} else super().groups(phase)["student"],
            "extra": regressors if "hint" in counting else [],
        }

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings, and the `hint` of these pairs."""
        teacher = require(targets, Targets)
        vision, text = self.towers(batch)
        rows = Rows.of(batch, teacher, vision, text)
        rows.student["hint"] = self._hint(vision.float(), text.float(), teacher)
        return rows

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Terms `hint`, `task` and `kd`."""
        image, caption, image_t, caption_t = rows.gathered()
        logits, scale_t = self.logits(image, caption), rows.targets(Targets).scale
        terms = {
            "hint": rows.student["hint"],
            "task": info_nce(logits),
            "kd": self.kd(logits, (image, caption), (image_t, caption_t), scale_t),
        }
        return Outcome(terms, roots=rows.roots)

    def _hint(self, vision: Features, text: Features, teacher: Targets) -> Tensor:
        """The hints of maps [b,C,h,w] and tokens [b,N,D] at half the depth; a scalar."""
        student_map = self.map_regressor(vision.taps[HINT])
        tokens, tokens_t, mask = self.pair(text, teacher.language)
        maps = map_hint(student_map, resize(teacher.vision.taps[HINT], student_map.shape[-1]))
        return maps + token_hint(self.token_regressor(tokens), tokens_t, mask)


Pair = Callable[[Features, Features], tuple[Tensor, Tensor, Tensor]]


def tokens_of(student: Features, teacher: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Token states of both sides [b,N,D], [b,N,D'] and their mask [b,N], up to the shorter context."""
    assert student.mask is not None, "text features carry a mask"
    n = min(student.mask.shape[1], student.taps[HINT].shape[1], teacher.taps[HINT].shape[1])
    return student.taps[HINT][:, :n], teacher.taps[HINT][:, :n], student.mask[:, :n]


def means_of(student: Features, teacher: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Each side's mean over its own tokens, as captions of one token: [b,1,D], [b,1,D'] and a mask of ones."""
    mean = caption_mean(student)
    return mean, caption_mean(teacher), torch.ones(mean.shape[:2], dtype=torch.bool, device=mean.device)


def caption_mean(text: Features) -> Tensor:
    """[b,N,D] -> [b,1,D] over the valid tokens."""
    assert text.mask is not None, "text features carry a mask"
    return masked_mean(text.taps[HINT], text.mask)[:, None]


def same_tokens(student: Backbone, teacher: Backbone) -> bool:
    """True where both models cut a caption into the same tokens."""
    student_ids, teacher_ids = student.tokenize(PROBE), teacher.tokenize(PROBE)
    n = min(student_ids.shape[1], teacher_ids.shape[1])
    return torch.equal(student_ids[:, :n], teacher_ids[:, :n])
