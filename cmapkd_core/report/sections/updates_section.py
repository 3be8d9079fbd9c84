"""A suite's numbers by how many updates each row trained for, against the full method with as many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cmapkd_core.recipes import BASELINES, FULL
from cmapkd_core.report.figures.by_updates import Series, draw_by_updates
from cmapkd_core.report.figures.style import Drawing
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.read.suite_inputs import FULL_METHOD, MEAN, RANK, SuiteInputs, at_least, label
from cmapkd_core.report.row_differences import differences
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.significance import LEVEL, over_seeds
from cmapkd_core.report.tables.costs import row_costs

UNITS = {RANK: ("Geometric mean rank", "ranks"), MEAN: ("Mean recall", "%")}
AT_ONCE = 4  # series of a panel
CAPTION = (
    "Each row at its number of updates. First the full method and the baselines as they are, with t-intervals over the "
    f"seeds; then each row minus the full method with as many updates. Whiskers: {100 * LEVEL:.0f} % intervals, the "
    "thick one over the seeds (t, paired), the thin one, where it is known, over seeds and test concepts. A hollow "
    "mark has one seed. The numbers are those of the table of differences."
)


def updates_section(inputs: SuiteInputs, results: Results) -> Section:
    """Panels of the rows that a suite has with several numbers of updates; nothing where it has none."""
    methods = _methods(inputs, results)
    several = {name: rows for name, rows in methods.items() if len(rows) > 1}
    if not several:
        return Section()
    drawings = tuple(drawing for key in UNITS for drawing in _panels(results, key, several))
    return Section(CAPTION, drawings, wide=True)


def _methods(inputs: SuiteInputs, results: Results) -> dict[str, dict[int, str]]:
    """Row with the recipe's own updates -> number of updates -> the row with as many, where it is known; rising."""
    methods: dict[str, dict[int, str]] = {}
    for cost in sorted(row_costs(inputs, results), key=lambda cost: cost.updates):
        if len(cost.updates) == 1:
            methods.setdefault(at_least(cost.row), {})[cost.updates[0]] = cost.row
    return methods


def _panels(results: Results, key: str, methods: Mapping[str, Mapping[int, str]]) -> Iterator[Drawing]:
    name, unit = UNITS[key]
    changes = differences(results)
    absolute = {
        method: {n: one for n, row in rows.items() if (one := over_seeds(results.row(row), key))}
        for method, rows in methods.items()
        if method == FULL or method in BASELINES
    }
    yield from _some(f"{name}, better upwards", absolute, unit)
    against = {
        method: {n: changes[row][key] for n, row in rows.items() if key in changes.get(row, {})}
        for method, rows in methods.items()
    }
    for kind, of_baselines in (("baselines", True), ("variants", False)):
        chosen = {method: series for method, series in against.items() if (method in BASELINES) == of_baselines}
        yield from _some(f"{name}: {kind} minus {FULL_METHOD}", chosen, "points" if unit == "%" else unit, zero=True)


def _some(title: str, series: Mapping[str, Series], unit: str, zero: bool = False) -> Iterator[Drawing]:
    """Panels of at most AT_ONCE series; the full method, where it is one of them, is the first of each."""
    known = {name: of for name, of in series.items() if of}
    always = {name: known.pop(name) for name in (FULL,) if name in known}
    others, room = [*known.items()], AT_ONCE - len(always)
    for start in range(0, max(len(others), len(always)), room):
        panel = {**always, **dict(others[start : start + room])}
        yield draw_by_updates(title, {label(name): of for name, of in panel.items()}, unit, zero)
