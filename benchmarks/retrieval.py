"""Time and memory of ranking every caption for every image and back, on random embeddings.

    python benchmarks/retrieval.py --images 30000 --captions 5 --width 64 --threads 1

The similarities of 30,000 images and 150,000 captions take 18 GB; printed is by how much the process's resident memory
rose above its level with the embeddings in memory (`measure.memory_rise`).
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from cmapkd_core.evaluate.measure import memory_rise
from cmapkd_core.evaluate.protocol import measure


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--images", type=int, default=30_000)
    cli.add_argument("--captions", type=int, default=5)
    cli.add_argument("--width", type=int, default=64)
    cli.add_argument("--threads", type=int, default=1)
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    count = args.images * args.captions
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(args.images, args.width, generator=generator), dim=1)
    noise = torch.randn(count, args.width, generator=generator)
    text = F.normalize(image.repeat_interleave(args.captions, dim=0) * args.width**0.5 + 2 * noise, dim=1)
    del noise
    rows = torch.stack((torch.arange(count) // args.captions, torch.arange(count)), dim=1)
    started, busy = time.perf_counter(), time.process_time()
    results: list[dict[str, float]] = []
    rise = memory_rise(lambda: results.append(measure(image, text, rows)[0]), torch.device("cpu"))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    print(f"{args.images} images x {count} captions, width {args.width}, {args.threads} threads")
    print(f"both ways {seconds:.1f} s ({busy:.1f} s of processor time)")
    rose = "is not known here" if rise is None else f"rose by {rise / 1e6:.0f} MB"
    print(f"peak memory {rose}; all scores take {4e-6 * args.images * count:.0f} MB")
    shown = ("i2t/R@1", "i2t/R@10", "t2i/R@1", "t2i/R@10", "i2t/mean_rank", "t2i/mean_rank")
    print("  ".join(f"{name} {results[0][name]:.2f}" for name in shown))


if __name__ == "__main__":
    main()
