"""Training of the caption decoder: cross entropy on frozen image features, equally many updates for every model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.config import CaptioningConfig
from cmapkd_core.evaluate.caption_decoder import PrefixDecoder
from cmapkd_core.evaluate.caption_images import TrainingFeatures
from cmapkd_core.evaluate.caption_tokens import END, START, Vocabulary
from cmapkd_core.evaluate.probe import ProbeSettings, fit, risen_cosine, seeded
from cmapkd_core.progress import Say

WEIGHT_DECAY = 0.05
IGNORED = -100  # cross entropy's mark for what stands behind the end of a caption


def train(
    images: TrainingFeatures,
    captions: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    config: CaptioningConfig,
    device: torch.device,
    say: Say,
) -> tuple[PrefixDecoder, list[float]]:
    """A decoder after config.epochs over the images, with one of its captions drawn for each, and every epoch's loss.

    Weights, order, captions and dropout follow from config.seed; the process's random state stays as it was.

    Raises:
        InputError: a loss or a gradient that is NaN or Inf.
    """
    encoded = [[vocabulary.encode(text, config.length) for text in group] for group in captions]
    updates = config.epochs * math.ceil(len(encoded) / config.batch)
    with seeded(config.seed, device):
        draw = torch.Generator().manual_seed(config.seed)
        decoder = PrefixDecoder(images.example, len(vocabulary), config).to(device)
        training = ProbeSettings(
            name="captioning",
            epochs=config.epochs,
            lr=config.lr,
            examples=len(encoded),
            unit="images",
            betas=(0.9, 0.98),
            decay=WEIGHT_DECAY,
            rate=lambda examples, done: risen_cosine(done, updates),
        )
        history = fit(decoder, training, lambda epoch: _losses(decoder, images, encoded, config.batch, draw), say)
    return decoder.eval(), [row["loss"] for row in history]


def _losses(
    decoder: PrefixDecoder,
    images: TrainingFeatures,
    encoded: list[list[list[int]]],
    batch: int,
    draw: torch.Generator,
) -> Iterator[tuple[Tensor, int]]:
    """One epoch: the mean cross entropy of each batch's words, a scalar, and its number of images."""
    order = torch.randperm(len(encoded), generator=draw)
    choice = torch.rand(len(encoded), generator=draw).tolist()
    for places, features in images.batches(order, batch):
        ids = [encoded[i][int(choice[i] * len(encoded[i]))] for i in places.tolist()]
        inputs, targets = (part.to(features.maps.device) for part in padded(ids))
        logits = decoder(features, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        yield loss, len(ids)


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it is to say next, [n, T] each: <start> w1 w2 and w1 w2 <end>."""
    longest = max(map(len, ids))
    targets = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in ids])
    inputs = torch.cat((torch.full((len(ids), 1), START), targets[:, :-1]), dim=1)
    return inputs.masked_fill(inputs == IGNORED, END), targets
