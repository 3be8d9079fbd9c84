"""Where every recipe's artifacts lie: the key (the place below a root) of each recipe x row x stage, in keys.tsv.

    python tests/golden/keys.py            says which keys have moved, and writes nothing
    python tests/golden/keys.py --write    writes it anew; say in the commit which artifacts move, and why they must

A key that moves trains everything below it again on every root that there is.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import sys
from pathlib import Path

from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import STAGE_PHASES, Recipe
from cmapkd_core.places import RECIPE_STUDENT, evaluation_url, export_url, levels_url, stage_url
from cmapkd_core.recipes import RECIPES, ROWS, resolve

FILE = Path(__file__).parent / "keys.tsv"
ROOT, NAMED = "s3://golden/keys", "ViT-B-32"  # evaluations of a model that is an artifact, and of one that is a name
TRAINED = ("prepare", "teacher", *STAGE_PHASES)
WITH_STUDENT, UNTRAINED = "{task}", "{task} before"
COLUMNS = (
    *("recipe", "row", *TRAINED, "levels", "export"),
    *(WITH_STUDENT.format(task=task) for task in EVALUATIONS),
    *(UNTRAINED.format(task=task) for task in EVALUATIONS),
    "efficiency named",
)

Keys = dict[tuple[str, str], dict[str, str]]  # (recipe, row) -> stage -> key


def keys_of(recipe: Recipe) -> dict[str, str]:
    """The key of each stage of one recipe; an evaluation's is of one task."""
    urls = {stage: stage_url(ROOT, stage, recipe) for stage in TRAINED}
    shards, student = urls["prepare"], urls["joint"]
    urls["levels"] = levels_url(ROOT, recipe)
    urls["export"] = export_url(ROOT, student, shards, recipe)
    for task in EVALUATIONS:
        urls[WITH_STUDENT.format(task=task)] = evaluation_url(ROOT, student, shards, recipe, task)
        urls[UNTRAINED.format(task=task)] = evaluation_url(ROOT, RECIPE_STUDENT, shards, recipe, task)
    urls["efficiency named"] = evaluation_url(ROOT, NAMED, "", recipe, "efficiency")
    return {stage: "/".join(url.rsplit("/", 2)[1:]) for stage, url in urls.items()}


@functools.cache
def now() -> Keys:
    """The keys that today's code gives."""
    return {(recipe, row): keys_of(resolve(recipe, row)) for recipe in RECIPES for row in ROWS}


def kept() -> Keys:
    """The keys of the golden file; {} where there is none."""
    if not FILE.exists():
        return {}
    rows = csv.DictReader(io.StringIO(FILE.read_text()), delimiter="\t")
    return {(row.pop("recipe"), row.pop("row")): row for row in rows}


def moved(before: Keys, after: Keys) -> list[str]:
    """`RECIPE ROW STAGE: before -> after` of every key that differs."""
    return [
        f"{' '.join(cell)} {stage}: {before.get(cell, {}).get(stage)} -> {after.get(cell, {}).get(stage)}"
        for cell in dict.fromkeys((*before, *after))
        for stage in dict.fromkeys((*before.get(cell, {}), *after.get(cell, {})))
        if before.get(cell, {}).get(stage) != after.get(cell, {}).get(stage)
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--write", action="store_true", help="write the golden file anew")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Say what moved, and write the golden file where that is asked for."""
    args, before, after = parser().parse_args(argv), kept(), now()
    print("\n".join(moved(before, after)) or "no key has moved")
    if args.write:
        with open(FILE, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
            table.writeheader()
            cells = [cell for cell in dict.fromkeys((*before, *after)) if cell in after]  # what is new comes last
            table.writerows({"recipe": cell[0], "row": cell[1], **after[cell]} for cell in cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
