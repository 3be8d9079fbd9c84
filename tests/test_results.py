"""Results in the documents: short tables of suites, and numbers in sentences, are those that docs/results keeps."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs_tools import tool
from manifests import manifest

from cmapkd_core.report.read.concept_sums import ConceptSums

RANK = "retrieval/geometric_rank"
REPOSITORY = Path(__file__).parents[1]
MEASURED = re.compile(r"\d+\.\d ± \d+\.\d")  # a mean with its interval
# A number with its interval over seeds, and the one over concepts too where it is there.
STATED = re.compile(
    r"([+-]?\d+\.\d)(?:\*\*)?(?: †)? \[([+-]?\d+\.\d)(?: to |, )([+-]?\d+\.\d)\]"
    r"(?: \(([+-]?\d+\.\d)(?: to |, )([+-]?\d+\.\d)\))?"
)
ONE_SEED = re.compile(r"([+-]?\d+\.\d) \(([+-]?\d+\.\d)(?: to |, )([+-]?\d+\.\d)\)")  # a number (over concepts)
PAGES = ("README.md", "docs/zh.md", "docs/method.md", "docs/method-search.md")
ENDS = re.compile(r"([\[(])([+-]?\d+\.\d)(?: to |, )([+-]?\d+\.\d)[\])]")  # [over seeds] or (and concepts)


def kept_results() -> list[dict[str, Any]]:
    """The suites whose numbers the documents show."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((REPOSITORY / "docs/results").glob("*.json"))
    ]


def test_the_short_table_of_a_suite_has_both_intervals_and_counts_all_comparisons() -> None:
    def row(name: str, ranks: list[float]) -> dict[str, object]:
        values = {str(seed): rank for seed, rank in enumerate(ranks)}
        return {"name": name, "label": name.upper(), "values": {RANK: values}}

    told = {"mean": 3.0, "low": 2.0, "high": 4.0, "excludes_zero": True, "p": 0.01, "p_holm": 0.02, "n": 3}
    wide = {"mean": -0.04, "low": -1.0, "high": 0.6, "excludes_zero": False, "p": 0.5, "p_holm": 0.5, "n": 2}
    suite = {
        "seeds": ["0", "1", "2"],
        "teachers": [{RANK: 9.0}],
        "rows": [row("none", [10, 11, 12]), row("kd", [13, 14, 15]), row("no_alsn", [10, 10, 10])],
        "differences": {
            "kd": {RANK: told | {"seeds_and_concepts": {"low": 1.5, "high": 4.5}}},
            "no_alsn": {RANK: wide | {"seeds_and_concepts": None}},
        },
        "comparisons": {"differences": 2},
    }
    half = 4.3027 / 3**0.5  # quantile of t with 2 degrees of freedom, times a spread of 1, by the root of 3
    assert tool("results_table").table(suite).splitlines()[2:] == [
        "| Teacher |  | 9.0 |  |  |  |  |",
        f"| KD |  | 14.0 ± {half:.1f} |  |  | **+3.0** † [+2.0 to +4.0] (+1.5 to +4.5) |  |",
        f"| NONE |  | 11.0 ± {half:.1f} |  |  |  |  |",
        "| NO_ALSN |  | 10.0 ± 0.0 |  |  | 0.0 [-1.0 to +0.6] n = 2 |  |",
        "",
        "Seeds: 3. Comparisons over several seeds so far, all counted for †: 2.",
    ]


def test_the_tables_of_results_are_those_of_the_kept_suites() -> None:
    tables = tool("results_table")
    pages = [*tables.documents()]
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"python docs/tools/results_table.py writes the tables of {page.name}"


def suite_of(seeds: dict[str, dict[str, float]], teacher: float = 9.0) -> dict[str, Any]:
    """A suite's JSON with the ranks of its rows by seed, and of its teacher, which is the name of its fit."""
    rows = [{"name": name, "label": name.upper(), "values": {RANK: ranks}} for name, ranks in seeds.items()]
    urls = {f"evaluation {name}/{seed}": f"/nowhere/evaluate/{name}{seed}" for name in seeds for seed in "012"}
    return {"suite": "table2", "urls": urls, "teacher": {"values": {RANK: {"": teacher}}}, "rows": rows}


def kept_of(folder: Path, name: str, suite: dict[str, Any], fit: str = "") -> Any:
    """What is kept of a suite's report. fit: the digest of the teacher's artifact, where it is not the rank."""
    rank = suite["teacher"]["values"].get(RANK, {"": 0.0})[""]
    evaluated, path = folder / f"{name}-teacher", folder / f"{name}.json"
    evaluated.mkdir(exist_ok=True)
    made_from = {"model": {"url": "/nowhere/teacher/1", "digest": fit or f"{rank:.6f}"}}
    (evaluated / "manifest.json").write_bytes(manifest(inputs=made_from))
    suite = suite | {"urls": suite["urls"] | {"teacher": str(evaluated)}}
    path.write_text(json.dumps(suite), encoding="utf-8")
    return tool("kept").of_report(path)


def sums_of(logs: list[float]) -> np.ndarray:
    """What concepts add, one query each in both directions, of ranks whose logarithms these are."""
    sums = np.zeros((len(logs), 2, 4))
    sums[..., 3] = np.array(logs)[:, None]
    return sums


def test_a_kept_suite_grows_by_rows_that_were_measured_later(tmp_path: Path) -> None:
    """The differences are made anew from all rows, with Holm's rule over all of them."""
    kept = tool("kept")
    first = kept_of(tmp_path, "first", suite_of({"none": {"0": 10.0, "1": 11.0, "2": 12.0}, "kd": {}}))
    second = kept_of(tmp_path, "second", suite_of({"none": {}, "kd": {"0": 13.0, "1": 15.0, "2": 14.0}}))
    kept.write(first, tmp_path / "kept.json")
    both = kept.as_json(kept.joined(second, [kept.load(tmp_path / "kept.json")]))
    assert [row["name"] for row in both["rows"]] == ["none", "kd"]
    one = both["differences"]["kd"][RANK]
    assert (one["mean"], one["n"], one["seeds_and_concepts"]) == (3.0, 3, None)
    assert one["p_holm"] == one["p"]
    assert both["comparisons"]["differences"] == 1
    assert both["rows"][0]["evaluations"]["2"] == "evaluate/none2"


def test_rows_are_compared_with_the_full_method_of_the_same_machine(tmp_path: Path) -> None:
    """Machine b has the full method of seeds 0 and 1 again, and a row of its own to compare with that."""
    kept = tool("kept")
    a = suite_of({"none": {"0": 10.0, "1": 11.0, "2": 12.0}, "clip_kd": {"0": 14.0, "1": 15.5, "2": 17.0}}, 9.0)
    b = suite_of({"none": {"0": 20.0, "1": 21.0}, "clip_kd": {"0": 90.0}, "kd": {"0": 21.0, "1": 22.5, "2": 23.0}}, 9.1)
    kept.write(kept_of(tmp_path, "a", a), tmp_path / "kept.json")
    kept.write(kept.joined(kept_of(tmp_path, "b", b), [kept.load(tmp_path / "kept.json")]), tmp_path / "kept.json")
    both = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    means = {name: (row[RANK]["mean"], row[RANK]["n"]) for name, row in both["differences"].items()}
    assert means == {"clip_kd": (4.5, 3), "kd": (1.25, 2)}
    values = {row["name"]: row["values"][RANK] for row in both["rows"]}
    assert values["none"] == {"0": 10.0, "1": 11.0, "2": 12.0}  # of the first machine, and of no seed twice
    assert values["clip_kd"] == {"0": 14.0, "1": 15.5, "2": 17.0}
    assert [teacher[RANK] for teacher in both["teachers"]] == [9.0, 9.1]
    table = tool("results_table").table(both)
    assert "Measured with 2 fits of the teacher; each row is compared with the full method of its own." in table


def test_a_suite_takes_over_what_another_suite_has_of_the_same_place(tmp_path: Path) -> None:
    kept = tool("kept")
    budget = suite_of({"full_3x": {"0": 10.0, "1": 11.0}})
    table2 = suite_of({"none": {}, "kd": {"0": 13.0, "1": 15.0}})
    for seed in "01":
        table2["urls"][f"evaluation none/{seed}"] = budget["urls"][f"evaluation full_3x/{seed}"]
    grown = kept.as_json(kept.joined(kept_of(tmp_path, "table2", table2), [kept_of(tmp_path, "budget", budget)]))
    assert [row["name"] for row in grown["rows"]] == ["none", "kd"]
    assert grown["differences"]["kd"][RANK]["mean"] == 3.5


def test_what_concepts_add_is_kept_and_makes_the_interval_over_them(tmp_path: Path) -> None:
    kept, concepts = tool("kept"), 30
    counts, spread = np.ones((concepts, 2)), np.linspace(1.0, 3.0, concepts)
    ranks = {"none": [2.0, 2.1, 2.3], "kd": [2.4, 2.6, 2.7]}
    logs = {
        (row, str(seed)): one + spread * (row == "kd") + 0 * spread
        for row, of in ranks.items()
        for seed, one in enumerate(of)
    }
    sums = {(row, f"{seed}@9.000000"): sums_of(list(of)) for (row, seed), of in logs.items()}
    suite = suite_of(
        {row: {seed: float(np.exp(of.mean())) for (name, seed), of in logs.items() if name == row} for row in ranks}
    )
    whole = dataclasses.replace(kept_of(tmp_path, "suite", suite), concepts={"retrieval": ConceptSums(counts, sums)})
    kept.write(whole, tmp_path / "kept.json")
    direct = kept.as_json(whole)["differences"]["kd"][RANK]
    one = kept.as_json(kept.load(tmp_path / "kept.json"))["differences"]["kd"][RANK]
    assert one["seeds_and_concepts"]["concepts"] == concepts
    assert one["seeds_and_concepts"]["high"] - one["seeds_and_concepts"]["low"] > one["high"] - one["low"]
    for end in ("low", "high"):
        assert one["seeds_and_concepts"][end] == pytest.approx(direct["seeds_and_concepts"][end], rel=1e-4)  # 32 bits
    # Without the sums the interval that was written counts, also in another suite, but not of another seed or machine.
    (tmp_path / "kept.npz").unlink()
    bare = kept.load(tmp_path / "kept.json")
    assert kept.as_json(bare)["differences"]["kd"][RANK] == direct
    for more in (suite_of({"none": {}, "kd": {}}), suite_of({"none": {"0": 2.0}, "kd": {"0": 9.0}}, 9.1)):
        grown = kept.as_json(kept.joined(kept_of(tmp_path, "more", more), [bare]))
        assert grown["differences"]["kd"][RANK] == direct
    fewer = {cell: numbers for cell, numbers in bare.values.items() if cell[1] != "2"}
    assert (
        kept.as_json(dataclasses.replace(bare, values=fewer))["differences"]["kd"][RANK]["seeds_and_concepts"] is None
    )


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs/results").glob("*.json")), ids=lambda path: path.stem)
def test_kept_results_are_what_their_own_numbers_give(path: Path) -> None:
    """Read and written again, alone and with all other files, a suite has the same differences and counts."""
    kept = tool("kept")
    suite, others = kept.load(path), map(kept.load, sorted(path.parent.glob("*.json")))
    written = json.loads(path.read_text(encoding="utf-8"))
    for again in (kept.as_json(suite), kept.as_json(kept.joined(suite, others))):
        assert again["comparisons"] == written["comparisons"]
        assert [teacher[RANK] for teacher in again["teachers"]] == [teacher[RANK] for teacher in written["teachers"]]
        assert [row["values"] for row in again["rows"]] == [row["values"] for row in written["rows"]]
        for kind in ("differences", "against_equal_weights"):
            shown = tool("results_table").difference
            assert {(name, key): shown(one) for name, row in again[kind].items() for key, one in row.items()} == {
                (name, key): shown(one) for name, row in written[kind].items() for key, one in row.items()
            }


def test_a_report_without_the_teacher_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text(json.dumps(suite_of({"none": {"0": 10.0}})), encoding="utf-8")
    with pytest.raises(ValueError, match="no evaluation of the teacher"):
        tool("kept").of_report(tmp_path / "suite.json")


def test_two_fits_of_one_rank_are_two(tmp_path: Path) -> None:
    """A machine whose teacher comes out alike may have other students: its row has no full method of the other."""
    kept = tool("kept")
    a = suite_of({"none": {"0": 10.0, "1": 11.0}, "clip_kd": {"0": 14.0, "1": 15.5}, "kd": {}})
    b = suite_of({"none": {"0": 10.5}, "clip_kd": {}, "kd": {"0": 12.0, "1": 13.0}})
    kept.write(kept_of(tmp_path, "a", a, "0a1b2c3d4e"), tmp_path / "kept.json")
    both = kept.as_json(kept.joined(kept_of(tmp_path, "b", b, "5f60718293"), [kept.load(tmp_path / "kept.json")]))
    assert both["fits"] == ["0a1b2c3d", "5f607182"]
    means = {name: (row[RANK]["mean"], row[RANK]["n"]) for name, row in both["differences"].items()}
    assert means == {"clip_kd": (4.25, 2), "kd": (1.5, 1)}


def test_two_fits_of_machines_that_compute_alike_are_one(tmp_path: Path) -> None:
    """Machine b trained the full method of seed 0 to the last digit of a's: its row has a's seed 1 to compare with."""
    kept = tool("kept")
    a = suite_of({"none": {"0": 10.0, "1": 11.0}, "clip_kd": {"0": 14.0, "1": 15.5}, "kd": {}})
    b = suite_of({"none": {"0": 10.0}, "clip_kd": {}, "kd": {"0": 12.0, "1": 13.5}})
    kept.write(kept_of(tmp_path, "a", a, "0a1b2c3d4e"), tmp_path / "kept.json")
    both = kept.joined(kept_of(tmp_path, "b", b, "5f60718293"), [kept.load(tmp_path / "kept.json")])
    kept.write(both, tmp_path / "kept.json")
    for again in (kept.as_json(both), kept.as_json(kept.load(tmp_path / "kept.json"))):
        assert again["fits"] == ["5f607182"]
        means = {name: (row[RANK]["mean"], row[RANK]["n"]) for name, row in again["differences"].items()}
        assert means == {"clip_kd": (4.25, 2), "kd": (2.25, 2)}


def evaluated_student(folder: Path, row: str, teacher: str = "/nowhere/teacher/1") -> dict[str, Any]:
    """A suite of a row and the full method, whose student learned from this teacher, of digest 0a1b2c3d4e."""
    suite = suite_of({"none": {"0": 9.0}, row: {"0": 10.0}})
    for name, inputs in {
        "student": {"teacher": {"url": teacher, "digest": "0a1b2c3d4e"}},
        "evaluated": {"model": {"url": str(folder / "student"), "digest": "1"}},
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_bytes(manifest(inputs=inputs))
    suite["urls"][f"evaluation {row}/0"] = str(folder / "evaluated")
    return suite


def test_a_student_of_another_fit_is_not_kept_as_one_of_this(tmp_path: Path) -> None:
    """Its teacher was fitted again after it was trained: it lies at the same place, below whatever root."""
    suite = evaluated_student(tmp_path, "kd", "/elsewhere/teacher/1")
    assert kept_of(tmp_path, "suite", suite, "0a1b2c3d4e").places["kd", "0"].endswith("/evaluated")
    with pytest.raises(ValueError, match=r"kd/0 is of another fit of the teacher, 0a1b2c3d, than 5f607182"):
        kept_of(tmp_path, "suite", suite, "5f60718293")


def test_a_row_with_a_teacher_of_its_own_is_compared_with_the_suites(tmp_path: Path) -> None:
    """It lies at another place, as what decides it is another."""
    suite = evaluated_student(tmp_path, "kd", "/nowhere/teacher/2")
    kept = tool("kept")
    both = kept.as_json(kept.joined(kept_of(tmp_path, "suite", suite, "5f60718293"), []))
    assert both["differences"]["kd"][RANK]["mean"] == 1.0


def test_a_student_without_a_teacher_is_of_the_suites_fit(tmp_path: Path) -> None:
    suite = evaluated_student(tmp_path, "finetune")
    (tmp_path / "student" / "manifest.json").write_bytes(manifest(inputs={"shards": {"url": "/s/1", "digest": "2"}}))
    assert ("finetune", "0") in kept_of(tmp_path, "suite", suite, "5f60718293").places


def test_rows_on_other_test_concepts_are_not_joined(tmp_path: Path) -> None:
    kept = tool("kept")
    suite = kept_of(tmp_path, "suite", suite_of({"none": {"0": 10.0}, "kd": {}}))
    other = kept_of(tmp_path, "other", suite_of({"none": {}, "kd": {"0": 12.0}}))
    mine = ConceptSums(np.ones((30, 2)), {("none", "0@9.000000"): sums_of([1.0] * 30)})
    theirs = ConceptSums(np.ones((31, 2)), {("kd", "0@9.000000"): sums_of([1.0] * 31)})
    with pytest.raises(ValueError, match="other test concepts"):
        kept.joined(
            dataclasses.replace(suite, concepts={"retrieval": mine}),
            [dataclasses.replace(other, concepts={"retrieval": theirs})],
        )


def test_numbers_that_a_row_does_not_keep_count_as_compared(tmp_path: Path) -> None:
    """Two rows with two numbers, of which one keeps the rank alone, and of the other one recall has one seed."""
    suite = suite_of({"none": {"0": 10.0, "1": 11.0, "2": 12.0}, "kd": {"0": 13.0, "1": 15.0, "2": 14.0}, "fitnet": {}})
    suite["rows"][0]["values"]["retrieval/mean_recall"] = {"0": 7.0, "1": 7.5, "2": 8.0}
    suite["rows"][2]["values"] = {RANK: {"0": 11.0, "1": 13.0, "2": 14.5}, "retrieval/mean_recall": {"0": 5.0}}
    made = tool("kept").as_json(kept_of(tmp_path, "suite", suite))
    assert made["comparisons"]["differences"] == 4
    least = min((one["p"], one["p_holm"]) for row in made["differences"].values() for one in row.values() if one["p"])
    assert least[1] == pytest.approx(4 * least[0])


def test_what_a_report_has_stays_where_an_older_file_keeps_less(tmp_path: Path) -> None:
    kept = tool("kept")
    suite = suite_of({"none": {"0": 10.0}})
    older = kept_of(tmp_path, "older", suite)
    suite["rows"][0]["values"]["retrieval/mean_recall"] = {"0": 7.0}
    grown = kept.joined(kept_of(tmp_path, "suite", suite), [older])
    assert grown.values["none", "0", "9.000000"] == {RANK: 10.0, "retrieval/mean_recall": 7.0}


def test_rows_at_one_place_all_grow(tmp_path: Path) -> None:
    kept = tool("kept")
    suite = suite_of({"none": {"0": 10.0}, "kd": {}, "with_kd": {}})
    suite["urls"]["evaluation with_kd/0"] = suite["urls"]["evaluation kd/0"]
    other = kept_of(tmp_path, "other", suite_of({"kd": {"0": 12.0}}))
    grown = kept.as_json(kept.joined(kept_of(tmp_path, "suite", suite), [other]))
    assert {row["name"]: row["values"][RANK] for row in grown["rows"]} == {
        "none": {"0": 10.0},
        "kd": {"0": 12.0},
        "with_kd": {"0": 12.0},
    }


def test_equal_weights_are_a_base_on_every_machine(tmp_path: Path) -> None:
    """They were measured on two; the oracle's weights on the second alone, where its full method was not."""
    kept = tool("kept")
    a = suite_of({"none": {"0": 10.0, "1": 11.0}, "no_alsn": {"0": 10.5, "1": 11.25}, "oracle_alsn": {}}, 9.0)
    b = suite_of({"none": {}, "no_alsn": {"0": 20.0, "1": 21.0}, "oracle_alsn": {"0": 21.0, "1": 22.5}}, 9.1)
    kept.write(kept_of(tmp_path, "a", a), tmp_path / "kept.json")
    both = kept.as_json(kept.joined(kept_of(tmp_path, "b", b), [kept.load(tmp_path / "kept.json")]))
    changes = {name: row[RANK]["mean"] for name, row in both["against_equal_weights"].items()}
    assert changes == {"none": -0.375, "oracle_alsn": 1.25}
    changes = {name: row[RANK]["mean"] for name, row in both["differences"].items() if row}
    assert changes == {"no_alsn": 0.375}


def test_the_table_of_weights_of_levels_has_the_rows_minus_equal_weights() -> None:
    one = {"mean": 0.3, "low": -0.2, "high": 0.8, "excludes_zero": False, "p": 0.1, "p_holm": 0.2, "n": 3}
    change = {key: one | {"seeds_and_concepts": None} for key in (RANK, "retrieval/i2t/R@1")}
    row = {"name": "oracle_alsn", "label": "oracle", "values": {RANK: {"0": 5.0}}}
    suite = {"seeds": ["0"], "teachers": [{RANK: 9.0}], "rows": [row], "against_equal_weights": {"oracle_alsn": change}}
    counts = {"against_equal_weights": 2}
    lines = tool("results_table").weights(suite | {"comparisons": counts}).splitlines()
    counted = "Seeds: 1. Comparisons with equal weights over several seeds so far, all counted for †: 2."
    assert lines[2:] == ["| oracle |  | +0.3 [-0.2 to +0.8] |  |", "", counted]


@pytest.mark.parametrize("name", PAGES)
def test_numbers_of_results_are_those_of_a_kept_suite(name: str) -> None:
    tables = tool("results_table")
    suites = kept_results()
    rows = {
        tuple(tables.mean(row["values"].get(key, {})) for key in tables.COLUMNS)
        for suite in suites
        for row in suite["rows"]
    }
    shown = 0
    for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and MEASURED.search(line):
            shown += 1
            assert tuple(cells[1:4]) in rows, f"{name}: no kept suite has this row: {line}"
    assert shown > 3


def text_of(name: str, tables: bool = False) -> str:
    """A document, or its sentences alone, with one blank wherever its lines are broken."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return " ".join(" ".join(line for line in lines if tables or not line.startswith("|")).split())


def of_one_seed() -> list[dict[str, Any]]:
    """Differences that have an interval over concepts alone."""
    return [
        number
        for suite in kept_results()
        for row in suite["differences"].values()
        for number in row.values()
        if number["n"] == 1 and number["seeds_and_concepts"]
    ]


def said(entry: dict[str, Any]) -> list[tuple[tuple[float, ...], tuple[float, ...] | None]]:
    """Mean and ends, and the wider ends, of a kept difference, as `x minus y` and as `y minus x`."""
    wider = entry["seeds_and_concepts"]
    numbers = [entry["mean"], entry["low"], entry["high"]]
    own, flipped = (
        tuple(float(f"{sign * x:.1f}") for x in (numbers if sign > 0 else [numbers[0], numbers[2], numbers[1]]))
        for sign in (1, -1)
    )
    ends = [wider["low"], wider["high"]] if wider else None
    wide = [tuple(float(f"{sign * x:.1f}") for x in ends[::sign]) if ends else None for sign in (1, -1)]
    return [(own, wide[0]), (flipped, wide[1])]


@pytest.mark.parametrize("name", PAGES)
def test_intervals_in_sentences_are_of_a_kept_suite_or_of_the_page_of_the_demo(name: str) -> None:
    """Both intervals are of one difference, and so is the number before them where it stands there."""
    kept = [
        one
        for suite in kept_results()
        for changes in (suite["differences"], suite["against_equal_weights"])
        for row in changes.values()
        for number in row.values()
        if number["low"] is not None
        for one in said(number)
    ]
    demo = text_of("docs/method-demo.md", tables=True)
    kept += [(tuple(map(float, found[:3])), None) for found in STATED.findall(demo)]
    ends = {one[1:] for one, _ in kept} | {wide for _, wide in kept if wide}
    single = {(own[0], wide) for one in of_one_seed() for own, wide in said(one | {"low": 0.0, "high": 0.0})}
    ends |= {wide for _, wide in single}
    ends |= {(float(low), float(high)) for _, low, high in ENDS.findall(demo)}
    text = text_of(name)
    found = ENDS.findall(text)
    assert len(found) > 2
    for kind, low, high in found:
        assert (float(low), float(high)) in ends, f"{name}: no kept suite has the interval {kind}{low} to {high}"
    stated = STATED.findall(text)
    assert len(stated) > 2
    for mean, low, high, *wide in stated:
        one = (float(mean), float(low), float(high))
        matching = [wider for numbers, wider in kept if numbers == one]
        assert matching, f"{name}: no kept suite has {mean} [{low} to {high}]"
        if wide[0]:
            assert tuple(map(float, wide)) in matching, (
                f"{name}: no kept suite has {mean} [..] ({wide[0]} to {wide[1]})"
            )
    for mean, low, high in ONE_SEED.findall(text):
        found_one = (float(mean), (float(low), float(high)))
        assert found_one in single, f"{name}: no row of one seed has {mean} ({low} to {high})"


def test_the_ranks_behind_the_weights_for_vision_transformers_are_kept_ones() -> None:
    """Seed 0 of validation, from both starts; rows that no longer exist are in the decision alone."""
    page = "docs/decisions/0034-vision-transformers-learn-from-similarities.md"
    lines = re.findall(
        r"^\| (.+?) \| ([\d.]*) ?\| ([\d.]*) ?\|$", (REPOSITORY / page).read_text(encoding="utf-8"), re.M
    )
    said_there = {name: ranks for name, *ranks in lines}
    rows = {
        "those of `bench`": "bench_weights",
        "fd and task alone": "fd_alone",
        "with all five, intra 16": "intra_16",
        "with all five, intra 4": "intra_4",
        "with all five, intra 1": "none",
        "with all five, no terms on levels": "no_levels",
        "CLIP-RD": "clip_rd",
    }
    for column, name in enumerate(("twins_val_fd_16", "twins_trained_val_fd_16")):
        kept = json.loads((REPOSITORY / f"docs/results/{name}.json").read_text(encoding="utf-8"))
        ranks = {row["name"]: f"{row['values'][RANK]['0']:.1f}" for row in kept["rows"] if "0" in row["values"][RANK]}
        assert {label: said_there[label][column] for label in rows} == {label: ranks[rows[label]] for label in rows}


def test_figures_of_kept_results_have_rows_by_rank_and_budgets_by_updates() -> None:
    """A row's series has its updates; with one number of updates there is no series."""

    def change(mean: float) -> dict[str, Any]:
        wider = {"low": mean - 2, "high": mean + 2, "n": 2, "concepts": 30, "of": "concepts"}
        ends = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 2, "seeds_and_concepts": wider}
        return {RANK: ends}

    ranks = {"clip_kd_3x": 63.0, "clip_kd": 90.0, "full_3x": 58.0, "none": 85.0, "fd_alone_3x": 62.0}
    rows = [{"name": name, "label": name, "values": {RANK: {"0": rank, "1": rank + 1}}} for name, rank in ranks.items()]
    differences = {"clip_kd_3x": change(5.0), "clip_kd": change(5.5), "fd_alone_3x": change(4.0)}
    figures = dict(tool("results_figures").drawings({"rows": rows, "differences": differences}))
    assert [*figures] == ["updates", "updates_minus_full"]
    assert "CLIP-KD 90.5 at 150, 63.5 at 450" in figures["updates"].description
    assert "CMAPKD (ours) 85.5 at 150, 58.5 at 450" in figures["updates"].description
    assert figures["updates_minus_full"].description.endswith("by updates: CLIP-KD 5.5 at 150, 5.0 at 450")
    once = {name: one for name, one in differences.items() if name.endswith("_3x")}
    suite = {"rows": [row for row in rows if row["name"].endswith("_3x")], "differences": once}
    figures = dict(tool("results_figures").drawings(suite))
    assert [*figures] == ["rank"]
    assert figures["rank"].description.endswith("in ranks: fd_alone_3x +4.0, clip_kd_3x +5.0")


def test_every_figure_of_kept_results_stands_in_a_document() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").rglob("*.md"))
    for path in (REPOSITORY / "docs/figures/results").glob("*.png"):
        assert f"figures/results/{path.name}" in pages, f"no document shows {path.name}"
