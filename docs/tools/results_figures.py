"""The figures of the suites that docs/results keeps: `python docs/tools/results_figures.py [NAME ..]`.

Writes docs/figures/results/NAME_rank.png, every row minus the full method; of a suite with several numbers of updates
NAME_updates.png and NAME_updates_minus_full.png, where a row is compared with the full method of as many.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmapkd_core.recipes import BASELINES, FULL, REFERENCE
from cmapkd_core.report.figures.by_updates import draw_by_updates
from cmapkd_core.report.figures.comparisons import draw_differences
from cmapkd_core.report.figures.style import PRINT, Drawing, painted
from cmapkd_core.report.read.suite_inputs import FULL_METHOD, RANK, at_least, label, times
from cmapkd_core.report.render.drawings import DPI
from cmapkd_core.report.resampling import Ends
from cmapkd_core.report.row_differences import Difference
from cmapkd_core.report.sections.updates_section import AT_ONCE, UNITS
from cmapkd_core.report.significance import Interval, interval

DOCS = Path(__file__).resolve().parents[1]
TITLE, UNIT = UNITS[RANK]
UPDATES = 150  # of recipe bench
SCRATCH = "scratch"


def difference(one: Mapping[str, Any]) -> Difference:
    """A difference as a kept suite has it."""
    wider = one["seeds_and_concepts"]
    half = None if one["high"] is None else one["high"] - one["mean"]
    return Difference(one["mean"], half, one["n"], Ends(**wider) if wider else None)


def ranks(suite: Mapping[str, Any]) -> dict[str, Difference]:
    """Row -> its difference to the full method with as many updates and captions."""
    return {name: difference(row[RANK]) for name, row in suite["differences"].items() if RANK in row}


def drawings(suite: Mapping[str, Any]) -> Iterator[tuple[str, Drawing]]:
    """What a file is called after the suite's name, and its figure."""
    labels = {row["name"]: row["label"] for row in suite["rows"]}
    changes = ranks(suite)
    if len({times(name) for name in labels}) == 1:
        # Random towers are so far behind that the others would lie on each other.
        named = {labels[name]: one for name, one in changes.items() if name != SCRATCH}
        yield "rank", draw_differences(f"{TITLE}, better to the right", named, FULL_METHOD, UNIT)
        return
    means = {row["name"]: interval([*row["values"][RANK].values()]) for row in suite["rows"]}
    methods = _by_updates({name: one for name, one in means.items() if at_least(name) in {FULL, *BASELINES}})
    yield "updates", draw_by_updates(f"{TITLE}, better upwards", methods, UNIT)
    # Fine-tuning is so far behind that the others would lie on each other.
    against = _by_updates({name: one for name, one in changes.items() if at_least(name) != REFERENCE})
    yield "updates_minus_full", draw_by_updates(f"{TITLE} minus {FULL_METHOD}", against, UNIT, zero=True)


def _by_updates(rows: Mapping[str, Interval]) -> dict[str, dict[int, Interval]]:
    """Label -> number of updates -> interval, of the AT_ONCE rows that have most numbers, of as many the first ones."""
    methods: dict[str, dict[int, Interval]] = {}
    for name in sorted(rows, key=times):
        methods.setdefault(label(at_least(name)), {})[UPDATES * times(name)] = rows[name]
    several = [(name, of) for name, of in methods.items() if len(of) > 1]
    return dict(sorted(several, key=lambda one: -len(one[1]))[:AT_ONCE])


def main() -> None:
    """Draw those that are named, or all."""
    folder = DOCS / "figures/results"
    folder.mkdir(exist_ok=True)
    for path in sorted((DOCS / "results").glob("*.json")):
        if path.stem in (sys.argv[1:] or [path.stem]):
            for kind, drawing in drawings(json.loads(path.read_text(encoding="utf-8"))):
                with painted(drawing, PRINT) as figure:
                    figure.savefig(folder / f"{path.stem}_{kind}.png", dpi=DPI, facecolor=PRINT.blank)


if __name__ == "__main__":
    main()
