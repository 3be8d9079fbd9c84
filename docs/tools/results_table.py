"""The short table of a suite as the documents have it: `python docs/tools/results_table.py SUITE.json`.

SUITE.json lies in the report's folder of a suite. Printed are Markdown's lines: the means of three numbers over the
seeds, and how far each row is from the full method, with both intervals. Rows come in order of the geometric mean rank,
the worst first; a suite of budgets keeps its own order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cmapkd_core.report.significance import LEVEL, interval

COLUMNS = {
    "retrieval/mean_recall": "mean recall",
    "retrieval/geometric_rank": "rank",
    "zeroshot/top1": "zero-shot",
}
RANK = "retrieval/geometric_rank"


def mean(values: dict[str, float]) -> str:
    """The mean over the seeds with half the width of its interval; nothing of a number that was not measured."""
    if not values:
        return ""
    one = interval([*values.values()])
    return f"{one.mean:.1f}" if one.half is None else f"{one.mean:.1f} ± {one.half:.1f}"


def difference(one: dict[str, Any] | None) -> str:
    """As `**+1.2** † [+0.8 to +1.6] (+0.5 to +1.9)`: bold without zero in [ ], a dagger by Holm's rule."""
    if not one:
        return ""
    number = f"{one['mean']:+.1f}"
    parts = [f"**{number}**" if one["excludes_zero"] else number]
    if one["p_holm"] is not None and one["p_holm"] < 1 - LEVEL:
        parts.append("†")
    if one["low"] is not None:
        parts.append(f"[{one['low']:+.1f} to {one['high']:+.1f}]")
    if wider := one["seeds_and_concepts"]:
        parts.append(f"({wider['low']:+.1f} to {wider['high']:+.1f})")
    return " ".join(parts)


def table(suite: dict[str, Any]) -> str:
    """The lines, with one below that counts the comparisons."""
    rows = suite["rows"]
    if not any(row["name"].endswith("x") for row in rows):
        rows = sorted(rows, key=lambda row: -interval([*row["values"][RANK].values()]).mean)
    heads = ["row", *COLUMNS.values(), *(f"{name} minus full" for name in COLUMNS.values())]
    lines = [heads, ["---"] * len(heads)]
    for row in (suite["teacher"], *rows):
        means = [mean(row["values"].get(key, {})) for key in COLUMNS]
        differences = [difference(suite["differences"].get(row["name"], {}).get(key)) for key in COLUMNS]
        lines.append([row["label"], *means, *differences])
    made = [one for row in suite["differences"].values() for one in row.values() if one["p"] is not None]
    numbers = (
        f"Seeds: {len(suite['seeds'])}. Comparisons in the whole suite: {len(made)}, {sum(map(marked, made))} with †."
    )
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", numbers])


def marked(one: dict[str, Any]) -> bool:
    """Whether all comparisons of the suite together tell this one apart."""
    return bool(one["p_holm"] < 1 - LEVEL)


def main() -> None:
    """Print the table of the file that is named."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("suite", type=Path, metavar="SUITE.json")
    print(table(json.loads(cli.parse_args().suite.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
