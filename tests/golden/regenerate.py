"""The first losses of the tiny recipe for every method, kept as JSON beside this file.

    python tests/golden/regenerate.py                 says which curves have no file, and writes nothing
    python tests/golden/regenerate.py kd no_alsn      writes these anew; say in the commit why they changed
    python tests/golden/regenerate.py all             writes every one

A curve that moves says that training has changed: an equation, a default, the order of the data, a seed. A file stays
as it is where only last digits differ, which they do from machine to machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import torch

from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose
from cmapkd_core.fingerprints import reads
from cmapkd_core.method_specs import METHODS
from cmapkd_core.recipes import BUDGETS, MAPS, ROWS, STUDENTS, WEIGHTS, resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, teacher, train
from cmapkd_core.stages.artifact import Artifact

FOLDER = Path(__file__).parent
# Ten steps of the joint phase, from the untrained student; without what takes time and moves no loss.
OVERRIDES = "schedule.fine.epochs=2 runtime.shares_every=100 runtime.checkpoint_every=100"
# Rows that are one in recipe tiny: it has ALSN, its student begins at random weights, and of the embedding terms it has
# the task.
SAME = [["alsn", "none"], ["finetune", "scratch"], ["one_stage", "one_stage_embedding"]]
COMMAND = "python tests/golden/regenerate.py"
RELATIVE, ABSOLUTE = 1e-3, 1e-6  # by which a loss of a step may differ
ALL = "all"

Curve = list[dict[str, float]]


def curves() -> tuple[str, ...]:
    """Names of all curves: what every row shares, and the rows; other weights of a loss are no other code.

    Those of a term that there is only with a weight are, and so is one map in place of two.
    """
    rows = (row for row in ROWS if row not in (*WEIGHTS, *MAPS, *STUDENTS, *BUDGETS))
    return ("teacher", "warmup", *rows, *filter(_demands, WEIGHTS), *filter(_has_one_map, MAPS))


def _has_one_map(row: str) -> bool:
    """Whether a row has one map; from the teacher that all rows have, which is the one here."""
    recipe = resolve("tiny", row)
    return recipe.method.one_map and not recipe.teachers


def _demands(row: str) -> bool:
    """Whether a row has a term that its method computes on demand."""
    method = resolve("tiny", row).method
    return any(vars(method.weights)[term] > 0 for term in METHODS[method.name].on_demand)


def file_of(name: str, folder: Path = FOLDER) -> Path:
    """Where a curve is kept."""
    return folder / f"{name}.json"


def read_file(name: str, folder: Path = FOLDER) -> Curve:
    """A curve as it is kept.

    Raises:
        InputError: there is none; names the command that writes it.
    """
    try:
        curve: Curve = json.loads(file_of(name, folder).read_text())
    except FileNotFoundError:
        raise InputError(f"'{name}' has no golden curve yet: {COMMAND} {name}") from None
    return curve


def alike(ours: Curve, theirs: Curve) -> bool:
    """Whether two curves have the same terms at every step, but for their last digits."""
    return len(ours) == len(theirs) and all(
        mine.keys() == other.keys()
        and all(math.isclose(mine[k], other[k], rel_tol=RELATIVE, abs_tol=ABSOLUTE) for k in mine)
        for mine, other in zip(ours, theirs, strict=True)
    )


def write(name: str, curve: Curve, folder: Path = FOLDER) -> str:
    """Keep a curve, unless the one that is kept is alike; says what was done."""
    path = file_of(name, folder)
    new = not path.exists()
    if not new and alike(curve, read_file(name, folder)):
        return f"{path.name}: as it was"
    path.write_text("[\n " + ",\n ".join(json.dumps(step) for step in curve) + "\n]\n")
    return f"{path.name}: written" if new else f"{path.name}: has moved, say why in the commit"


def read_curve(url: str) -> Curve:
    """The raw terms of each step and their weighted sum, of an artifact with a history."""
    points = json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]
    return [{**point["terms"], "total": sum(point["weighted"].values())} for point in points]


def run_curve(name: str, root: str, shards: str, fitted: str) -> Curve:
    """`curve_of` on one thread, with which the curves that are kept were written."""
    torch.set_num_threads(1)
    return curve_of(name, root, shards, fitted)


def curve_of(name: str, root: str, shards: str, fitted: str, precision: str = "") -> Curve:
    """Train what the curve shows: stage teacher, cmapkd's warm-up, or a row.

    Of a row: the phases of its warm-up where they are not cmapkd's, then its joint stage from the untrained student;
    with a teacher of its own where its fit is another.

    Args:
        precision: overrides that move no loss by more than they round.
    """
    if name == "teacher":
        return read_curve(fitted)
    if name == "warmup":
        request = Request("tiny", root, overrides=precision)
        return read_curve(train.run(request, stage="warmup", shards=shards, teacher=fitted))
    request = Request("tiny", root, ablation=name, overrides=f"{OVERRIDES} {precision}".strip())
    if _differs(request, "teacher"):
        fitted = teacher.run(request, shards=shards)
    stages = ("warmup", "joint") if _differs(request, "warmup") else ("joint",)
    urls = [train.run(request, stage=stage, shards=shards, teacher=fitted) for stage in stages]
    return [step for url in urls for step in read_curve(url)]


def _differs(request: Request, stage: str) -> bool:
    """True where the row's stage is another than cmapkd's."""
    return reads(request.resolved(), stage) != reads(resolve("tiny", overrides=request.overrides), stage)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("names", nargs="*", metavar="NAME", help=f"curves to write: rows, teacher, warmup, or {ALL}")
    return cli


def chosen(names: list[str]) -> tuple[str, ...]:
    """The curves that the arguments name.

    Raises:
        InputError: no such curve; names the nearest one.
    """
    if ALL in names:
        return curves()
    for name in names:
        choose("curve", name, dict.fromkeys((*curves(), ALL)), "METHODS or ABLATIONS, and its curve follows from it")
    return tuple(names)


def plan(folder: Path = FOLDER) -> str:
    """What there is to do, without doing it."""
    known = curves()
    missing = [name for name in known if not file_of(name, folder).exists()]
    left = sorted({path.stem for path in folder.glob("*.json")} - {*known})
    lines = [f"{len(known)} curves: {', '.join(known)}"]
    lines += [f"without a file: {COMMAND} {' '.join(missing)}"] if missing else ["each has its file"]
    lines += [f"of no row, to be removed: {', '.join(f'{name}.json' for name in left)}"] if left else []
    return "\n".join([*lines, f"nothing is written; {COMMAND} NAME .. writes these anew, {ALL} every one"])


def main(argv: list[str] | None = None) -> int:
    """Write the curves that are named, or say what there is to do."""
    try:
        names = chosen(parser().parse_args(argv).names)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not names:
        print(plan())
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        shards = prepare.run(Request("tiny", root))
        fitted = teacher.run(Request("tiny", root), shards=shards)
        for name in names:
            print(write(name, run_curve(name, root, shards, fitted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
