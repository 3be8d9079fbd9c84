"""How long stage teacher fills its store: in one stream over all parts, and one part after another.

    python benchmarks/filling.py --pictures 480 --part 16 --bandwidth 5 --rounds 3

One after another is the usual way: a pool of workers reads a part, the teacher answers, the part is written and sent,
and then the next one begins. Both forms have the demo's teacher, generated pictures, two crops of each and two workers;
sending takes a part's bytes at `--bandwidth` MB/s beside what it takes here. By turns; seconds are medians of rounds,
the ratio that of the paired ones. Checked is that both have made the same parts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cmapkd_core import storage
from cmapkd_core.catalog import STORES
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, store_filling, teacher
from cmapkd_core.stages.bodies import teacher as body
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.store_filling import Filling, write_store

FIELDS = (
    "data.source=scenes data.size={} data.fraction=1 data.leakage_action=allow teacher_fit.views=2 "
    "teacher.weights=random teacher_fit.store=levels teacher_fit.space.epochs=0 teacher_fit.pyramid.epochs=0 "
    "teacher_fit.batch=16 runtime.workers=2"
)
MB = 10**6


class OneByOne(Filling):
    """A part is sent before the next one is read."""

    def _make(
        self, numbers: Sequence[int], progress: Callable[[int], None], begun: Callable[[], object] = lambda: None
    ) -> None:
        for number in numbers:
            super()._make([number], progress)
        begun()


FORMS: dict[str, type[Filling]] = {"one after another": OneByOne, "one stream": Filling}


class Bench:
    """Every form several times, in place of stage teacher's own filling, which is the last."""

    def __init__(self, rounds: int, bandwidth: float) -> None:
        self.rounds, self.bandwidth = rounds, bandwidth * MB
        self.seconds: dict[str, list[float]] = {name: [] for name in FORMS}
        self.made: list[dict[str, object]] = []
        self._put = storage.put

    def put(self, local: Path, url: str) -> None:
        """As storage.put, at the bandwidth."""
        time.sleep(local.stat().st_size / self.bandwidth)
        self._put(local, url)

    def fill(self, context: Context, shards: ShardSet, fitted: Teacher) -> None:
        """As store_filling.write_store."""
        for number in range(self.rounds):
            for name, form in FORMS.items():
                store_filling.Filling = _elsewhere(form, f"{number}-{form.__name__}")  # type: ignore[misc]
                context.placed.clear()
                since = time.monotonic()
                write_store(context, shards, fitted)
                self.seconds[name].append(time.monotonic() - since)
                self.made.append({file: entry["sha256"] for file, entry in context.placed.items()})
        store_filling.Filling = Filling  # type: ignore[misc]
        context.placed.clear()
        write_store(context, shards, fitted)


def _elsewhere(form: type[Filling], name: str) -> type[Filling]:
    """The form, whose parts lie where no other's do."""

    class Elsewhere(form):  # type: ignore[valid-type, misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            self.folder = f"{self.folder}-{name}"

    return Elsewhere


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pictures", type=int, default=480)
    cli.add_argument("--part", type=int, default=16, help="pictures of a part")
    cli.add_argument("--bandwidth", type=float, default=5.0, help="MB/s")
    cli.add_argument("--rounds", type=int, default=3)
    return cli


def main() -> None:
    """Check, measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.rounds, args.bandwidth)
    STORES["levels"] = replace(STORES["levels"], size=args.part)
    with tempfile.TemporaryDirectory() as root:
        request = Request("demo", root, overrides=FIELDS.format(args.pictures))
        shards = prepare.run(request)
        body.write_store = bench.fill  # type: ignore[assignment]
        storage.put = bench.put
        teacher.run(request, shards=shards)
    assert all(made == bench.made[0] for made in bench.made), "both forms make the same parts"
    peer, ours = bench.seconds.values()
    ratio = statistics.median(a / b for a, b in zip(peer, ours, strict=True))
    print(f"{len(bench.made[0])} parts of {args.part} pictures, two crops of each; the same files both ways")
    print(f"{'':24}" + "".join(f"{name:>20}" for name in FORMS) + f"{'ratio':>8}")
    seconds = "".join(f"{statistics.median(values):20.1f}" for values in bench.seconds.values())
    print(f"{f'seconds at {args.bandwidth:g} MB/s':24}{seconds}{ratio:8.2f}")


if __name__ == "__main__":
    main()
