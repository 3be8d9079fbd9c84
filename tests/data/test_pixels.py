"""Pixels for training: those of Pillow to the bit, of every kind of picture, whole or damaged."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import NOISE, jpeg, smooth, turned
from PIL import Image
from torch import Tensor

from cmapkd_core.data import pixels
from cmapkd_core.data.augment import View, canvas, crop_box, normalise, train_pixels
from cmapkd_core.data.feed import Feed, Items
from cmapkd_core.data.images import shown
from cmapkd_core.data.pixels import shown_pixels
from cmapkd_core.errors import BadImageError

LIMIT = 1_000_000


def seen(data: bytes) -> tuple[object, object]:
    """What Pillow and what the fast way makes of a file: pixels, or the reason why there are none."""
    found: list[object] = []
    for way in (shown, shown_pixels):
        try:
            with way(data, LIMIT) as picture:
                array = np.asarray(picture)
                found.append((array.shape, array.tobytes()))
        except BadImageError as error:
            found.append(str(error))
    return found[0], found[1]


def fast(data: bytes) -> bool:
    return pixels._plain_jpeg(data, LIMIT, 8, "RGB") is not None


@pytest.mark.parametrize("picture", [NOISE, NOISE[:8, :9], NOISE[:17, :33], smooth(120, 90)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [5, 75, 99])
def test_plain_jpegs_are_pillows_to_the_bit(picture: np.ndarray, subsampling: int, quality: int) -> None:
    for options in ({}, {"optimize": True}, {"restart_marker_blocks": 3}, {"comment": b"a" * 300}):
        data = jpeg(picture, quality=quality, subsampling=subsampling, **options)
        pillows, ours = seen(data)
        assert ours == pillows
        assert fast(data)
    data = jpeg(picture, "L", quality=quality)
    assert fast(data)
    assert len(set(seen(data))) == 1


@pytest.mark.parametrize(
    "data",
    [
        jpeg(NOISE, progressive=True),
        jpeg(NOISE, "CMYK"),
        jpeg(NOISE, keep_rgb=True),
        jpeg(NOISE, exif=turned(6)),
        jpeg(NOISE)[:-2],  # no end
        jpeg(NOISE)[:-300],
        jpeg(NOISE).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),  # twelve bits
        jpeg(NOISE[:7]),
        jpeg(np.zeros((1001, 1000, 3), dtype=np.uint8)),
        b"\xff\xd8\xff\xe0",
        b"",
    ],
)
def test_what_is_not_plain_is_pillows(data: bytes) -> None:
    pillows, ours = seen(data)
    assert ours == pillows
    assert not fast(data)


def test_upright_photographs_are_plain() -> None:
    data = jpeg(NOISE, exif=turned(1))
    assert fast(data)
    assert len(set(seen(data))) == 1


def test_of_damaged_files_pillow_has_the_last_word() -> None:
    """Thousands of bytes changed, cut, put in: whatever Pillow shows or refuses, so does the fast way."""
    draw, differ, taken = random.Random(0), 0, 0
    sources = [
        jpeg(NOISE[:24, :30], quality=q, subsampling=s, progressive=p)
        for q in (30, 95)
        for s, p in ((0, 0), (2, 0), (2, 1))
    ]
    for _ in range(3000):
        data = bytearray(draw.choice(sources))
        place, kind = draw.randrange(2, len(data)), draw.randrange(4)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place:place] = draw.randbytes(3)
        else:
            data[place] = draw.randrange(256)
        pillows, ours = seen(bytes(data))
        differ += pillows != ours
        taken += fast(bytes(data))
    assert not differ
    assert taken > 300


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("picture", [NOISE, smooth(300, 225)])
def test_crops_are_torchs_antialiased_ones_to_the_bit(picture: np.ndarray, interpolation: str) -> None:
    for seed in range(4):
        room = canvas(2, 48)
        train_pixels(picture, [(48, interpolation)], (0.5, 1.0), torch.Generator().manual_seed(seed), [room[1]])
        left, top, right, bottom = crop_box(
            picture.shape[1], picture.shape[0], (0.5, 1.0), torch.Generator().manual_seed(seed)
        )
        crop = torch.from_numpy(picture[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
        assert torch.equal(room[1], F.interpolate(crop, (48, 48), mode=interpolation, antialias=True)[0])


# Of 255 grey levels, (largest, mean): what resampling for speed may differ from Pillow's, which CLIP trained with.
@pytest.mark.parametrize(("picture", "largest", "mean"), [(smooth(500, 375), 2, 0.05), (NOISE, 18, 0.1)])
def test_crops_are_within_a_bound_of_pillows(picture: np.ndarray, largest: int, mean: float) -> None:
    for size, seed in ((48, 0), (224, 1)):
        box = crop_box(picture.shape[1], picture.shape[0], (0.9, 1.0), torch.Generator().manual_seed(seed))
        (ours,) = train_pixels(picture, [(size, "bicubic")], (0.9, 1.0), torch.Generator().manual_seed(seed))
        theirs = np.asarray(Image.fromarray(picture).crop(box).resize((size, size), Image.Resampling.BICUBIC))
        apart = (ours.int() - torch.from_numpy(theirs.copy()).permute(2, 0, 1).int()).abs()
        assert apart.max() <= largest
        assert apart.float().mean() <= mean


def test_normalising_a_batch_is_normalising_each_picture() -> None:
    view = View(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    batch = canvas(5, 16).random_(generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    expected = batch.contiguous().float().mul_(1 / (255 * std)).sub_(mean / std)
    assert torch.equal(normalise(batch, view), expected)
    assert torch.equal(torch.stack([normalise(one, view) for one in batch]), expected)
    assert normalise(batch, view).is_contiguous()


class Canvases(Items[Tensor]):
    def make(self, number: int) -> Tensor:
        room = canvas(2, 4).fill_(number)
        return torch.stack([room.float().mean(), torch.tensor(float(room.is_shared()))])


def test_a_workers_room_is_shared_from_the_start() -> None:
    assert [item.tolist() for item in Feed(Canvases(), 1).items(3, 5)] == [[3, 1], [4, 1]]
    assert [item.tolist() for item in Feed(Canvases(), 0).items(3, 4)] == [[3, 0]]
