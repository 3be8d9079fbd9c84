"""What is fitted on the frozen teacher before any student is trained (design, section 4).

A teacher pyramid that is trained together with the student collapses to zero loss, and a random one
has no cross-modal meaning; so it is fitted here, on the teacher alone, and then frozen.

Shapes: b local batch, B global batch, W level width, C_k and D_k tap widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS, Phase, TeacherFitConfig
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.similarity import info_nce
from cmapkd_core.methods.base import Outcome, gathered, precision
from cmapkd_core.methods.global_batch import gathered_levels
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, LevelTower, similarities
from cmapkd_core.models.features import Features
from cmapkd_core.models.frozen_teacher import diagonal_prior
from cmapkd_core.models.hierarchy import masked_mean
from cmapkd_core.models.pyramid import resize


@dataclass
class FrozenFeatures:
    """The teacher's own features of a batch, without a graph."""

    vision: Features
    text: Features


class PyramidFit(nn.Module):
    """Levels, bridge and compatibility of the teacher.

        sum_ij alpha_ij InfoNCE(sim_ij) + lambda mean_k MSE(decoder_k(level_k), normalised tap_k)
        + mu KL(alpha || prior)

    The contrast has negatives and the reconstruction has the taps' variance to explain, so neither
    can collapse; without the prior alpha would go to the easiest pair.
    """

    amp: torch.dtype | None = None

    def __init__(self, backbone: Backbone, grid: int, width: int, config: TeacherFitConfig) -> None:
        super().__init__()
        spec = backbone.spec
        # Not trained here: a checkpoint of this phase must hold what the phase before has fitted.
        self.heads = nn.ParameterList(backbone.heads())
        self.levels = LevelTower(spec, grid, width)
        self.vision_decoders = nn.ModuleDict(
            {name: nn.Conv2d(width, w, 1) for name, w in zip(VISION_LEVELS, spec.vision_widths, strict=True)}
        )
        text_widths = (*spec.text_widths[:3], spec.text_pooled)
        self.text_decoders = nn.ModuleDict(
            {name: nn.Linear(width, w) for name, w in zip(TEXT_LEVELS, text_widths, strict=True)}
        )
        self.table = nn.Parameter(diagonal_prior().log())
        self.config = config

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """Levels, decoders and a learned compatibility."""
        modules = (self.levels, self.vision_decoders, self.text_decoders)
        table = [self.table] if self.config.alpha == "learned" else []
        return {"pyramid": [*(p for module in modules for p in module.parameters()), *table]}

    def alpha(self) -> Tensor:
        """Compatibility of P_i with L_j, [4,4], sums to 1."""
        return self.table.flatten().softmax(0).view_as(self.table)

    def forward(self, batch: Batch, targets: FrozenFeatures, phase: Phase, step: int) -> Outcome:
        """Terms `contrast`, `reconstruction` and `prior`."""
        with precision(self.table.device.type, self.amp):
            levels = self.levels(targets.vision, targets.text, phase.levels).float()
        everywhere = gathered_levels(levels)
        sims = similarities(everywhere, everywhere, self.levels.bridge.scale())
        alpha = self.alpha()
        prior = (alpha * (alpha.log() - diagonal_prior().to(alpha.device).log())).sum()
        errors = [(x - guess).square().mean() for x, guess in self.reconstructions(levels, targets).values()]
        terms = {
            "contrast": (alpha * info_nce(sims)).sum(),
            "reconstruction": torch.stack(errors).mean(),
            "prior": prior,
        }
        return Outcome(terms)

    def reconstructions(self, levels: Levels, targets: FrozenFeatures) -> dict[str, tuple[Tensor, Tensor]]:
        """Per level the normalised tap and its reconstruction, [n, C_k] or [b, D_k] each."""
        pairs = {}
        for name, tap in zip(VISION_LEVELS, targets.vision.taps, strict=True):
            guess = self.vision_decoders[name](resize(levels.maps[name], tap.shape[-1]))
            pairs[name] = (_normed(rearrange(tap, "b c h w -> (b h w) c")), rearrange(guess, "b c h w -> (b h w) c"))
        text = targets.text
        assert text.mask is not None, "text features carry a mask"
        states = [*(masked_mean(tap, text.mask) for tap in text.taps[:3]), text.pooled]
        for name, state in zip(TEXT_LEVELS, states, strict=True):
            pairs[name] = (_normed(state), self.text_decoders[name](levels.vectors[name]))
        return pairs


def _normed(x: Tensor) -> Tensor:
    """[.., C] -> fp32 [.., C], normalised over channels."""
    return F.layer_norm(x.float(), x.shape[-1:])


class SpaceFit(nn.Module):
    """The heads of locked towers into a joint space (LiT, Zhai et al. 2022), from pooled states of one pass.

    Only for a teacher whose towers were never trained together; a CLIP brings its space along.
    """

    amp: torch.dtype | None = None

    def __init__(self, backbone: Backbone, config: TeacherFitConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ParameterList(backbone.heads())
        self._locked = (backbone,)  # in a tuple: the towers are no part of this module's state
        self.log_scales = (backbone.model.logit_scale,)

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """Both projections and the logit scale."""
        return {"heads": list(self.heads)}

    def forward(self, batch: dict[str, Tensor], targets: None, phase: Phase, step: int) -> Outcome:
        """Term `task` of rows {image, text}: pooled states [b,D_v], [b,D_l] of pairs."""
        (backbone,) = self._locked
        pooled = self.dropout(batch["image"]), self.dropout(batch["text"])
        image, text = gathered(backbone.project_image(pooled[0]), backbone.project_text(pooled[1]))
        return Outcome({"task": info_nce(backbone.scale() * image @ text.T)})
