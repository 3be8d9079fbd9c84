"""Results in the documents: short tables of suites, and numbers in sentences, are those that docs/results keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from docs_tools import tool

REPOSITORY = Path(__file__).parents[1]
MEASURED = re.compile(r"\d+\.\d ± \d+\.\d")  # a mean with its interval
ENDS = re.compile(r"([\[(])([+-]?\d+\.\d)(?: to |, )([+-]?\d+\.\d)[\])]")  # [over seeds] or (and concepts)


def kept_results() -> list[dict[str, Any]]:
    """The suites whose numbers the documents show."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((REPOSITORY / "docs/results").glob("*.json"))
    ]


def test_the_short_table_of_a_suite_has_both_intervals_and_counts_all_comparisons() -> None:
    def row(name: str, ranks: list[float]) -> dict[str, object]:
        values = {str(seed): rank for seed, rank in enumerate(ranks)}
        return {"name": name, "label": name.upper(), "values": {"retrieval/geometric_rank": values}}

    told = {"mean": 3.0, "low": 2.0, "high": 4.0, "excludes_zero": True, "p": 0.01, "p_holm": 0.02}
    wide = {"mean": -0.04, "low": -1.0, "high": 0.6, "excludes_zero": False, "p": 0.5, "p_holm": 0.5}
    suite = {
        "seeds": ["0", "1", "2"],
        "teacher": {"name": "teacher", "label": "Teacher", "values": {"retrieval/geometric_rank": {"": 9.0}}},
        "rows": [row("none", [10, 11, 12]), row("kd", [13, 14, 15]), row("no_alsn", [10, 10, 10])],
        "differences": {
            "kd": {"retrieval/geometric_rank": told | {"seeds_and_concepts": {"low": 1.5, "high": 4.5}}},
            "no_alsn": {"retrieval/geometric_rank": wide | {"seeds_and_concepts": None}},
        },
    }
    half = 4.3027 / 3**0.5  # quantile of t with 2 degrees of freedom, times a spread of 1, by the root of 3
    assert tool("results_table").table(suite).splitlines()[2:] == [
        "| Teacher |  | 9.0 |  |  |  |  |",
        f"| KD |  | 14.0 ± {half:.1f} |  |  | **+3.0** † [+2.0 to +4.0] (+1.5 to +4.5) |  |",
        f"| NONE |  | 11.0 ± {half:.1f} |  |  |  |  |",
        "| NO_ALSN |  | 10.0 ± 0.0 |  |  | 0.0 [-1.0 to +0.6] |  |",
        "",
        "Seeds: 3. Comparisons in the whole suite: 2, 1 with †.",
    ]


def test_the_tables_of_results_are_those_of_the_kept_suites() -> None:
    tables = tool("results_table")
    pages = [*tables.documents()]
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"python docs/tools/results_table.py writes the tables of {page.name}"


def test_a_kept_suite_gives_the_table_of_the_whole() -> None:
    one = {"mean": 3.0, "low": 2.0, "high": 4.0, "excludes_zero": True, "p": 0.01, "p_holm": 0.02}
    difference = {key: one | {"seeds_and_concepts": None} for key in ("retrieval/geometric_rank", "retrieval/i2t/R@1")}
    row = {"name": "kd", "label": "KD", "values": {"retrieval/geometric_rank": {"0": 5.0, "1": 6.0}}}
    later = {"name": "fitnet", "label": "FitNet", "values": {"retrieval/geometric_rank": {}}}
    suite = {"seeds": ["0", "1"], "teacher": row, "rows": [row, later], "differences": {"kd": difference}}
    tables = tool("results_table")
    kept = tables.kept(suite)
    assert [of["name"] for of in kept["rows"]] == ["kd"]
    assert tables.table(kept) == tables.table(suite)
    assert kept["comparisons"] == {"made": 2, "told": 2}


def test_the_table_of_weights_of_levels_has_the_rows_minus_equal_weights() -> None:
    one = {"mean": 0.3, "low": -0.2, "high": 0.8, "excludes_zero": False, "p": 0.1, "p_holm": 0.2}
    change = {key: one | {"seeds_and_concepts": None} for key in ("retrieval/geometric_rank", "retrieval/i2t/R@1")}
    row = {"name": "oracle_alsn", "label": "oracle", "values": {"retrieval/geometric_rank": {"0": 5.0}}}
    suite = {"seeds": ["0"], "teacher": row, "rows": [row], "differences": {}}
    tables = tool("results_table")
    lines = tables.weights(tables.kept(suite | {"against_equal_weights": {"oracle_alsn": change}})).splitlines()
    counted = "Seeds: 1. Comparisons with equal weights in the whole suite: 2, 0 with †."
    assert lines[2:] == ["| oracle |  | +0.3 [-0.2 to +0.8] |  |", "", counted]


@pytest.mark.parametrize("name", ["README.md", "docs/zh.md", "docs/method.md"])
def test_numbers_of_results_are_those_of_a_kept_suite(name: str) -> None:
    tables = tool("results_table")
    suites = kept_results()
    rows = {
        tuple(tables.mean(row["values"].get(key, {})) for key in tables.COLUMNS)
        for suite in suites
        for row in (suite["teacher"], *suite["rows"])
    }
    shown = 0
    for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and MEASURED.search(line):
            shown += 1
            assert tuple(cells[1:4]) in rows, f"{name}: no kept suite has this row: {line}"
    assert shown > 3


@pytest.mark.parametrize("name", ["README.md", "docs/zh.md", "docs/method.md"])
def test_intervals_in_sentences_are_of_a_kept_suite_or_of_the_page_of_the_demo(name: str) -> None:
    ends = {
        tuple(sorted(abs(float(f"{one[side]:.1f}")) for side in ("low", "high")))
        for suite in kept_results()
        for changes in (suite["differences"], suite.get("against_equal_weights", {}))
        for row in changes.values()
        for number in row.values()
        for one in (number, number["seeds_and_concepts"])
        if one and one["low"] is not None
    }
    demo = (REPOSITORY / "docs/method-demo.md").read_text(encoding="utf-8")
    ends |= {tuple(sorted((abs(float(low)), abs(float(high))))) for _, low, high in ENDS.findall(demo)}
    found = ENDS.findall((REPOSITORY / name).read_text(encoding="utf-8"))
    assert len(found) > 2
    for kind, low, high in found:
        written = tuple(sorted((abs(float(low)), abs(float(high)))))
        assert written in ends, f"{name}: no kept suite has the interval {kind}{low} to {high}"
