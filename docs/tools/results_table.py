"""The short tables of suites that the documents show, made from the suites' own results.

    python docs/tools/results_table.py SUITE.json               print the table
    python docs/tools/results_table.py SUITE.json --keep NAME   keep what it needs as docs/results/NAME.json
    python docs/tools/results_table.py                          write all kept tables into the documents

SUITE.json lies in the report's folder of a suite. A table has the means of three numbers over the seeds, and how far
each row is from the full method, with both intervals. Rows that are not measured yet are left out, but for those that
another kept suite has (kept.py), so that a table can be measured in parts and on several machines. Rows come in order
of their updates, and of the geometric mean rank, the worst first. In a document a table stands below
the line <!-- results/NAME.json -->; below <!-- results/NAME.json: weights --> those rows that differ by their weights
of levels alone, minus equal weights.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kept
from kept import AGAINST_EQUAL, AGAINST_FULL

from cmapkd_core.report.read.suite_inputs import MEAN, RANK, times
from cmapkd_core.report.significance import interval, signed, told_apart

DOCS = Path(__file__).resolve().parents[1]
COLUMNS = {
    MEAN: "mean recall",
    RANK: "rank",
    "zeroshot/top1": "zero-shot",
}
WEIGHTS = "weights"
PLACE = re.compile(
    rf"^<!-- (results/[\w.-]+\.json)(?:: ({WEIGHTS}))? -->\n(?:\n(?:\|.*\n)+(?:\nSeeds: .*\n)?)?", re.MULTILINE
)


def mean(values: dict[str, float]) -> str:
    """The mean over the seeds with half the width of its interval; nothing of a number that was not measured."""
    if not values:
        return ""
    one = interval([*values.values()])
    return f"{one.mean:.1f}" if one.half is None else f"{one.mean:.1f} ± {one.half:.1f}"


def difference(one: dict[str, Any] | None, seeds: int = 0) -> str:
    """As `**+1.2** † [+0.8 to +1.6] (+0.5 to +1.9)`: bold without zero in [ ], a dagger by Holm's rule.

    Args:
        seeds: how many its row has; where fewer are compared, that is said.
    """
    if not one:
        return ""
    number = signed(one["mean"])
    parts = [f"**{number}**" if one["excludes_zero"] else number]
    if told_apart(one["p_holm"], one["n"]):
        parts.append("†")
    if one["low"] is not None:
        parts.append(f"[{signed(one['low'])} to {signed(one['high'])}]")
    if wider := one["seeds_and_concepts"]:
        parts.append(f"({signed(wider['low'])} to {signed(wider['high'])})")
    if one["n"] < seeds:
        parts.append(f"n = {one['n']}")
    return " ".join(parts)


def table(suite: dict[str, Any]) -> str:
    """The lines, with one below that counts the comparisons."""
    rows = sorted(suite["rows"], key=lambda row: (times(row["name"]), -interval([*row["values"][RANK].values()]).mean))
    heads = ["row", *COLUMNS.values(), *(f"{name} minus full" for name in COLUMNS.values())]
    lines = [heads, ["---"] * len(heads)]
    lines.append(["Teacher", *teacher_means(suite), *[""] * len(COLUMNS)])
    for row in rows:
        means = [mean(row["values"].get(key, {})) for key in COLUMNS]
        changes = suite["differences"].get(row["name"], {})
        differences = [difference(changes.get(key), len(row["values"].get(key, {}))) for key in COLUMNS]
        lines.append([_label(row, suite), *means, *differences])
    return _written(lines, suite, AGAINST_FULL)


def teacher_means(suite: dict[str, Any]) -> list[str]:
    """The numbers of the teacher; of several fits those of the first, which most rows had."""
    return [f"{suite['teachers'][0][key]:.1f}" if key in suite["teachers"][0] else "" for key in COLUMNS]


def _label(row: dict[str, Any], suite: dict[str, Any]) -> str:
    """A row's name, with the number of its seeds where it has fewer than others."""
    n = len(row["values"].get(RANK, {}))
    return row["label"] if n == len(suite["seeds"]) else f"{row['label']} ({n} seed{'s' if n > 1 else ''})"


def _written(lines: list[list[str]], suite: dict[str, Any], differences: str, kind: str = "") -> str:
    """A table's lines, with one below that counts the comparisons of a kind."""
    words = [f"Seeds: {len(suite['seeds'])}."]
    words.append(
        f"Comparisons{kind} over several seeds so far, all counted for †: {suite['comparisons'][differences]}."
    )
    if (fits := len(suite["teachers"])) > 1:
        words.append(f"Measured with {fits} fits of the teacher; each row is compared with the full method of its own.")
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", " ".join(words)])


def weights(suite: dict[str, Any]) -> str:
    """The lines of the rows that differ by their weights of levels alone, minus equal weights."""
    labels = {row["name"]: row["label"] for row in suite["rows"]}
    heads = ["weights of levels", *(f"{name} minus equal weights" for name in COLUMNS.values())]
    lines = [heads, ["---"] * len(heads)]
    for name, row in suite[AGAINST_EQUAL].items():
        lines.append([labels[name], *(difference(row.get(key)) for key in COLUMNS)])
    return _written(lines, suite, AGAINST_EQUAL, " with equal weights")


def filled(text: str) -> str:
    """A document with the table of each kept suite below its line."""

    def place(found: re.Match[str]) -> str:
        write = weights if found[2] else table
        return f"{found[0].splitlines()[0]}\n\n{write(json.loads((DOCS / found[1]).read_text(encoding='utf-8')))}\n"

    return PLACE.sub(place, text)


def documents() -> Iterator[Path]:
    """Those that have tables of kept suites."""
    return (path for path in sorted(DOCS.rglob("*.md")) if PLACE.search(path.read_text(encoding="utf-8")))


def main() -> None:
    """Print, keep or write."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("suite", type=Path, nargs="?", metavar="SUITE.json")
    cli.add_argument("--keep", default="", metavar="NAME")
    args = cli.parse_args()
    if args.suite:
        suite = kept.of_report(args.suite)
        if args.keep:
            suite = kept.joined(suite, map(kept.load, sorted((DOCS / "results").glob("*.json"))))
            kept.write(suite, DOCS / "results" / f"{args.keep}.json")
        print(table(kept.as_json(suite)))
    else:
        for path in documents():
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
