"""Pictures a CPU second of one core: this loader's, the usual one's, and of decoding alone, side by side in one run.

    python benchmarks/loader.py --images 512 --rounds 9

Pictures are 500 x 375 JPEGs with the spectrum of photographs (about 88 KB). All rows take turns in every round; a ratio
is the median over the rounds of that row's pictures a CPU second (of all its processes) to those of bare decoding
(simplejpeg, in memory) in the same round. First is checked that an epoch shows every picture once, and that its crops
are Pillow's within the bound of LARGEST and MEAN.

The usual loader is webdataset's with Pillow's decoder and torchvision's RandomResizedCrop (bicubic), ToTensor and
Normalize. Ours gives a batch as bytes and tokens to the device, which normalises it; "normalised here" has the CPU do
that too, as it does where there is no GPU. "Decoding and our crop" has no reading, checksums, order and batches, so it
bounds what a loader with these kernels can reach. "Decoding at 5/8" is libjpeg-turbo's own scaling to the least of its
sizes that is not below 224, which might have been the faster way.
"""

from __future__ import annotations

import argparse
import os
import runpy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil
import simplejpeg
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torchvision import transforms
from webdataset import WebDataset

from cmapkd_core.config import DataConfig
from cmapkd_core.data.augment import View, canvas, crop_box, train_pixels
from cmapkd_core.data.images import decode
from cmapkd_core.data.loader import Side, TrainLoader
from cmapkd_core.data.order import sample_seed
from cmapkd_core.data.rows import Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.writer import write_shards

jpegs = runpy.run_path(str(Path(__file__).with_name("prepare.py")))["jpegs"]

SIZE, SCALE, BATCH, REPACK, SEED = 224, (0.9, 1.0), 64, 256, 0
VIEW = View(SIZE, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LARGEST, MEAN = 2, 0.02  # grey levels of 255 by which a crop may differ from Pillow's
WORDS = ("a", "man", "riding", "brown", "horse", "next", "to", "woman", "with", "umbrella", "two", "dogs", "park")
BARE, PEER = "bare decoding", "webdataset, Pillow"
GOALS = {"ours": 0.80, f"ours, repack={REPACK}": 1.5}  # R4

Pass = Callable[[], int]  # all pictures once; gives their number


def written(data: list[bytes], folder: Path, repack: int) -> ShardSet:
    """The pictures as a prepared data set, all of them for training."""
    config = DataConfig(source="benchmark", val_share=0.0, test_share=0.0, repack=repack)
    draw = np.random.default_rng(1)
    rows = (Row(str(i), image, (" ".join(draw.choice(WORDS, 11)),), split="train") for i, image in enumerate(data))
    write_shards(rows, folder / str(repack), config, lambda count: None)
    return ShardSet.open(str(folder / str(repack)), folder / "cache")


def loader(shards: ShardSet, tokenize: Callable[[list[str]], Tensor], workers: int = 0) -> TrainLoader:
    """Ours, for one model."""
    shared = {"rank": 0, "world": 1, "fraction": 1.0, "crop_scale": SCALE, "quarantine_bound": 0.0}
    side = {"student": Side(VIEW, tokenize)}
    return TrainLoader(shards, side, batch=BATCH, seed=SEED, workers=workers, max_pixels=10**8, **shared)  # type: ignore[arg-type]


def no_tokens(texts: list[str]) -> Tensor:
    """Stands in for a tokenizer where pictures alone are looked at."""
    return torch.zeros(len(texts), 1, dtype=torch.int64)


def of_ours(own: TrainLoader, normalised: bool) -> Pass:
    """A whole epoch, with what the device does or without."""
    source = own if normalised else own._feed
    give = source.batches if isinstance(source, TrainLoader) else source.items
    return lambda: BATCH * sum(1 for _ in give(0, own.steps_per_epoch))


def of_peer(folder: Path) -> Pass:
    """The usual loader over the same shards."""
    crop = transforms.RandomResizedCrop(SIZE, SCALE, interpolation=transforms.InterpolationMode.BICUBIC)
    whole = transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(VIEW.mean, VIEW.std)])
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))

    def run() -> int:
        pictures = (
            WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg").map_tuple(whole)
        )
        batches: Iterable[tuple[Tensor]] = pictures.batched(BATCH)
        return sum(len(batch[0]) for batch in batches)

    return run


def cropped(data: list[bytes]) -> int:
    """Each picture decoded and one crop of it, which any loader has to do."""
    draw, place = torch.Generator().manual_seed(SEED), canvas(1, SIZE)
    for image in data:
        train_pixels(simplejpeg.decode_jpeg(image), [VIEW.rendering], SCALE, draw, [place[0]])
    return len(data)


def scaled(image: bytes) -> np.ndarray:
    """[235, 313, 3] of a picture of 375 x 500."""
    decoded: np.ndarray = simplejpeg.decode_jpeg(image, min_height=SIZE, min_width=SIZE, min_factor=1.0)
    return decoded


def used() -> float:
    """CPU seconds so far of this process and of those that it started."""
    own = time.process_time()
    return own + sum(sum(child.cpu_times()[:2]) for child in psutil.Process(os.getpid()).children())


def check(shards: ShardSet) -> str:
    """Raises where a picture is missing or a crop is not Pillow's within the bound; gives what was found."""
    own, keys = loader(shards, no_tokens), list[str]()
    largest, means = 0, list[float]()
    for number, made in enumerate(own._feed.items(0, own.steps_per_epoch)):
        keys += made.batch.keys
        for i, picture in zip(made.batch.index.tolist(), made.rendered.pixels[VIEW.rendering], strict=True):
            if number:
                break
            image = decode(shards.read_image("train", i), 10**8)
            box = crop_box(*image.size, SCALE, torch.Generator().manual_seed(sample_seed(SEED, 0, i)))
            expected = np.asarray(image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
            errors = np.abs(picture.permute(1, 2, 0).numpy() - expected)
            largest, means = max(largest, int(errors.max())), [*means, float(errors.mean())]
    assert sorted(keys) == sorted(shards.keys("train")), "an epoch shows every picture once"
    mean = statistics.mean(means)
    assert largest <= LARGEST, largest
    assert mean <= MEAN, mean
    return f"largest difference to Pillow's crops {largest}, mean {mean:.3f} of 255"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--images", type=int, default=512, help=f"a multiple of {BATCH}")
    cli.add_argument("--rounds", type=int, default=9)
    return cli


def main() -> None:
    """Measure and print."""
    given = parser().parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # webdataset's, of shards that nobody splits
    with tempfile.TemporaryDirectory() as name:
        folder, data, tokens = Path(name), jpegs(given.images), SimpleTokenizer()
        whole, small = (written(data, folder, repack) for repack in (0, REPACK))
        print(f"whole: {check(whole)}; repacked: {check(small)}")
        ways: dict[str, Pass] = {
            BARE: lambda: sum(simplejpeg.decode_jpeg(image).ndim == 3 for image in data),
            "decoding and our crop": lambda: cropped(data),
            "decoding at 5/8": lambda: sum(min(scaled(image).shape[:2]) < 375 for image in data),
            PEER: of_peer(folder / "0"),
            "ours": of_ours(loader(whole, no_tokens), False),
            "ours, with CLIP's tokens": of_ours(loader(whole, tokens), False),
            "ours, from a worker": of_ours(loader(whole, no_tokens, workers=1), False),
            "ours, normalised here": of_ours(loader(whole, no_tokens), True),
            f"ours, repack={REPACK}": of_ours(loader(small, no_tokens), False),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.rounds + 1):
            for way, run in ways.items():
                before = used()
                assert run() == given.images, f"{way}: pictures are missing"
                seconds[way].append(used() - before)
    print("| one core | images a CPU second | to bare decoding | goal |\n|---|---|---|---|")
    for way, own in seconds.items():
        speed = given.images / statistics.median(own[1:])  # the first round warms up
        ratio = statistics.median(bare / one for bare, one in zip(seconds[BARE][1:], own[1:], strict=True))
        print(f"| {way} | {speed:.0f} | {ratio:.2f} | {f'{GOALS[way]:.2f}' if way in GOALS else ''} |")


if __name__ == "__main__":
    main()
