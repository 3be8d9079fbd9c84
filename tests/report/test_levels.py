"""Figures 5 and 6 from made levels: the map is the same every time, the numbers are those of the artifact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cmapkd_core.report.figures.figure5_map import LevelMap, embed_levels
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.samples import MODELS, read_levels
from cmapkd_core.report.sections.level_sections import crossmodal_section, map_section, teacher_section


@pytest.fixture(scope="module")
def embedded() -> dict[str, LevelMap]:
    """Maps by how they were made; a map takes seconds."""
    return {}


def test_the_map_is_the_same_every_time(make_inputs, embedded):
    table = read_levels(make_inputs())
    first, second = embed_levels(table), embed_levels(table)
    embedded["made"] = first
    for model in MODELS:
        for name in ("P2", "P5"):
            np.testing.assert_array_equal(first.places[model][name], second.places[model][name])
    assert (first.samples, first.perplexity) == (16, 30.0)
    low, high = first.limits
    assert low < min(points.min() for levels in first.places.values() for points in levels.values())
    assert high > low


def test_trained_levels_lie_nearer_to_the_teachers_than_untrained_ones(make_inputs, embedded):
    found = embedded.get("made") or embed_levels(read_levels(make_inputs()))

    def apart(model: str) -> float:
        pairs = (found.places["teacher"][n] - found.places[model][n] for n in ("P2", "P3", "P4", "P5"))
        return float(np.mean([np.linalg.norm(pair, axis=1).mean() for pair in pairs]))

    assert apart("after") < apart("before")


def test_few_points_lower_the_perplexity(make_inputs):
    found = embed_levels(read_levels(make_inputs()).slice(0, 3))
    assert found.perplexity == pytest.approx((3 * 12 - 1) / 3)


def test_figure_five_has_distances_before_and_after(make_inputs):
    inputs = make_inputs()
    section = map_section(inputs)
    assert [drawing.title for drawing in section.figures] == ["Before training", "After training"]
    (made,) = section.tables
    numbers = inputs.source("levels").json("metrics.json")
    rows = {line.label: [cell.main for cell in line.cells] for line in made.rows}
    assert rows["P3"] == [
        f"{numbers[f'{kind}/P3/{when}']:.3f}" for kind in ("cosine", "cka") for when in ("before", "after")
    ]
    assert float(rows["mean"][1]) < float(rows["mean"][0])
    assert "16 held-out pictures" in section.caption
    assert "perplexity 30" in section.caption
    assert section.urls == {"levels": "s3://bucket/levels/0123"}


def test_figure_six_has_means_and_one_pair_with_a_number_for_the_diagonal(make_inputs):
    section = crossmodal_section(make_inputs())
    assert [drawing.title for drawing in section.figures] == [
        "Teacher, mean",
        "Student before training, mean",
        "Student after training, mean",
        "Teacher, one pair",
        "Student, one pair",
    ]
    (made,) = section.tables
    teacher, before, after = (cell.interval.mean for cell in made.rows[0].cells)
    assert teacher == pytest.approx(1.0, abs=0.02)
    assert before == pytest.approx(0.0, abs=0.02)
    assert after == pytest.approx(0.8, abs=0.02)
    assert "“caption " in section.caption


def test_the_pair_is_chosen_by_hash_alone(make_inputs):
    inputs = make_inputs()
    first = crossmodal_section(inputs).caption
    table = read_levels(inputs)
    import pyarrow.parquet as pq

    pq.write_table(table.take(list(range(table.num_rows))[::-1]), inputs.source("levels").path("levels.parquet"))
    assert crossmodal_section(inputs).caption == first


def test_a_method_without_levels_is_a_sentence(make_inputs):
    inputs = make_inputs()
    inputs.source("levels").path("levels.json").write_text(json.dumps({"missing": "The method kd has no levels."}))
    for make in (map_section, crossmodal_section):
        with pytest.raises(Missing, match="The method kd has no levels"):
            make(inputs)


def test_a_level_whose_explained_variance_is_negative_is_explained(make_inputs):
    inputs = make_inputs()
    (usual,) = teacher_section(inputs).tables[0].notes
    assert "Below 0: less than that" in usual
    file = inputs.source("teacher").path("fit.json")
    fit = json.loads(file.read_text())
    fit["levels"]["P2"] = {"explained_variance": -0.4, "r1": 0.9}
    fit["levels"]["L3"] = {"explained_variance": -0.1, "r1": 0.1}  # chance
    file.write_text(json.dumps(fit))
    _, meant = teacher_section(inputs).tables[0].notes
    assert meant.startswith("Below 0 here: P2, L3.")
    assert "R@1 of L3 is not clearly above chance either" in meant
