"""What can ALSN know of a pair whose levels were not measured? Decides the default of selector.measured.

    python benchmarks/selector.py --root runs/demo --recipe demo

Reads the table that a finished warm-up wrote below --root. A quarter of its pairs is held out. ALSN learns from growing
numbers of the others, as stage alsn does (its learning rate and batch, AdamW), for at least as many steps as the recipe
has. Weights are held to those that utilities call for, as in utilities.py. Of pairs that were held out: at ALSN's best
step, which flatters it, and at its last; of its own pairs: at its last. Beside them are equal weights, and the best
weights that are the same for all pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.utilities import EMBEDDINGS, called_for, distance, of_a_run
from cmapkd_core.config import ALL_LEVELS, Recipe
from cmapkd_core.methods.policy_fit import policy_loss
from cmapkd_core.models.selector import ALSN
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.statistics import SAMPLE_STATS

SHARES = (1 / 16, 1 / 4, 1.0)  # of the pairs that are not held out
STEPS = 100  # at least
EVERY = 5  # steps between two looks at the pairs that are held out

Rows = dict[str, Tensor]


def rows_of(table: pa.Table) -> Rows:
    """Columns teacher_image, teacher_text [n,E], u, d [n,8] of a table of samples."""
    columns = {name: np.stack(table[name].to_pylist()) for name in EMBEDDINGS}
    columns |= {name: np.stack([table[f"{name}_{level}"].to_numpy() for level in ALL_LEVELS], 1) for name in ("u", "d")}
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in columns.items()}


def some(rows: Rows, which: Tensor) -> Rows:
    """The rows of `which`, long [m]."""
    return {name: values[which] for name, values in rows.items()}


def learned(recipe: Recipe, own: Rows, held_out: Rows) -> Iterator[tuple[float, float]]:
    """Distances of ALSN on the pairs that were held out, and on its own, every EVERY steps."""
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    selector = ALSN(own["teacher_image"].shape[1], own["teacher_text"].shape[1], recipe.selector)
    phase, batch = recipe.schedule.alsn, min(recipe.optim.batch, len(own["u"]))
    optimiser = torch.optim.AdamW(selector.parameters(), phase.lr.selector, weight_decay=recipe.optim.weight_decay)
    for step in range(1, max(STEPS, phase.epochs * (len(own["u"]) // batch)) + 1):
        selector.train()
        chosen = torch.randint(len(own["u"]), (batch,), generator=generator)
        loss = policy_loss(selector, some(own, chosen), ALL_LEVELS, recipe.selector)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % EVERY == 0:
            selector.eval()
            with torch.no_grad():
                weights = [
                    selector(rows["teacher_image"], rows["teacher_text"], ALL_LEVELS) for rows in (held_out, own)
                ]
            targets = (called_for(rows["u"], recipe.selector.utility_tau) for rows in (held_out, own))
            first, second = map(distance, weights, targets)
            yield first, second


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return of_a_run(__doc__)


def main() -> None:
    """Learn and print."""
    args = parser().parse_args()
    recipe = resolve(args.recipe, "alsn", args.overrides, args.seed, args.data)
    rows = rows_of(pq.read_table(Artifact.open(stage_url(args.root, "warmup", recipe)).fetch(SAMPLE_STATS)))
    order = torch.randperm(len(rows["u"]), generator=torch.Generator().manual_seed(0))
    held_out, rest = (some(rows, order[part]) for part in (slice(len(order) // 4), slice(len(order) // 4, None)))
    target = called_for(held_out["u"], recipe.selector.utility_tau)
    vision, text = (q.mean(0).expand(len(target[0]), 4) for q in called_for(rest["u"], recipe.selector.utility_tau))
    quarter = torch.full_like(target[0], 0.25)
    print(f"{len(held_out['u'])} pairs held out\n| weights | held out, at best | held out, at last | own pairs |")
    print("|---|---|---|---|")
    print(f"| equal | {distance((quarter, quarter), target):.3f} | | |")
    print(f"| the same for all, fitted | {distance((vision, text), target):.3f} | | |")
    for share in SHARES:
        count = max(1, round(share * len(rest["u"])))
        path = [*learned(recipe, some(rest, torch.arange(count)), held_out)]
        best, (last, own) = min(first for first, _ in path), path[-1]
        print(f"| ALSN, {count} pairs measured | {best:.3f} | {last:.3f} | {own:.3f} |")


if __name__ == "__main__":
    main()
