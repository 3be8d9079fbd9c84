"""Training of the caption decoder: cross entropy on frozen sights, the same number of updates for every model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from cmapkd_core.config import CaptioningConfig
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.caption_decoder import PrefixDecoder
from cmapkd_core.evaluate.caption_images import TrainingSights
from cmapkd_core.evaluate.caption_tokens import END, START, Vocabulary

WARMUP = 0.05  # share of the updates with a rising learning rate, before the cosine
WEIGHT_DECAY = 0.05
IGNORED = -100  # cross entropy's mark for what stands behind the end of a caption


def train(
    seen: TrainingSights,
    captions: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    config: CaptioningConfig,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[PrefixDecoder, list[float]]:
    """A decoder after config.epochs over the images, with one of its captions drawn for each, and every epoch's loss.

    Weights, order, captions and dropout follow from config.seed; the process's random state stays as it was.

    Raises:
        InputError: a loss or a gradient was NaN or Inf in some epoch.
    """
    encoded = [[vocabulary.encode(text, config.length) for text in group] for group in captions]
    total, started, losses = config.epochs * math.ceil(len(encoded) / config.batch), time.monotonic(), []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        draw = torch.Generator().manual_seed(config.seed)
        decoder = PrefixDecoder(seen.example, len(vocabulary), config).to(device).train()
        optimizer = torch.optim.AdamW(decoder.parameters(), config.lr, (0.9, 0.98), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total))
        for epoch in range(1, config.epochs + 1):
            mean, longest = torch.zeros((), device=device), torch.zeros((), device=device)
            for loss, share in _losses(decoder, seen, encoded, config.batch, draw):
                optimizer.zero_grad()
                loss.backward()
                longest = longest.maximum(clip_grad_norm_(decoder.parameters(), 1.0))  # NaN where one is
                optimizer.step()
                schedule.step()
                mean += share * loss.detach()
            losses.append(_finite(epoch, mean, longest))
            rest = (time.monotonic() - started) / epoch * (config.epochs - epoch)
            say(f"captioning: epoch {epoch}/{config.epochs}  loss {losses[-1]:.3f}  ETA {rest:.0f} s")
    return decoder.eval(), losses


def _finite(epoch: int, mean: Tensor, longest: Tensor) -> float:
    """The epoch's loss; one transfer an epoch tells of its gradients too.

    A probe skips no update: it is the same for every model, or no comparison.
    """
    loss, norm = torch.stack([mean, longest]).tolist()
    if not math.isfinite(loss + norm):
        raise InputError(
            f"captioning: in epoch {epoch} the decoder's mean loss is {loss} and the largest norm of its gradients "
            f"{norm}: lower evaluate.captioning.lr, or look at the model's own training"
        )
    return float(loss)


def rate(step: int, total: int) -> float:
    """Share of the learning rate: a linear rise, then a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, round(WARMUP * total)))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def _losses(
    decoder: PrefixDecoder,
    seen: TrainingSights,
    encoded: list[list[list[int]]],
    batch: int,
    draw: torch.Generator,
) -> Iterator[tuple[Tensor, float]]:
    """One epoch: the mean cross entropy of each batch's words, and the batch's share of the images."""
    order = torch.randperm(len(encoded), generator=draw)
    choice = torch.rand(len(encoded), generator=draw).tolist()
    for places, sight in seen.batches(order, batch):
        ids = [encoded[i][int(choice[i] * len(encoded[i]))] for i in places.tolist()]
        inputs, targets = (part.to(sight.maps.device) for part in padded(ids))
        logits = decoder(sight, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        yield loss, len(ids) / len(encoded)


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it is to say next, [n, T] each: <start> w1 w2 and w1 w2 <end>."""
    longest = max(map(len, ids))
    targets = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in ids])
    inputs = torch.cat((torch.full((len(ids), 1), START), targets[:, :-1]), dim=1)
    return inputs.masked_fill(inputs == IGNORED, END), targets
