"""Do the utilities that ALSN learns from repeat, and does it know them? Measured twice on the same pairs.

    python benchmarks/utilities.py --root runs/demo --recipe demo --stage joint

Reads finished artifacts of a run (prepare, teacher and the stage below --root). The two measurements see other batches
and crops. For each level: the mean of its utilities, their spread over the pairs, and the correlation r of the two.
r near 0 would leave a selector nothing to learn.

Then how far weights are from those that a pair's utilities call for: KL(softmax(u / tau_u) || w) in nats, of both
modalities together, mean over the pairs, in the second measurement: ALSN has learned from the batches of the first.
Equal weights know nothing; ALSN's are those of the stage's selector; the first measurement's show how much of one is
noise.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.losses.policy import policy
from cmapkd_core.models.selector import Selector, Uniform, restrict
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import build_method
from cmapkd_core.stages.statistics import collect
from cmapkd_core.stages.training import TrainingSetup

UTILITIES = [f"u_{level}" for level in ALL_LEVELS]
EMBEDDINGS = ["teacher_image", "teacher_text"]


def measured(context: Context, setup: TrainingSetup, phase: str) -> pa.Table:
    """Utilities in the batches and crops of a phase's stream, and the teacher's embeddings."""
    path = context.out / f"{phase}.parquet"
    collect(setup.method, setup.loader(phase, ALL_LEVELS), setup.targets, lambda done: None, path)
    return pq.read_table(path, columns=["key", *UTILITIES, *EMBEDDINGS])


def utilities(rows: pa.Table) -> torch.Tensor:
    """[n,8]: P2..P5, then L1..L4."""
    return torch.tensor([rows[name].to_pylist() for name in UTILITIES]).T


def called_for(u: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights [n,4] of each modality that utilities [n,8] call for."""
    vision, text = (u / tau).split(4, dim=1)
    return restrict(vision, VISION_LEVELS, ALL_LEVELS), restrict(text, TEXT_LEVELS, ALL_LEVELS)


def chosen(selector: Selector, rows: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """A selector's weights [n,4] of each modality."""
    image, text = (torch.tensor(rows[name].to_pylist()) for name in EMBEDDINGS)
    with torch.no_grad():
        return selector(image, text, ALL_LEVELS)


def distance(weights: tuple[torch.Tensor, torch.Tensor], target: tuple[torch.Tensor, torch.Tensor]) -> float:
    """KL(target || weights) of both modalities together."""
    return sum(float(policy(w, q, uniform=0.0)) for w, q in zip(weights, target, strict=True))


def of_a_run(words: str) -> argparse.ArgumentParser:
    """A command line that names a run; `words` describe it."""
    cli = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--root", required=True)
    cli.add_argument("--recipe", default="demo")
    cli.add_argument("--overrides", default="")
    cli.add_argument("--seed", default="")
    cli.add_argument("--data", default="")
    return cli


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = of_a_run(__doc__)
    cli.add_argument("--ablation", default="none")
    cli.add_argument("--stage", default="warmup", choices=("warmup", "alsn", "joint"))
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    recipe = resolve(args.recipe, args.ablation, args.overrides, args.seed, args.data)
    inputs = {"shards": "prepare", "teacher": "teacher", "init": args.stage}
    opened = {name: Artifact.open(stage_url(args.root, stage, recipe)) for name, stage in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        context = Context(recipe, opened, place, place, None, folder, "utilities", lambda text: None)  # type: ignore[arg-type]
        setup = TrainingSetup(context, "joint", *build_method(context.recipe, context))
        first, second = (measured(context, setup, phase) for phase in ("alsn", "fine"))
    place_of = {key: place for place, key in enumerate(second["key"].to_pylist())}
    places = [place_of.get(key) for key in first["key"].to_pylist()]  # an epoch leaves its last pairs out
    rows, rows_again = (
        first.filter([place is not None for place in places]),
        second.take([place for place in places if place is not None]),
    )
    print(f"{len(rows)} pairs\n{'level':6}{'mean':>8}{'again':>8}{'spread':>8}{'r':>7}")
    u, again = utilities(rows), utilities(rows_again)
    for i, level in enumerate(ALL_LEVELS):
        r = torch.corrcoef(torch.stack((u[:, i], again[:, i])))[0, 1]
        print(f"{level:6}{u[:, i].mean():8.3f}{again[:, i].mean():8.3f}{u[:, i].std():8.3f}{r:7.2f}")
    other, target = (called_for(each, recipe.selector.utility_tau) for each in (u, again))
    selector = setup.method.get_submodule("selector")
    known = {"equal": chosen(Uniform(), rows), "ALSN's": chosen(selector, rows), "the first": other}  # type: ignore[arg-type]
    print(
        "distance to the weights that utilities call for: "
        + ", ".join(f"{name} {distance(weights, target):.3f}" for name, weights in known.items())
    )


if __name__ == "__main__":
    main()
