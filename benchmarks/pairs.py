"""R3: the align term's pairs of levels as a loop over them, and as this package computes them.

    python benchmarks/pairs.py --batch 256 --large 2048 8192 --rounds 7

Time: forward and backward of L_pyramid at `--batch`, both forms by turns in one process of one thread, the median of
the paired ratios. Eight products of the batch's vectors are in either form, two of them the teacher's, so what can be
gained on a CPU is bounded; the third row says by what: the eight products alone. Memory: by how much the resident
memory of a fresh process rises above its level with the vectors in memory; a loop is not run above 2048 pairs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.losses import similarity
from cmapkd_core.losses.align import pyramid
from cmapkd_core.losses.streamed import Similarities

LEVELS, WIDTH, TAU = 4, 256, 1.0
LOOPED = 2048  # the largest batch of the loop: it holds 16 matrices of each kind
GOALS = {"time": "3", 2048: "220 MiB", 8192: "614 MiB"}


class Vectors:
    """Levels of images and captions, each as they are and mapped, [4,B,W]; the student's have a gradient."""

    def __init__(self, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(LEVELS, batch, WIDTH, generator=generator) for _ in range(8)]
        self.student, self.teacher = [x.requires_grad_() for x in made[:4]], made[4:]
        self.scale = torch.tensor(14.0, requires_grad=True)
        self.alpha = torch.rand(LEVELS, LEVELS, generator=generator)

    def gradients(self, term: Tensor) -> list[Tensor]:
        """Of the student's vectors and of the scale."""
        return list(torch.autograd.grad(term, [*self.student, self.scale]))


def ours(vectors: Vectors) -> Tensor:
    """As in training."""

    def side(given: list[Tensor], scale: Tensor | float) -> Similarities:
        image, image_mapped, text, text_mapped = (F.normalize(x, dim=-1) for x in given)
        return Similarities((image_mapped, image), (text, text_mapped), scale)

    student, teacher = side(vectors.student, 0.5 * vectors.scale), side(vectors.teacher, 10.0)
    return pyramid(student, teacher, vectors.alpha, TAU)


def loop(vectors: Vectors) -> Tensor:
    """One pair of levels after the other."""
    sides = [[F.normalize(x, dim=-1) for x in given] for given in (vectors.student, vectors.teacher)]
    weights = vectors.alpha / vectors.alpha.sum()
    terms = []
    for i in range(LEVELS):
        for j in range(LEVELS):
            student, teacher = (
                (mapped[i] @ text[j].T + image[i] @ mapped_text[j].T) for image, mapped, text, mapped_text in sides
            )
            kl = similarity.relative_entropy(10.0 * teacher, 0.5 * vectors.scale * student, TAU)
            terms.append(weights[i, j] * kl)
    return torch.stack(terms).sum()


def products(vectors: Vectors) -> None:
    """The eight matrix products that either form needs: two of each side, and the gradients of two."""
    rows, columns = (x.detach().flatten(0, 1) for x in vectors.student[:2])
    matrix = rows @ columns.T
    for _ in range(3):
        torch.mm(rows, columns.T, out=matrix)
    for _ in range(2):
        matrix @ columns, matrix.T @ rows


FORMS: dict[str, Callable[[Vectors], Tensor]] = {"ours": ours, "loop": loop}


def require_equal(batch: int) -> None:
    """Both forms give the same value and gradients, to fp32."""
    vectors = Vectors(batch)
    outcomes = [(form(vectors), vectors.gradients(form(vectors))) for form in FORMS.values()]
    (value, gradients), (other, expected) = outcomes
    assert torch.allclose(value, other, rtol=1e-5), (value, other)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(gradients, expected, strict=True))


def timed(batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU by form, one of each a round; the first round warms up."""
    vectors = Vectors(batch)
    by_form: dict[str, list[float]] = {name: [] for name in (*FORMS, "products")}
    for _ in range(rounds + 1):
        for name, form in FORMS.items():
            since = time.process_time()
            vectors.gradients(form(vectors))
            by_form[name].append(time.process_time() - since)
        since = time.process_time()
        products(vectors)
        by_form["products"].append(time.process_time() - since)
    return {name: values[1:] for name, values in by_form.items()}


def peak() -> float:
    """The most that this process ever had resident, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def risen(form: str, batch: int) -> float:
    """MiB above the vectors, measured in this process, which has done nothing else."""
    FORMS[form](Vectors(8)).backward()  # what libraries set up once
    vectors = Vectors(batch)
    before = peak()
    vectors.gradients(FORMS[form](vectors))
    return peak() - before


def fresh(form: str, batch: int) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--form", form, "--batch", str(batch)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # or what was freed before counts, by chance
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batch", type=int, default=256)
    cli.add_argument("--large", type=int, nargs="*", default=[2048, 8192])
    cli.add_argument("--rounds", type=int, default=7)
    cli.add_argument("--form", choices=FORMS, help="print only the memory that this form takes at --batch")
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    if args.form:
        print(risen(args.form, args.batch))
        return
    require_equal(64)
    seconds = timed(args.batch, args.rounds)
    print(f"{'':24}{'loop':>12}{'ours':>12}{'loop / ours':>13}{'goal':>10}")
    middle = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["ours"], strict=True))
    print(
        f"{f'ms at {args.batch} pairs':24}{middle['loop']:12.1f}{middle['ours']:12.1f}{ratio:13.2f}{GOALS['time']:>10}"
    )
    bound = middle["loop"] / middle["products"]
    print(f"{'  its products alone':24}{'':12}{middle['products']:12.1f}{bound:13.2f}{'':>10}")
    for batch in args.large:
        streamed = fresh("ours", batch)
        looped = fresh("loop", batch) if batch <= LOOPED else None
        shown = ("-", "-") if looped is None else (f"{looped:.0f}", f"{looped / streamed:.1f}")
        print(f"{f'MiB at {batch} pairs':24}{shown[0]:>12}{streamed:12.0f}{shown[1]:>13}{GOALS.get(batch, ''):>10}")


if __name__ == "__main__":
    main()
