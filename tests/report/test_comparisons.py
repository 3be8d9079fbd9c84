"""A suite whose evaluations keep their ranks: both intervals and Holm's marks in tables, pages, folder and JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from made_suites import files, ranked_suite

from cmapkd_core.recipes import FULL, ROWS, SUITES
from cmapkd_core.report.figures.by_updates import draw_by_updates
from cmapkd_core.report.figures.style import PAGE, painted
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.concepts import QUERIES
from cmapkd_core.report.read.suite_inputs import (
    MEAN,
    RANK,
    SETTING,
    SuiteInputs,
    at_least,
    compared_with,
    full_of,
    label,
    suite_results,
    times,
)
from cmapkd_core.report.render.latex import latex_table
from cmapkd_core.report.render.markdown import of_table
from cmapkd_core.report.render.paper_folder import numbers_of, write_folder
from cmapkd_core.report.reports import Pages, of_suite
from cmapkd_core.report.row_differences import differences
from cmapkd_core.report.sections import suite_sections
from cmapkd_core.report.sections.outcome import suite_outcome
from cmapkd_core.report.sections.section import build_sections
from cmapkd_core.report.sections.suite_sections import suite_headings, suite_notes
from cmapkd_core.report.significance import Interval, p_value
from cmapkd_core.report.tables.costs import RowCost
from cmapkd_core.report.tables.summary import suite_as_json
from cmapkd_core.report.tables.table import MARK, Table

EFFECTS = {"finetune": 0.5, "no_pyramid": 0.1, "no_alsn": 0.0, FULL: 0.0}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> SuiteInputs:
    """Five seeds, 60 concepts."""
    return dataclasses.replace(ranked_suite(tmp_path_factory.mktemp("ranked"), EFFECTS), suite="table4")


@pytest.fixture(scope="module")
def pages(ranked: SuiteInputs) -> Pages:
    """Its report."""
    return of_suite(ranked)


def tables(inputs: SuiteInputs) -> dict[str, Table]:
    """Those that show differences."""
    sections = build_sections(suite_headings(inputs.suite), inputs, suite_results(inputs))
    made = [one for section in sections.values() for one in section.tables]
    return {one.key: one for one in made if any(cell.difference for row in one.rows for cell in row.cells)}


def without_ranks(inputs: SuiteInputs, *cells: tuple[str, str]) -> SuiteInputs:
    """As evaluations of an earlier code are."""
    lacking = {
        cell: dataclasses.replace(one, files=one.files - {QUERIES} if cell in cells or not cells else one.files)
        for cell, one in inputs.evaluations.items()
    }
    return dataclasses.replace(inputs, evaluations=lacking)


def test_ranks_give_the_measured_numbers_and_a_wider_interval(ranked: SuiteInputs) -> None:
    results = suite_results(ranked)
    assert len(results.concepts["retrieval"]) == 60
    changes = differences(results)
    for row in ("finetune", "no_pyramid"):
        for key in (MEAN, RANK, "retrieval/t2i/R@5"):
            one = changes[row][key]
            assert one.wider is not None
            assert (one.wider.n, one.wider.concepts) == (5, 60)
            middle, width = (one.wider.low + one.wider.high) / 2, one.wider.high - one.wider.low
            assert middle == pytest.approx(one.mean, abs=0.15 * width)  # they are around one number
            assert width > one.high - one.low
    assert changes["finetune"]["zeroshot/top1"].wider is None


def test_each_table_of_differences_says_what_it_makes(ranked: SuiteInputs) -> None:
    found = tables(ranked)
    assert list(found) == ["table4_ablations", "weighing", "differences"]
    for made in found.values():
        ps = sorted(
            p
            for row in made.rows
            for cell in row.cells
            if cell.difference and (p := p_value(cell.interval)) is not None
        )
        said = " ".join(made.notes)
        assert f"This table makes {len(ps)} comparisons" in said
        assert "60 test concepts" in said
        # Holm's rule, step by step: the smallest p has all comparisons against it, the next one fewer.
        passed = 0
        while passed < len(ps) and ps[passed] * (len(ps) - passed) < 0.05:
            passed += 1
        told = [cell for row in made.rows for cell in row.cells if cell.mark]
        assert len(told) == passed > 0
        assert {p_value(cell.interval) for cell in told} == set(ps[:passed])
        bold = [cell for row in made.rows for cell in row.cells if cell.bold]
        assert all(cell.bold for cell in told)
    assert len(bold) > len(told)  # of the last table


def test_all_forms_show_both_intervals_and_the_mark(ranked: SuiteInputs, pages: Pages) -> None:
    made = tables(ranked)["differences"]
    cell = next(cell for row in made.rows for cell in row.cells if cell.mark and cell.wider)
    low, high = cell.interval.wider.low, cell.interval.wider.high
    assert cell.wider == f"({low:+.1f} to {high:+.1f})"
    shown = f"<b>{cell.main}</b>{MARK} <small>{cell.spread}</small> <small>{cell.wider}</small></td>"
    assert shown in pages.html
    text = "\n".join(of_table(made)).replace("\\", "")
    assert f"**{cell.main}**{MARK} {cell.spread} {cell.wider} |" in text
    tex = latex_table(made)
    main = cell.main.replace("-", "$-$")
    assert rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}\textbf{{{main}}}$^\dagger$ \\ {{\scriptsize [" in tex
    assert "\N{DAGGER}" not in tex


def test_programs_get_both_intervals_and_both_p_values(ranked: SuiteInputs, pages: Pages) -> None:
    one = json.loads(json.dumps(pages.table))["differences"]["finetune"][MEAN]
    assert one["p"] <= one["p_holm"] < 0.05
    assert set(one["seeds_and_concepts"]) == {"low", "high", "n", "concepts", "of"}
    number = numbers_of(tables(ranked).values())[f"differences/finetune/minus full method/{MEAN}"]
    assert number["over_seeds_and_concepts"] == one["seeds_and_concepts"]
    assert (number["p"], number["p_holm"]) == (one["p"], one["p_holm"])


def test_one_seed_has_an_interval_over_concepts_alone(tmp_path: Path) -> None:
    inputs = dataclasses.replace(ranked_suite(tmp_path, EFFECTS, seeds=1), suite="table4")
    made = tables(inputs)["differences"]
    cell = made.rows[0].cells[0]
    assert (cell.spread, cell.bold, cell.mark) == ("", False, "")
    assert cell.wider
    said = " ".join(made.notes)
    assert "over the test concepts alone" in said
    assert "comparisons" not in said


@pytest.mark.parametrize("cells", [(), (("no_alsn", "2"),)])
def test_what_has_no_ranks_has_the_seeds_interval_and_says_so(
    ranked: SuiteInputs, cells: tuple[tuple[str, str], ...]
) -> None:
    inputs = without_ranks(ranked, *cells)
    for row, numbers in differences(suite_results(inputs)).items():
        assert (numbers[MEAN].wider is None) == (row == "no_alsn" or not cells)
        assert numbers[MEAN].half
    said = " ".join(tables(inputs)["differences"].notes)
    assert ("No interval here holds" in said) == (not cells)
    assert ("those of a seed are not there" in said) == bool(cells)


def test_a_row_that_other_concepts_may_not_tell_is_named(ranked: SuiteInputs, pages: Pages) -> None:
    changes = differences(suite_results(ranked))["no_pyramid"][MEAN]
    assert changes.wider.low < 0 < changes.wider.high
    notes = pages.table["outcome"]["notes"]
    assert any("holds zero for" in note for note in notes) == changes.excludes_zero


BUDGETS = {
    f"{name}{times}": effect - 0.1 * len(times)
    for times in ("", "_3x", "_10x")
    for name, effect in {"finetune": 0.5, "clip_kd": 0.1, "no_alsn": 0.0}.items()
} | {"full_10x": -0.4, "full_3x": -0.3, FULL: 0.0}


@pytest.fixture(scope="module")
def budgets(tmp_path_factory: pytest.TempPathFactory) -> SuiteInputs:
    """Rows at three numbers of updates."""
    made = ranked_suite(tmp_path_factory.mktemp("budgets"), BUDGETS, seeds=3, concepts=40)
    return dataclasses.replace(made, suite="budget")


def test_a_row_with_fewer_captions_is_compared_with_the_full_method_of_as_many() -> None:
    """Ten times the epochs over a tenth of the pairs are the updates of the recipe, not ten times of them."""
    rows = SUITES["captions"]
    assert {row: full_of(row) for row in rows} == {row: FULL if row == FULL else "tenth_captions" for row in rows}
    assert {times(row) for row in rows} == {1}
    assert compared_with(rows) == ("tenth_captions", FULL)


def test_rows_of_another_setting_have_a_full_method_and_all_rows_a_name() -> None:
    assert all(full_of(row) != FULL for row, fields in ROWS.items() if SETTING & {*fields})
    assert [row for row in ROWS if label(row) == row] == []  # its own, or that of the row that it is longer than


def test_a_report_with_several_full_methods_says_which_a_row_is_compared_with(
    budgets: SuiteInputs, pages: Pages
) -> None:
    section = build_sections(suite_headings("budget"), budgets, suite_results(budgets))["differences"]
    said = "Each row is compared with that of as many updates and captions"
    assert f"{said}: CMAPKD (ours), CMAPKD (ours), 3x, CMAPKD (ours), 10x." in section.caption
    assert said not in pages.html
    compared = suite_as_json(budgets, suite_results(budgets))["compared_with"]
    assert compared == {row: full_of(row) for row in BUDGETS}
    assert (compared["clip_kd_3x"], compared["finetune"]) == ("full_3x", FULL)


def test_rows_that_are_compared_have_one_number_of_updates(
    budgets: SuiteInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other full methods they may have another: epochs over fewer pairs have fewer whole batches."""
    results = suite_results(budgets)

    def notes(**updates: int) -> list[str]:
        costs = [RowCost(row, "cmapkd", "", None, None, (n,), None, None) for row, n in updates.items()]
        monkeypatch.setattr(suite_sections, "row_costs", lambda *_: costs)
        return [note for note in suite_notes(budgets, results) if "one budget" in note]

    assert not notes(none=234, finetune=234, tenth_captions=210, tenth_pairs=210)
    (note,) = notes(none=234, finetune=234, tenth_captions=210, tenth_pairs=200)
    assert "(200, 210)" in note


def test_a_row_is_compared_with_the_full_method_of_its_updates(budgets: SuiteInputs) -> None:
    assert [full_of(row) for row in ("kd", "kd_3x", "full_10x")] == [FULL, "full_3x", "full_10x"]
    assert [at_least(row) for row in ("kd_3x", "full_10x", FULL)] == ["kd", FULL, FULL]
    assert (label("kd_3x"), label("full_10x")) == ("KD, 3x", "CMAPKD (ours), 10x")
    results = suite_results(budgets)
    changes = differences(results)
    assert set(changes) == {row for row in BUDGETS if row not in ("full_10x", "full_3x", FULL)}
    of = {row: results.row(row).values[RANK]["1"] for row in ("finetune_10x", "full_10x")}
    ours = [results.row("finetune_10x").values[RANK][s] - results.row("full_10x").values[RANK][s] for s in "012"]
    assert changes["finetune_10x"][RANK].mean == pytest.approx(sum(ours) / 3)
    assert of["finetune_10x"] > of["full_10x"]
    assert not any("updates" in note for note in suite_notes(budgets, results))  # by design
    shaded = {row.label for row in tables(budgets)["differences"].rows if row.kind == "ours"}
    assert not shaded
    assert {row.name for row in results.rows if row.kind == "ours"} == {"full_10x", "full_3x", FULL}


def test_without_its_full_method_a_row_is_compared_with_none(budgets: SuiteInputs) -> None:
    rows = tuple(row for row in budgets.rows if row != "full_10x")
    fewer = dataclasses.replace(budgets, rows=rows)
    assert "finetune_10x" not in differences(suite_results(fewer))
    assert "finetune_3x" in differences(suite_results(fewer))


def test_a_suite_says_which_of_its_full_methods_were_not_measured(budgets: SuiteInputs) -> None:
    lacking = {c: one for c, one in budgets.evaluations.items() if c[0] not in ("full_10x", FULL)}
    nothing = {c: Source("") for c in budgets.evaluations if c not in lacking}
    part = dataclasses.replace(budgets, evaluations=lacking | nothing)
    results = suite_results(part)
    told, notes = suite_outcome(part, results), suite_notes(part, results)
    assert told.comparisons is not None
    assert set(told.comparisons) == {"finetune_3x", "clip_kd_3x", "no_alsn_3x"}
    assert "was not measured" not in told.sentence
    assert "The full method of row none was not measured, so no difference to it can be given." in notes
    assert "The full method of row full_10x was not measured, so no difference to it can be given." in notes
    assert not any("row full_3x" in note for note in notes)


def test_every_full_method_is_compared_with_the_untrained_student(budgets: SuiteInputs) -> None:
    before = {seed: budgets.evaluations["finetune", seed] for seed in budgets.seeds}
    made = dataclasses.replace(budgets, before=before)
    notes = suite_outcome(made, suite_results(made)).notes
    gains = [note for note in notes if "the student before training" in note]
    names = ["CMAPKD (ours)", "CMAPKD (ours), 3x", "CMAPKD (ours), 10x"]
    assert [note.partition(" against")[0] for note in gains] == names


def test_the_figure_by_updates_has_the_numbers_of_the_tables(budgets: SuiteInputs) -> None:
    results = suite_results(budgets)
    section = build_sections(suite_headings("budget"), budgets, results)["updates"]
    titles = [drawing.title for drawing in section.figures]
    assert titles[:3] == [
        "Geometric mean rank, better upwards",
        "Geometric mean rank: baselines minus full method",
        "Geometric mean rank: variants minus full method",
    ]
    with painted(section.figures[1], PAGE) as figure:
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.get_xticklabels()] == ["40", "120", "400"]
        assert axes.yaxis_inverted()
        shown = {line.get_color(): line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 3}
        drawn = [list(map(float, ys)) for ys in shown.values()]
        changes = differences(results)
        for name in ("finetune", "clip_kd"):
            expected = [changes[f"{name}{times}"][RANK].mean for times in ("", "_3x", "_10x")]
            assert any(ys == pytest.approx(expected) for ys in drawn)
        ends = [sorted(map(float, line.get_ydata())) for line in axes.lines if len(line.get_ydata()) == 2]
        wider = changes["finetune_3x"][RANK].wider
        assert any(pair == pytest.approx([wider.low, wider.high]) for pair in ends)


def test_every_panel_of_the_means_by_updates_has_the_full_method_and_a_file_of_its_own(tmp_path: Path) -> None:
    rows = ("finetune", "kd", "clip_kd", "clip_rd")
    effects = dict.fromkeys((*rows, *(f"{row}_3x" for row in rows), "full_3x", FULL), 0.1)
    made = dataclasses.replace(ranked_suite(tmp_path, effects, seeds=2, concepts=10), suite="budget")
    headings = suite_headings("budget")
    section = build_sections(headings, made, suite_results(made))["updates"]
    means = [drawing.description for drawing in section.figures if drawing.title.startswith("Geometric mean rank,")]
    assert [[name for row in (*rows, FULL) if f" {(name := label(row))} " in text] for text in means] == [
        ["Fine-tuned", "KD", "CLIP-KD", "CMAPKD (ours)"],
        ["CLIP-RD", "CMAPKD (ours)"],
    ]
    assert all(f"by updates: {label(FULL)} " in text for text in means)  # so it has one look in all
    folder = write_folder(tmp_path, "budget", headings, {"updates": section})
    drawn = [path.stem for path in sorted((folder / "figures").glob("*rank_better*.pdf"))]
    assert drawn == ["updates_geometric_mean_rank_better_upwards", "updates_geometric_mean_rank_better_upwards_2"]
    assert all(f"{name}.pdf" in (folder / "figures/updates.tex").read_text() for name in drawn)


def test_the_full_method_has_a_panel_where_no_baseline_stands_beside_it(tmp_path: Path) -> None:
    effects = dict.fromkeys(("fd_alone", "fd_alone_3x", "full_3x", FULL), 0.1)
    made = dataclasses.replace(ranked_suite(tmp_path, effects, seeds=2, concepts=10), suite="budget")
    section = build_sections(suite_headings("budget"), made, suite_results(made))["updates"]
    (ranks,) = (drawing for drawing in section.figures if drawing.title.startswith("Geometric mean rank,"))
    assert f" {label(FULL)} " in ranks.description
    assert label("fd_alone") not in ranks.description


def test_a_number_of_one_seed_has_a_hollow_mark() -> None:
    several, one = Interval(3.0, 1.0, 5), Interval(4.0, None, 1)
    with painted(draw_by_updates("Rank", {"row": {150: several, 1500: one}}, "ranks"), PAGE) as figure:
        marks = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
        filled = {float(mark.get_ydata()[0]): mark.get_markerfacecolor() != PAGE.blank for mark in marks}
    assert filled == {3.0: True, 4.0: False}


def test_a_suite_of_one_number_of_updates_has_no_such_figure(pages: Pages) -> None:
    assert pages.sections["updates"].bare
    assert "by number of updates" not in pages.html + pages.markdown


def test_names_beside_the_lines_lie_on_the_panel(budgets: SuiteInputs) -> None:
    section = build_sections(suite_headings("budget"), budgets, suite_results(budgets))["updates"]
    for drawing in section.figures:
        with painted(drawing, PAGE) as figure:
            figure.draw_without_rendering()
            (axes,) = figure.axes
            for text in (*axes.texts, axes._left_title):
                box = text.get_window_extent()
                assert box.x1 <= figure.bbox.width, text.get_text()


def test_zero_shot_accuracy_has_an_interval_over_its_classes(tmp_path: Path) -> None:
    inputs = ranked_suite(tmp_path, {"kd": 0.0, "none": 0.0}, seeds=3)
    draw, classes = np.random.default_rng(1), 40
    level = draw.uniform(20, 60, classes)  # some classes are hard for all
    cells = {}
    for row, effect in (("kd", -8.0), ("none", 0.0)):
        of_class = level + effect + draw.normal(0, 6, classes)
        for seed in ("0", "1", "2"):
            hits = np.clip(of_class + draw.normal(0, 2, classes), 0, 100).round()
            rows = [{"class": f"c{i}", "images": 100, "top1": float(hit)} for i, hit in enumerate(hits)]
            metrics = {"zeroshot/top1": float(hits.mean()), "zeroshot/images": 100.0 * classes}
            kept = [*rows, {"class": "nothing", "images": 0, "top1": None}]
            cells[row, seed] = files(tmp_path, f"{row}/{seed}", metrics=metrics, zeroshot={"classes": kept})
    one = differences(suite_results(dataclasses.replace(inputs, evaluations=cells)))["kd"]["zeroshot/top1"]
    assert one.wider is not None
    assert (one.wider.n, one.wider.concepts, one.wider.of) == (3, classes, "classes")
    assert one.wider.low < one.mean < one.wider.high
    # Classes alone move it by sqrt(2) 6 / sqrt(40) = 1.3 points, so by 2.6 to each side, and seeds some more.
    assert 4 < one.wider.high - one.wider.low < 12
    said = " ".join(
        note for made in tables(dataclasses.replace(inputs, evaluations=cells)).values() for note in made.notes
    )
    assert f"for zero-shot accuracy {classes} classes, drawn anew" in said


def test_a_row_without_a_complete_evaluation_takes_no_part(ranked: SuiteInputs) -> None:
    gone = {
        cell: Source("gone", "s3://b/gone") if cell[0] == "no_alsn" else one for cell, one in ranked.evaluations.items()
    }
    results = suite_results(dataclasses.replace(ranked, evaluations=gone))
    assert differences(results)["no_alsn"] == {}
    assert not results.concepts["retrieval"].lacking
