"""The fusion head of task vqa and its training: the same for every model but for three input projections.

Shapes: B questions, P = g * g positions of a picture, N tokens, W width of the head, A answers that can be said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.config import VqaConfig
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.probe import ProbeSettings, fit, rise_then_cosine
from cmapkd_core.evaluate.vqa_inputs import FrozenInputs, QuestionInputs
from cmapkd_core.progress import Say

HEAD = 64  # channels of an attention head, where the width divides by it
_DECAY = 0.01


class FusionHead(nn.Module):
    """Picture positions, the picture's embedding and question tokens in one small transformer, read out by one token.

    Positions of the picture get fixed sines of their place in 0..1, so that grids of any size need no table of
    their own; those of words are in the text tower's states.
    """

    def __init__(self, inputs: FrozenInputs, prior: Tensor, config: VqaConfig) -> None:
        """`prior` [A]: mean training target of every answer, which the bias starts from.

        Raises:
            InputError: a width that is no multiple of 4.
        """
        super().__init__()
        width = config.width
        if width % 4 or width < 4:
            raise InputError(f"evaluate.vqa.width={width}: it must be a multiple of 4")
        self.from_map, self.from_image = (nn.Linear(size, width) for size in inputs.widths)
        self.from_words = nn.Linear(inputs.text_width, width)
        self.places: Tensor
        self.register_buffer("places", places(inputs.grid, width), persistent=False)
        self.kinds = nn.Parameter(torch.randn(3, width) * 0.02)  # picture position, picture, word
        self.readout = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width,
            width // HEAD if width % HEAD == 0 else 1,
            4 * width,
            config.dropout,
            F.gelu,
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        last = nn.Linear(2 * width, len(prior))
        self.classifier = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), last)
        with torch.no_grad():
            last.bias.copy_(prior.clamp(1e-4, 1 - 1e-4).logit())

    def forward(self, inputs: QuestionInputs) -> Tensor:
        """Logits [B, A]; several answers of a question may be right."""
        batch = len(inputs.mask)
        position, picture, word = self.kinds
        tokens = torch.cat(
            [
                self.readout.expand(batch, 1, -1),
                self.from_image(inputs.images.float())[:, None] + picture,
                self.from_map(inputs.maps.float()) + self.places + position,
                self.from_words(inputs.words.float()) + word,
            ],
            dim=1,
        )
        visible = inputs.mask.new_ones(batch, tokens.shape[1] - inputs.mask.shape[1])
        mixed = self.blocks(tokens, src_key_padding_mask=~torch.cat([visible, inputs.mask], dim=1))
        scores: Tensor = self.classifier(mixed[:, 0])
        return scores


def places(grid: int, width: int) -> Tensor:
    """[grid * grid, width]: sines and cosines of each position's row, then of its column, both in 0..1."""
    axis = (torch.arange(grid) + 0.5) / grid
    angles = axis[:, None] * (2.0 ** torch.linspace(0, 5, width // 4)) * math.pi / 2
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class AnswerTargets:
    """Soft targets by position of the question, dense for one batch at a time."""

    def __init__(self, targets: list[dict[int, float]], answers: int) -> None:
        self.targets, self.answers = targets, answers

    def dense(self, positions: Tensor) -> Tensor:
        """[B, A] in 0..1."""
        targets = torch.zeros(len(positions), self.answers)
        for row, position in enumerate(positions.tolist()):
            for answer, value in self.targets[position].items():
                targets[row, answer] = value
        return targets

    def prior(self) -> Tensor:
        """Mean over all questions, [A]."""
        total = torch.zeros(self.answers, dtype=torch.float64)
        for own in self.targets:
            for answer, value in own.items():
                total[answer] += value
        return (total / len(self.targets)).float()


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of [B, A] twice, summed over answers, mean over questions (Teney et al. 2018): a scalar."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


@dataclass(frozen=True)
class LabelledQuestions:
    """Questions with what the towers say to them and what people answered."""

    inputs: FrozenInputs
    targets: AnswerTargets

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[QuestionInputs, Tensor]]:
        """Inputs and dense targets [B, A], each question once; see `FrozenInputs.batches`."""
        for positions, inputs in self.inputs.batches(size, generator):
            yield inputs, self.targets.dense(positions).to(inputs.mask.device)

    def __len__(self) -> int:
        return len(self.inputs.questions)


def train(
    head: FusionHead, labelled: LabelledQuestions, held_out: LabelledQuestions | None, config: VqaConfig, say: Say
) -> list[dict[str, float]]:
    """Fit the head; only `config` decides how long and in which order.

    The learning rate follows the share of questions seen, so that parts of a pass do not change it.

    Args:
        held_out: its loss is reported and decides nothing.

    Returns:
        One row an epoch: epoch, loss, and val_loss where there is `held_out`.

    Raises:
        InputError: a loss or a gradient that is NaN or Inf.
    """
    budget = config.epochs * len(labelled)

    def losses(epoch: int) -> Iterator[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + epoch - 1)
        for inputs, targets in labelled.batches(config.batch, generator):
            yield loss_of(head(inputs), targets), len(targets)

    training = ProbeSettings(
        name="vqa",
        epochs=config.epochs,
        lr=config.lr,
        examples=len(labelled),
        unit="questions",
        betas=(0.9, 0.999),
        decay=_DECAY,
        rate=lambda count, updates: rise_then_cosine(count, budget),
    )
    return fit(
        head, training, losses, say, lambda: {"val_loss": mean_loss(head, held_out, config.batch)} if held_out else {}
    )


@torch.no_grad()
def mean_loss(head: FusionHead, labelled: LabelledQuestions, batch: int) -> float:
    """`loss_of` over all questions, without dropout."""
    head.eval()
    total = sum(loss_of(head(inputs), targets).item() * len(targets) for inputs, targets in labelled.batches(batch))
    return total / len(labelled)


@torch.no_grad()
def best_answers(head: FusionHead, inputs: FrozenInputs, batch: int) -> Tensor:
    """Number of the answer with the highest logit for each question, [n] long."""
    head.eval()
    best = torch.empty(len(inputs.questions), dtype=torch.long)
    for positions, part in inputs.batches(batch, None):
        best[positions] = head(part).argmax(dim=1).cpu()
    return best
