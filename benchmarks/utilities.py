"""Do the utilities that ALSN learns from repeat? Measured twice on the same pairs, in other batches and crops.

    python benchmarks/utilities.py --root runs/demo --recipe demo --stage warmup

Reads finished artifacts of a run (prepare, teacher and the stage below --root). For each level: the mean of its
utilities, their spread over the pairs, and the correlation r of the two measurements. r near 0 would leave a selector
nothing to learn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import build_method
from cmapkd_core.stages.statistics import collect
from cmapkd_core.stages.training import TrainingSetup

KEPT = ["key", *(f"u_{level}" for level in ALL_LEVELS)]


def measured(context: Context, phase: str) -> pa.Table:
    """Utilities in the batches and crops of a phase's stream."""
    setup = TrainingSetup(context, "joint", *build_method(context.recipe, context))
    path = context.out / f"{phase}.parquet"
    collect(setup.method, setup.loader(phase, ALL_LEVELS), setup.targets, lambda done: None, path)
    return pq.read_table(path, columns=KEPT)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--root", required=True)
    cli.add_argument("--recipe", default="demo")
    cli.add_argument("--ablation", default="none")
    cli.add_argument("--overrides", default="")
    cli.add_argument("--seed", default="")
    cli.add_argument("--stage", default="warmup", choices=("warmup", "joint"))
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    recipe = resolve(args.recipe, args.ablation, args.overrides, args.seed)
    inputs = {"shards": "prepare", "teacher": "teacher", "init": args.stage}
    opened = {name: Artifact.open(stage_url(args.root, stage, recipe)) for name, stage in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        context = Context(recipe, opened, place, place, None, folder, "utilities", lambda text: None)  # type: ignore[arg-type]
        first, second = (measured(context, phase) for phase in ("alsn", "fine"))
    joined = first.join(second, "key", join_type="inner", right_suffix=" again")
    print(f"{len(joined)} pairs\n{'level':6}{'mean':>8}{'again':>8}{'spread':>8}{'r':>7}")
    for level in ALL_LEVELS:
        u = torch.tensor([joined[f"u_{level}{again}"].to_pylist() for again in ("", " again")])
        r = torch.corrcoef(u)[0, 1]
        print(f"{level:6}{u[0].mean():8.3f}{u[1].mean():8.3f}{u[0].std():8.3f}{r:7.2f}")


if __name__ == "__main__":
    main()
