"""C2KD: cross-modal distillation through proxies, where teacher and student rank alike (Huo et al., CVPR 2024).

    L = L_S + L_T, the mean of two directions; p = softmax of z, sg = no gradient
    L_S = CE(z_S) + KL(sg p_S || p^_S) + KL(sg p^_S || p_S) + NT(z^_S <- sg z^_T)
    L_T = KL(p_T || p^_T) + NT(z^_T <- sg z^_S)
    NT(a <- b) = 1/B sum_k [tau(a_k, b_k) > omega] KL(softmax(b . not y) || softmax(a . not y))    (losses/kendall.py)

The modalities differ: the rows of the student's images learn from the rows of the teacher's captions, and the other
way round. z are similarities with the batch's counterparts; z^ come from a proxy (Linear-LN-GELU-Linear) of the state
before the projection into the joint space, for the student and for the teacher. tau is Kendall's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.kendall import kendall_tau, non_target, row_divergence
from cmapkd_core.losses.similarity import info_nce
from cmapkd_core.methods.base import Method, Outcome, Rows, gathered, require, require_teacher
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.features import Spec
from cmapkd_core.models.frozen_teacher import Embeddings, Targets, Teacher

HIDDEN = 256  # of a proxy, as published


class C2Kd(Method):
    """The student and four proxies: image and text, of the student and of the teacher."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        teacher = require_teacher(teacher)
        self.student_proxies, self.teacher_proxies = proxies(student.spec), proxies(teacher.backbone.spec)

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """The student, and all proxies."""
        extra = [*self.student_proxies.parameters(), *self.teacher_proxies.parameters()]
        return super().groups(phase) | {"extra": extra}

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings, and of both sides `image_pooled` and `text_pooled`, [b,D] before the projection."""
        teacher = require(targets, Targets)
        vision, text = self.towers(batch)
        rows = Rows.of(batch, teacher, vision, text)
        rows.student |= {"image_pooled": vision.pooled, "text_pooled": text.pooled}
        rows.teacher |= {"image_pooled": teacher.vision.pooled, "text_pooled": teacher.language.pooled}
        return rows

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Terms `task`, `proxy` and `nontarget`."""
        names = ("image", "text", "image_pooled", "text_pooled")
        sides = (gathered(*(side[name] for name in names)) for side in (rows.student, rows.teacher))
        (image, caption, pooled_v, pooled_l), (image_t, caption_t, pooled_vt, pooled_lt) = sides
        scale, scale_t = self.student.scale(), rows.targets(Targets).scale
        logits, logits_t = scale * image @ caption.T, scale_t * image_t @ caption_t.T
        student = proxied(self.student_proxies, (pooled_v, pooled_l), (image, caption), scale)
        teacher = proxied(self.teacher_proxies, (pooled_vt, pooled_lt), (image_t, caption_t), scale_t)
        directions = (logits, student[0], logits_t.T, teacher[1]), (logits.T, student[1], logits_t, teacher[0])
        losses = [self._direction(*direction) for direction in directions]
        proxy, nontarget, kept = (torch.stack(values).mean() for values in zip(*losses, strict=True))
        terms = {"task": info_nce(logits), "proxy": proxy, "nontarget": nontarget}
        return Outcome(terms, {"kendall/kept": kept}, rows.roots)

    def _direction(self, z_s: Tensor, proxy_s: Tensor, z_t: Tensor, proxy_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Terms `proxy` and `nontarget` of rows [B,B], and the share of rows that agree in rank."""
        kept = (kendall_tau(proxy_t, proxy_s) > self.recipe.method.kendall).float()
        proxy = row_divergence(z_s, proxy_s) + row_divergence(proxy_s, z_s) + row_divergence(z_t, proxy_t)
        return proxy.mean(), non_target(proxy_t, proxy_s, kept) + non_target(proxy_s, proxy_t, kept), kept.mean()


def proxied(
    table: nn.ModuleDict, pooled: tuple[Tensor, Tensor], space: tuple[Tensor, Tensor], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of images and rows of captions [B,B] that the proxies give, against the model's own embeddings (`space`)."""
    image, caption = (F.normalize(table[name](x), dim=-1) for name, x in zip(("image", "text"), pooled, strict=True))
    return scale * image @ space[1].T, scale * caption @ space[0].T


def proxies(spec: Spec) -> nn.ModuleDict:
    """A proxy of each tower: its pooled state [B,D] into the model's joint space [B,E]."""
    widths = {"image": spec.vision_pooled, "text": spec.text_pooled}
    return nn.ModuleDict(
        {
            side: nn.Sequential(
                nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(), nn.Linear(HIDDEN, spec.embed_dim)
            )
            for side, width in widths.items()
        }
    )
