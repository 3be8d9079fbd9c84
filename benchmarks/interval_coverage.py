"""How often intervals over seeds and test concepts hold the truth, by simulation.

    python benchmarks/interval_coverage.py               # two minutes
    python benchmarks/interval_coverage.py --suites 200  # faster

A value of each concept with each seed is the sum of three normal draws, by seed, by concept and by both, around 0. A
line has the three spreads, and of its simulated suites the share whose 95 % interval of the mean holds 0: that of
report/resampling.py, the same where the spread by both stays in the draws of concepts too, the plain bootstrap of
seeds and concepts, and the t-interval over the seeds alone; then how much wider the first is than the last.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from cmapkd_core.report.resampling import samples, seeds_and_concepts, turns
from cmapkd_core.report.significance import LEVEL, interval

SPREADS = ((0.0, 0.0, 10.0), (1.0, 0.0, 10.0), (0.0, 10.0, 1.0), (1.0, 10.0, 1.0), (0.3, 10.0, 10.0), (0.5, 3.0, 20.0))
NAMES = ("as reported", "both twice", "bootstrap", "seeds alone")
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def main() -> None:
    """Print a line for each of SPREADS."""
    options = parser().parse_args()
    shares = np.concatenate(list(samples(options.concepts))) / options.concepts
    print(f"{options.seeds} seeds, {options.concepts} concepts, {options.suites} suites a line; percent that hold 0")
    print("seed  concept  both  " + "  ".join(f"{name:>11}" for name in NAMES) + "  wider by")
    for spreads in SPREADS:
        generator = np.random.default_rng(0)
        suites = [one_suite(generator, shares, spreads, options.seeds) for _ in range(options.suites)]
        held = [100 * float(np.mean([held[name] for held, _ in suites])) for name in NAMES]
        wider = float(np.median([ratio for _, ratio in suites]))
        cells = "  ".join(f"{share:11.1f}" for share in held)
        print("{:4g}  {:7g}  {:4g}  {}  {:8.2f}".format(*spreads, cells, wider), flush=True)


def one_suite(
    generator: np.random.Generator, shares: np.ndarray, spreads: tuple[float, float, float], seeds: int
) -> tuple[dict[str, bool], float]:
    """By name whether an interval holds 0, and the first one's width by that of the seeds alone."""
    concepts = shares.shape[1]
    by_seed, by_concept, by_both = (
        generator.normal(0, 1, shape) for shape in (seeds, (concepts, 1), (concepts, seeds))
    )
    values = spreads[0] * by_seed + spreads[1] * by_concept + spreads[2] * by_both
    measured, drawn = values.mean(axis=0), shares @ values
    ours, alone = seeds_and_concepts(measured, drawn, concepts, LEVEL), interval(list(measured))
    if ours is None or alone.half is None:
        raise SystemExit("at least 20 concepts and 2 seeds")
    spread = measured.std(ddof=1) / math.sqrt(seeds)
    twice = np.quantile(drawn.mean(axis=1) + spread * turns(len(drawn), seeds), ENDS)
    chosen = generator.integers(seeds, size=drawn.shape)
    plain = np.quantile(np.take_along_axis(drawn, chosen, axis=1).mean(axis=1), ENDS)
    pairs = ((ours.low, ours.high), twice, plain, (alone.mean - alone.half, alone.mean + alone.half))
    held = {name: bool(low <= 0 <= high) for name, (low, high) in zip(NAMES, pairs, strict=True)}
    return held, (ours.high - ours.low) / (2 * alone.half)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--suites", type=int, default=1000, help="simulated suites a line")
    made.add_argument("--seeds", type=int, default=5, help="seeds of a suite")
    made.add_argument("--concepts", type=int, default=200, help="concepts of the test data")
    return made


if __name__ == "__main__":
    main()
