"""A suite's report as one HTML page, as Markdown and as lines of text; the numbers are suite.py's."""

from __future__ import annotations

from markupsafe import Markup

from cmapkd_core.recipes import FULL
from cmapkd_core.report import figures, suite
from cmapkd_core.report.markdown import grid
from cmapkd_core.report.page import fill, number
from cmapkd_core.report.statistics import LEVEL, Interval
from cmapkd_core.report.suite import Cost, SuiteInputs, SuiteRow, SuiteTable
from cmapkd_core.report.table import Column

TEMPLATE = "suite.html.j2"
SHORT = {"Image to text": "i2t", "Text to image": "t2i", "Both ways": "", "Zero-shot": "zero-shot"}
NO_SPREAD = (
    "No spread: every seed gave the same value, as counts of few queries do; that is no interval, and nothing follows."
)
PRINTED = ("retrieval/i2t/R@1", "retrieval/t2i/R@1", "retrieval/mean", "zeroshot/top1")


def render(inputs: SuiteInputs, table: SuiteTable) -> str:
    """The page as text."""
    return fill(
        TEMPLATE,
        inputs=inputs,
        table=table,
        full=suite.LABELS[FULL],
        percent=f"{100 * LEVEL:.0f} %",
        heads=heads(table.columns),
        rows=[*table.rows, table.teacher, table.before],
        cell=cell,
        ends=ends,
        notes=notes(inputs, table),
        figures=[Markup(figure) for figure in plots(table)],
        costs=suite.costs(inputs, table),
        base=suite.BASE if suite.BASE in inputs.rows else suite.LABELS[FULL],
        changes={row: suite.changes(row) for row in inputs.rows},
        updates=updates,
        no_spread=NO_SPREAD if _without_spread(table) else "",
        shares=suite.shares(inputs),
        expected=suite.expected(inputs),
        urls=suite.urls(inputs),
        labels={row.name: row.label for row in table.rows},
    )


def heads(columns: list[Column]) -> list[tuple[str, int]]:
    """Group headings of the table and how many columns each spans."""
    groups = dict.fromkeys(column.group for column in columns)
    return [(group, sum(column.group == group for column in columns)) for group in groups]


def cell(row: SuiteRow, column: Column) -> str:
    """`31.2 ± 1.4`; the mean alone of one seed, a dash for nothing."""
    return _with_half(row.interval(column.key))


def _with_half(found: Interval | None) -> str:
    if found is None:
        return "-"
    return number(found.mean, 1) if found.half is None else f"{found.mean:.1f} ± {found.half:.1f}"


def differs(found: Interval | None) -> str:
    """`-1.20 [-2.03 to -0.37]`; the difference alone of one seed, a dash for nothing."""
    return "-" if found is None else f"{found.mean:+.2f} {ends(found)}".strip()


def ends(found: Interval) -> str:
    """`[-2.03 to -0.37]`, `[no spread]` where all seeds gave the same value, nothing of one seed."""
    if found.half is None:
        return ""
    return f"[{found.low:+.2f} to {found.high:+.2f}]" if found.half else "[no spread]"


def notes(inputs: SuiteInputs, table: SuiteTable) -> list[str]:
    """What is missing, what one seed cannot say, and a budget that is not the same for all."""
    said = []
    if max((len(row.seeds) for row in table.rows), default=0) == 1:
        said.append(
            "One seed: there is no interval, and a difference between two rows is one between two runs, which another "
            "seed may turn round. Run the suite with more seeds before anything is concluded."
        )
    for row in (*table.rows, table.teacher, table.before):
        if row.missing:
            seeds = f", seed {', '.join(row.missing)}," if any(row.missing) else ""
            urls = " ".join(url or "(not given)" for url in row.missing.values())
            said.append(f"Missing: {row.label}{seeds} is not measured yet: {urls}")
    if FULL in inputs.rows and not table.row(FULL).seeds:
        said.append("The full method was not measured, so no difference to it can be given.")
    budgets = {budget for cost in suite.costs(inputs, table) for budget in cost.updates}
    if len(budgets) > 1:
        said.append(
            f"The rows did not train for the same number of student updates ({', '.join(map(str, sorted(budgets)))}): "
            "they are not compared under one budget."
        )
    return said


def _without_spread(table: SuiteTable) -> bool:
    return any(found.half == 0 for row in table.differences.values() for found in row.values())


def plots(table: SuiteTable) -> list[str]:
    """One panel of differences for each plotted number that was measured."""
    panels = []
    for key, title in suite.PLOTTED.items():
        found = {table.row(name).label: row[key] for name, row in table.differences.items() if key in row}
        if found:
            panels.append(figures.differences(title, found, suite.LABELS[FULL]))
    return panels


def updates(cost: Cost) -> str:
    """The student updates of a row's seeds."""
    return ", ".join(map(str, cost.updates)) or "-"


def text(table: SuiteTable) -> str:
    """The small table as aligned lines: R@1 both ways, the mean of the recalls and zero-shot top-1."""
    columns = [column for column in table.columns if column.key in PRINTED]
    head = ["", *(f"{SHORT[column.group]} {column.label}".strip() for column in columns), "n"]
    rows = [[r.label, *(cell(r, c) for c in columns), str(len(r.seeds))] for r in (*table.rows, table.before)]
    rows.append([table.teacher.label, *(cell(table.teacher, column) for column in columns), ""])
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in (head, *rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(inputs: SuiteInputs, table: SuiteTable) -> str:
    """Both tables, costs, gradient shares and deviations, for the KFP UI."""
    seeds = f"{len(inputs.seeds)} seed{'s' if len(inputs.seeds) > 1 else ''}"
    titles = [f"{SHORT[column.group]} {column.label}".strip() for column in table.columns]
    rows = [[r.label, *(cell(r, c) for c in table.columns), str(len(r.seeds))] for r in _every(table)]
    rows.append(["chance", *(c.text(table.chance.values.get(c.key)) for c in table.columns), ""])
    parts = [
        f"# {inputs.run}",
        f"suite {inputs.suite}, recipe {inputs.recipe.name}, {seeds}, overrides: {inputs.overrides or 'none'}",
        "\n".join(f"- {note}" for note in notes(inputs, table)),
        "## Results, % (mean ± half of the 95 % t-interval over seeds)",
        grid(("", *titles, "n"), rows),
        f"## Differences to the {suite.LABELS[FULL]}, points [95 % interval], seed by seed",
        _differences(table, titles),
        "## What each row takes",
        _costs(inputs, table),
        "## Share of the gradient in the last phase, %",
        "\n".join(f"- {row}: {_shares(terms)}" for row, terms in suite.shares(inputs).items()),
        "## What deviates from the published method",
        "\n".join(f"- {cost.row} ({cost.method}): {cost.deviations}" for cost in suite.costs(inputs, table)),
        f"{inputs.executions} stage executions; {inputs.naive} if every row and seed were a run of its own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _every(table: SuiteTable) -> list[SuiteRow]:
    return [*table.rows, table.teacher, table.before]


def _differences(table: SuiteTable, titles: list[str]) -> str:
    if not table.differences:
        return "No row to compare."
    keys = [column.key for column in table.columns]
    rows = []
    for name, row in table.differences.items():
        found = [row.get(key) for key in keys]
        cells = [f"**{differs(one)}**" if one and one.excludes_zero else differs(one) for one in found]
        rows.append([table.row(name).label, *cells, str(max((one.n for one in row.values()), default=0))])
    return grid(("", *titles, "n"), rows) + "\n\nBold: the interval excludes zero. " + NO_SPREAD


def _costs(inputs: SuiteInputs, table: SuiteTable) -> str:
    head = ("", "method", "inference, M", "trained, M", "student updates", "training, s", "step, relative")
    rows = [
        [
            *(cost.row, cost.method, _millions(cost.inference), _millions(cost.trained), updates(cost)),
            *(number(cost.seconds, 0), number(cost.relative)),
        ]
        for cost in suite.costs(inputs, table)
    ]
    return grid(head, rows)


def _millions(count: float | None) -> str:
    return number(None if count is None else count / 1e6)


def _shares(terms: dict[str, float]) -> str:
    return ", ".join(f"{term} {share:.1f}" for term, share in terms.items()) or "not logged"


def facts(table: SuiteTable) -> dict[str, float]:
    """The small numbers that the KFP UI shows: every row's mean by `row/key`."""
    every = ((row, column.key, row.interval(column.key)) for row in table.rows for column in table.columns)
    return {f"{row.name}/{key}": found.mean for row, key, found in every if found}
