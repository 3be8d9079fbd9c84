"""Whole reports as they were: headings, sentences, tables, plotted numbers, JSON for programs and the paper's folder.

A difference that is meant is taken over by the `cp` that the failure names. Bytes of PDF, PNG and SVG are for others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_suites import EFFECTS, one_file, suite_inputs
from report_snapshots import differences, folder_of, lines_of, plotted

from cmapkd_core.report.figures.style import PAGE, Drawing, painted
from cmapkd_core.report.read.run_inputs import RunInputs
from cmapkd_core.report.read.suite_inputs import SuiteInputs
from cmapkd_core.report.render import html
from cmapkd_core.report.render import paper_folder as paper_folder
from cmapkd_core.report.reports import Pages, of_run, of_suite

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Pages]], dict[str, Any]]:
    """A report as plain data. Its figures are painted once, and their files stay empty."""

    def save(drawing: Drawing, folder: Path, name: str) -> list[Path]:
        paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
        for path in paths:
            path.touch()
        return paths

    monkeypatch.setattr(html, "svg", lambda drawing: f"<svg>{drawing.title}</svg>")
    monkeypatch.setattr(paper_folder, "save", save)

    def take(make: Callable[[], Pages]) -> dict[str, Any]:
        made = make()
        figures = []
        for key, section in made.sections.items():
            for drawing in section.figures:
                with painted(drawing, PAGE) as figure:
                    axes = plotted(figure, exact=key != "map")  # t-SNE's places are not those of another machine
                figures.append({"section": key, "title": drawing.title, "said": drawing.description, "axes": axes})
        return {
            "title": made.title,
            "page": lines_of(made.html),
            "markdown": made.markdown.splitlines(),
            "table": made.table,
            "metrics": made.metrics,
            "figures": figures,
            "paper": folder_of(paper_folder.write_folder(tmp_path, made.title, made.headings, made.sections)),
        }

    return take


def check(name: str, found: dict[str, Any], folder: Path) -> None:
    """Compare with the snapshot of that name."""
    written, kept = folder / f"{name}.json", SNAPSHOTS / f"{name}.json"
    written.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n")
    expected = json.loads(kept.read_text()) if kept.exists() else {}
    wrong = differences(expected, json.loads(written.read_text()))
    assert not wrong, "\n".join([*wrong[:40], f"{len(wrong)} differences; where they are meant: cp {written} {kept}"])


def test_a_whole_run(whole_run: RunInputs, snapshot: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    check("run", snapshot(lambda: of_run(whole_run)), tmp_path)


def test_a_run_of_a_fixed_selector_with_gaps(
    make_inputs: Callable[..., RunInputs], snapshot: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    inputs = make_inputs(without=("reference_eval", "before_eval", "levels", "shards", "alsn"), ablation="no_alsn")
    check("run_with_gaps", snapshot(lambda: of_run(inputs)), tmp_path)


def further(folder: Path) -> dict[str, Any]:
    """VQA of every row, and costs of the full method and of the teacher."""
    more = {
        f"vqa/{row}/0": one_file(folder, f"vqa {row} 0", "metrics.json", {"vqa/overall": 50.0 + effect})
        for row, effect in EFFECTS.items()
    }
    for name, scale in (("teacher", 2.0), ("none", 1.0)):
        costs = {"efficiency/image/gflops": 3 * scale, "efficiency/image/latency_ms/b1": 7 * scale}
        costs |= {"parameters/image": 4.0e6, "parameters/text": 17.0e6}
        more[f"efficiency/{name}"] = one_file(folder, f"efficiency {name}", "metrics.json", costs)
    return more


def test_a_suite_over_seeds_with_gaps(
    make: Callable[..., SuiteInputs], snapshot: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    inputs = make(without=("no_align/1", *(f"one_stage/{s}" for s in range(5))), expectations=True)
    check("suite", snapshot(lambda: of_suite(inputs)), tmp_path)


def test_a_suite_of_one_seed(snapshot: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    inputs = dataclasses.replace(suite_inputs(tmp_path, seeds=1, more=further(tmp_path)), suite="table2")
    check("suite_of_one_seed", snapshot(lambda: of_suite(inputs)), tmp_path)
