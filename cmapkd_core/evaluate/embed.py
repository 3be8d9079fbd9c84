"""Embeddings of a split's images and of texts by a backbone, in batches on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cmapkd_core.data.augment import View
from cmapkd_core.data.loader import Side, eval_batches
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.models.backbones import Backbone


def side_of(backbone: Backbone) -> Side:
    """How a model wants its images and captions."""
    return Side(View.of(backbone.identity.plain()), backbone.tokenize, backbone.trimming())


def embed_texts(
    backbone: Backbone,
    texts: Sequence[str],
    batch: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Unit-norm embeddings of `texts`, [n,E] float32 on the device, in their order.

    `progress` is called with the number of texts done after each batch.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            tokens = backbone.tokenize(list(texts[start : start + batch]))
            parts.append(backbone.encode_text(tokens.to(device)).float())
            progress(min(start + batch, len(texts)))
    return torch.cat(parts)


def embed_images(
    backbone: Backbone,
    shards: ShardSet,
    split: str,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    progress: Callable[[int], None],
) -> Tensor:
    """Unit-norm embeddings of a split's images, [n,E] float32 on the device, in table order.

    Args:
        progress: called with the number of images done after each batch.

    Raises:
        InputError: no such split, or a stored image that does not match its checksum; every image of a test
            split counts, so none is replaced or left out.
    """
    embeddings = torch.empty(shards.count(split), backbone.spec.embed_dim, device=device)
    with torch.inference_mode():
        for index, images in eval_batches(shards, split, side_of(backbone), batch, workers, device=device):
            embeddings[index.to(device)] = backbone.encode_image(images).float()
            progress(int(index[-1]) + 1)
    return embeddings
