"""Projections from the student's joint space into the teacher's, used by a loss and never exported."""

from __future__ import annotations

from torch import nn

from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.teacher import Teacher


def lifts(student: Backbone, teacher: Teacher) -> nn.ModuleDict:
    """h_v ("image") and h_t ("text"), each linear E -> E'; nothing to learn where the widths are equal."""
    ours, theirs = student.spec.embed_dim, teacher.backbone.spec.embed_dim
    same = ours == theirs
    return nn.ModuleDict({side: nn.Identity() if same else nn.Linear(ours, theirs) for side in ("image", "text")})
