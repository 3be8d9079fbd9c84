"""A suite's table, statistics and page from made evaluations: complete, with gaps, and of one seed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_suites import EFFECTS, RECALLS, metrics_of, one_file
from scipy.stats import ttest_1samp

from cmapkd_core.errors import InputError
from cmapkd_core.recipes import SUITES, resolve
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.read.suite_inputs import (
    MEAN,
    RANK,
    RowTraining,
    SuiteInputs,
    check_suite_names,
    label,
    suite_results,
)
from cmapkd_core.report.reports import of_suite
from cmapkd_core.report.row_differences import differences
from cmapkd_core.report.sections.section import Section, build_sections
from cmapkd_core.report.sections.suite_sections import EXPECTED, suite_headings, suite_notes
from cmapkd_core.report.significance import over_seeds
from cmapkd_core.report.tables.costs import cost_base, gradient_shares, row_costs
from cmapkd_core.report.tables.summary import suite_as_json, suite_text
from cmapkd_core.report.tables.table import TableRow, difference_cell, digits_of, mean_cell
from cmapkd_core.report.tables.table4_ablations import ablation_tables


def pages(inputs: SuiteInputs) -> tuple[str, str]:
    """HTML and Markdown."""
    made = of_suite(inputs)
    return made.html, made.markdown


def sections_of(inputs: SuiteInputs) -> Mapping[str, Section]:
    return build_sections(suite_headings(inputs.suite), inputs, suite_results(inputs))


class Reader(HTMLParser):
    """Cells of every table row, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.bold: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "b" in self.open and "td" in self.open:
            self.bold.append(data)
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_means_and_differences_are_those_of_scipy(make: Callable[..., SuiteInputs]) -> None:
    table = suite_results(make())
    for name in EFFECTS:
        row = table.row(name)
        values = np.array(list(row.values["retrieval/i2t/R@1"].values()))
        found = over_seeds(row, "retrieval/i2t/R@1")
        expected = ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), expected.low, expected.high))
        assert over_seeds(row, "retrieval/mean_recall").mean == pytest.approx(values.mean() + 25)
    ours, full = (list(table.row(n).values["zeroshot/top1"].values()) for n in ("no_pyramid", "none"))
    paired = differences(table)["no_pyramid"]["zeroshot/top1"]
    expected = ttest_1samp(np.subtract(ours, full), 0).confidence_interval(0.95)
    assert (paired.low, paired.high, paired.n) == pytest.approx((expected.low, expected.high, 5))
    assert "none" not in differences(table)


def test_the_page_has_every_number_and_stands_alone(make: Callable[..., SuiteInputs]) -> None:
    inputs = make()
    table = suite_results(inputs)
    html, text = pages(inputs)
    reader = Reader(html)
    every = [line for line in reader.rows if line[:1] == ["w/o visual pyramid"] and "±" in "".join(line)]
    (row,) = [line for line in every if line[1] == "21.0"]
    wanted = [mean_cell(over_seeds(table.row("no_pyramid"), key), "", {}).text() for key in (*RECALLS, MEAN, RANK)]
    assert row[2:-1] == wanted
    assert row[-1] == "5"
    assert f"| w/o visual pyramid | {' | '.join(row[1:])} |" in text
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"url\((?!#)|src=|@import|<script|<link", html)
    assert "suite &lt;one&gt;" in html
    assert "takes 60 stage executions" in reader.words
    assert "s3://bucket/evaluation no_align/3" in reader.words
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        ElementTree.fromstring(figure)
        assert not re.search(r"#0[0-9]0[0-9]0[0-9]", figure), "a placeholder colour was left"


def decided_by(results: Results) -> set[str]:
    """Every number that a row is compared by."""
    return {key for row in differences(results).values() for key in row}


def test_bold_is_what_excludes_zero_and_nothing_else(make: Callable[..., SuiteInputs]) -> None:
    inputs = make()
    table = suite_results(inputs)
    decided = {n: row["retrieval/i2t/R@1"].excludes_zero for n, row in differences(table).items()}
    assert decided["no_pyramid"]
    assert not all(decided.values())
    html, text = pages(inputs)
    digits = {key: digits_of(row[key] for row in differences(table).values()) for key in decided_by(table)}
    shown = {
        f"{one.mean:+.{digits[key]}f}"
        for row in differences(table).values()
        for key, one in row.items()
        if one.excludes_zero
    }
    weighing = {
        cell.main
        for made in sections_of(inputs)["weighing"].tables
        for row in made.rows
        for cell in row.cells
        if cell.interval and cell.interval.excludes_zero
    }
    assert set(Reader(html).bold) == shown | weighing
    assert "the 95 % paired t-interval over the seeds, in [ ], excludes zero" in Reader(html).words
    for name, row in differences(table).items():
        for key in ("retrieval/i2t/R@1", "zeroshot/top1"):
            (line,) = [
                line for line in text.splitlines() if line.startswith(f"| {label(name)} |") and line.count("[") > 1
            ]
            cell = difference_cell(row[key], "", {}, digits[key])
            assert bool(re.search(rf"\*\*{re.escape(cell.main)}\*\*†? {re.escape(cell.spread)}", line)) == cell.bold


def test_table_four_has_each_row_with_its_difference(make: Callable[..., SuiteInputs]) -> None:
    inputs = make()
    table = suite_results(inputs)
    sections = sections_of(inputs)
    (made,) = sections["table4_ablations"].tables
    assert made.heading() == "Table 4. Component ablation"
    labels = [line.label for line in made.rows]
    assert labels[:2] == ["Teacher", "Student before training"]
    assert labels[2:-1] == [label(name) for name in EFFECTS]
    assert labels[-1] == "Chance"
    at = [head.label for head in made.heads].index("mean recall minus full method")
    cells = {line.label: line.cells[at] for line in made.rows}
    assert cells[label("none")].main == cells["Teacher"].main == "-"
    found = cells["w/o visual pyramid"].interval
    assert found == differences(table)["no_pyramid"][MEAN]
    assert any("Not measured: vqa" in sentence for sentence in made.missing)
    # a difference that no row has makes no column
    ranks = "geometric mean rank minus full method"
    assert ranks not in [head.label for head in made.heads]
    for row in table.trained:
        row.values["retrieval/geometric_rank"] = dict.fromkeys(row.values.get(MEAN, {}), 7.0)
    (made,) = ablation_tables(table, "table4", "with ranks")
    assert ranks in [head.label for head in made.heads]


def test_further_evaluations_of_rows_and_of_the_teacher(make: Callable[..., SuiteInputs], tmp_path: Path) -> None:
    more = {
        f"vqa/{row}/{seed}": one_file(
            tmp_path, f"vqa {row} {seed}", "metrics.json", {"vqa/overall": 50.0 + seed + effect}
        )
        for row, effect in EFFECTS.items()
        for seed in range(5)
    }
    for name, scale in (("teacher", 2.0), ("none", 1.0)):
        costs = {"efficiency/image/gflops": 3 * scale, "efficiency/image/latency_ms/b1": 7 * scale}
        costs |= {key: metrics_of(1.0)[key] for key in ("parameters/image", "parameters/text")}
        more[f"efficiency/{name}"] = one_file(tmp_path, f"efficiency {name}", "metrics.json", costs)
    inputs = dataclasses.replace(make(more=more), suite="table2")
    table = suite_results(inputs)
    assert over_seeds(table.row("no_pyramid"), "vqa/overall").mean == pytest.approx(50.0)
    assert differences(table)["no_pyramid"]["vqa/overall"].mean == pytest.approx(-2.0)
    sections = sections_of(inputs)
    (made,) = sections["table5_efficiency"].tables
    assert [line.label for line in made.rows] == ["Teacher", label("none")]
    shown = dict(zip([head.label for head in made.heads], made.rows[1].cells, strict=True))
    assert (shown["GFLOPs, image"].main, shown["latency, image"].main) == ("2.00", "2.00")
    assert shown["image to text R@1"].interval.n == 5
    assert shown["image"].spread == ""  # the same size for every seed
    assert over_seeds(table.row("none"), "parameters/image").n == 5  # what no seed has is no sixth


def test_n_is_that_of_the_numbers_beside_it(make: Callable[..., SuiteInputs], tmp_path: Path) -> None:
    """Of five seeds three have a VQA evaluation."""
    more = {
        f"vqa/{row}/{seed}": one_file(tmp_path, f"vqa {row} {seed}", "metrics.json", {"vqa/overall": 50.0 + seed})
        for row in EFFECTS
        for seed in range(3)
    }
    inputs = dataclasses.replace(make(more=more), suite="table2")
    suite_results(inputs)
    sections = sections_of(inputs)

    def n(line: TableRow) -> str:
        return line.cells[-1].main

    (both,) = sections["table3_vqa_zeroshot"].tables
    assert {n(line) for line in both.rows if line.label == label("no_align")} == {"3 to 5"}
    (paired,) = sections["differences"].tables
    assert {n(line) for line in paired.rows} == {"3 to 5"}
    (retrieval,) = sections["table2_retrieval"].tables
    assert {n(line) for line in retrieval.rows if line.label == label("no_align")} == {"5"}


@pytest.mark.parametrize("name", ["vqa", "vqa/no_such_row/0", "vqa/none/0/1"])
def test_further_evaluations_of_no_row_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--artifacts: {name} is"):
        check_suite_names([name, *(f"evaluation/{row}/0" for row in EFFECTS)])


def test_one_seed_has_no_interval_and_says_so(make: Callable[..., SuiteInputs]) -> None:
    inputs = make(seeds=1)
    table = suite_results(inputs)
    html, text = pages(inputs)
    reader = Reader(html)
    assert "One seed: there is no interval" in reader.words
    assert "One seed: there is no interval" in text
    assert not any("±" in cell for row in reader.rows for cell in row)
    assert not any(found.excludes_zero for row in differences(table).values() for found in row.values())


def test_what_is_missing_is_named_and_the_rest_stands(make: Callable[..., SuiteInputs]) -> None:
    inputs = make(without=("no_align/1", "no_align/4", *(f"one_stage/{s}" for s in range(5))))
    inputs = dataclasses.replace(inputs, teacher=Source("teacher"))
    table = suite_results(inputs)
    assert table.row("no_align").seeds == ("0", "2", "3")
    assert differences(table)["no_align"]["retrieval/mean_recall"].n == 3
    assert differences(table)["one_stage"] == {}
    html, text = pages(inputs)
    for words in (Reader(html).words, text):
        assert (
            f"Missing: {label('no_align')}, seed 1, 4, is not measured yet: s3://bucket/evaluation no_align/1" in words
        )
        assert "Missing: one-stage training, seed 0, 1, 2, 3, 4, is not measured yet" in words
        assert "Missing: Teacher is not measured yet: (not given)" in words


def test_without_the_full_method_nothing_is_compared(make: Callable[..., SuiteInputs]) -> None:
    inputs = make(without=tuple(f"none/{s}" for s in range(5)))
    suite_results(inputs)
    page = Reader(pages(inputs)[0]).words
    assert "The full method was not measured, so no difference to it can be given." in page
    assert "no measured row to compare with the full method" in page


def test_evaluations_of_different_data_are_refused(make: Callable[..., SuiteInputs]) -> None:
    inputs = make()
    path = inputs.evaluations["no_alsn", "2"].path("metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"retrieval/images": 21.0}))
    with pytest.raises(InputError, match=r"no_alsn 2 were measured on different data"):
        suite_results(inputs)


def test_gradient_shares_are_means_of_the_last_phase(make: Callable[..., SuiteInputs]) -> None:
    found = gradient_shares(make())
    assert found["no_alsn"] == pytest.approx({"intra": 75.0, "task": 25.0})  # kd never left 0, coarse is not the last


def test_costs_and_an_unequal_budget(make: Callable[..., SuiteInputs]) -> None:
    inputs = make(steps={"no_align": 39})
    table = suite_results(inputs)
    cost = {one.row: one for one in row_costs(inputs, table)}
    assert (cost["none"].inference, cost["none"].trained, cost["none"].updates) == (21.0e6, 23.0e6, (40,))
    assert cost["none"].step == pytest.approx(np.mean([64 / (64 + seed) for seed in range(5)]))
    assert cost["no_alsn"].relative == pytest.approx(1.0)
    assert any("not train for the same number of student updates (39, 40)" in n for n in suite_notes(inputs, table))
    assert not any("updates" in note for note in suite_notes(make(), suite_results(make())))


def test_a_step_is_compared_with_a_row_that_has_one(make: Callable[..., SuiteInputs]) -> None:
    """Row kd stands in the suite and is not trained yet: the full method takes its place, and is named."""
    inputs = make()
    names = dict(zip(EFFECTS, ["kd", *list(EFFECTS)[1:]], strict=True))

    def moved(cells: dict) -> dict:
        return {(names[row], seed): value for (row, seed), value in cells.items()}

    inputs = dataclasses.replace(
        inputs,
        rows=tuple(names.values()),
        methods={names[row]: resolve("demo", names[row]) for row in EFFECTS},
        evaluations=moved(inputs.evaluations),
        trainings=moved(inputs.trainings),
    )
    for trained, expected in ((True, "step, kd = 1"), (False, "step, full method = 1")):
        if not trained:
            unfinished = {("kd", s): RowTraining(Source(f"training kd/{s}", "s3://b/x")) for s in inputs.seeds}
            inputs = dataclasses.replace(inputs, trainings=inputs.trainings | unfinished)
        table = suite_results(inputs)
        sections = sections_of(inputs)
        (made,) = sections["costs"].tables
        assert expected in [head.label for head in made.heads]
        costs = row_costs(inputs, table)
        assert {cost.row: cost.relative for cost in costs}[cost_base(costs)] == 1.0


def test_the_papers_numbers_stand_apart_and_only_when_asked_for(make: Callable[..., SuiteInputs]) -> None:
    plain = pages(make())[0]
    assert "expectation" not in plain
    asked = make(expectations=True)
    html = pages(asked)[0]
    heading = """<h2 id="expectations">Paper's expectations (not ours)</h2>"""
    assert plain.split('<h2 id="artifacts">')[0].rstrip() == html.split(heading)[0].rstrip()
    reader = Reader(html.split(heading)[1])
    assert reader.rows[0][1] == "paper's expectation (not ours): COCO R@1"
    assert ["w/o visual pyramid", "54.1"] in reader.rows


def test_the_printed_table_is_aligned(make: Callable[..., SuiteInputs]) -> None:
    lines = suite_text(suite_results(make())).splitlines()
    assert len({len(line) for line in lines[:-2]}) == 1
    assert lines[1].split()[0] == "no_pyramid"
    assert lines[-2].split()[0] == "teacher"
    assert "no spread" in lines[-3]
    assert lines[-1].startswith("No spread: all values that a mean is over are the very same")


def test_json_holds_values_intervals_and_sources(make: Callable[..., SuiteInputs]) -> None:
    inputs = make()
    table = suite_results(inputs)
    found = json.loads(json.dumps(suite_as_json(inputs, table)))
    assert found["executions"] == {"shared": 60, "naive": 201}
    assert found["urls"]["evaluation no_alsn/1"] == "s3://bucket/evaluation no_alsn/1"
    assert len(found["rows"][0]["values"]["retrieval/mean_recall"]) == 5
    one = found["differences"]["no_alsn"]["zeroshot/top1"]
    assert set(one) == {*("mean", "low", "high", "n", "excludes_zero"), *("p", "p_holm", "seeds_and_concepts")}


def test_the_expectations_name_rows_of_their_suite() -> None:

    for name, (titles, rows) in EXPECTED.items():
        assert set(rows) <= set(SUITES[name])
        assert {len(values) for values in rows.values()} == {len(titles)}


def test_a_difference_names_the_artifacts_of_both_sides(make: Callable[..., SuiteInputs]) -> None:
    inputs = make()
    sections = sections_of(inputs)
    (made,) = sections["table4_ablations"].tables
    line = next(line for line in made.rows if line.label == label("no_align"))
    cell = next(cell for cell in line.cells if "minus full method" in cell.number)
    wanted = {f"evaluation {row}/{seed}" for row in ("no_align", "none") for seed in range(5)}
    assert set(cell.origins) == wanted


def test_table_four_says_of_ranks_where_it_has_some(make: Callable[..., SuiteInputs]) -> None:
    (made,) = sections_of(make())["table4_ablations"].tables
    assert [head.label for head in made.heads][1:3] == ["image to text R@1", "text to image R@1"]
    assert not any("Of ranks lower is better" in note for note in made.notes)
