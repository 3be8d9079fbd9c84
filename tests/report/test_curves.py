"""Curves over phases, and level weights against difficulty."""

import json

import numpy as np
import pyarrow as pa
import pytest

from cmapkd_core import storage
from cmapkd_core.report.figures.figure3_difficulty import difficulty_profile
from cmapkd_core.report.figures.style import PAGE, painted
from cmapkd_core.report.read.artifacts import Missing, Source
from cmapkd_core.report.read.history import (
    POINTS,
    STAGES,
    active_points,
    alongside,
    last_weight,
    logged_points,
    reader,
    training_curve,
)
from cmapkd_core.report.read.run_inputs import REFERENCE_WARMUP
from cmapkd_core.report.sections.losses import losses_section
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.bodies.reported import reference_warmup
from cmapkd_core.stages.execute import execute

VISION = ("P2", "P3", "P4", "P5")


def test_phases_lie_end_to_end_and_absent_ones_take_no_room(make_inputs):
    trace = logged_points(make_inputs(), *STAGES)
    curve = training_curve(trace, reader("terms", "intra"))
    assert [segment.phase for segment in curve] == ["coarse", "medium", "fine"]
    assert [list(segment.steps) for segment in curve] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], list(range(10, 18))]
    np.testing.assert_allclose(curve[0].values, [1.95, 1.9, 1.85, 1.8, 1.75])


def test_phases_in_which_a_term_is_always_zero_are_left_out(make_inputs):
    trace = logged_points(make_inputs(), *STAGES)
    curve = training_curve(active_points(trace, "terms", "policy"), reader("terms", "policy"))
    assert [segment.phase for segment in curve] == ["alsn", "fine"]


def test_weights_of_terms(make_inputs):
    trace = logged_points(make_inputs(), *STAGES)
    assert last_weight(trace, "task") == pytest.approx(0.5)
    assert last_weight(trace, "kd") == 0.0
    assert last_weight(trace, "absent") is None


def test_another_run_is_laid_over_the_phase_of_the_same_name(make_inputs):
    inputs = make_inputs()
    base = training_curve(logged_points(inputs, *STAGES), reader("terms", "task"))
    beside = alongside(logged_points(inputs, "reference"), base, reader("terms", "task"))
    assert [segment.phase for segment in beside] == ["fine"]
    assert list(beside[0].steps) == list(base[-1].steps)


def test_the_run_without_a_teacher_is_drawn_from_its_first_phase_on(make_inputs, tmp_path):
    def drawn(**more):
        (task,) = (one for one in losses_section(make_inputs(**more)).figures if one.title.startswith("task"))
        with painted(task, PAGE) as figure:
            return {tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_color() == PAGE.series[2]}

    late = drawn()
    points = [{"phase": "coarse" if s < 6 else "medium", "step": s, "terms": {"task": 3.0}} for s in range(1, 11)]
    (tmp_path / "history.json").write_text(json.dumps({"points": points}))
    warmup = Source(REFERENCE_WARMUP, "s3://bucket/warmup/1", frozenset({"history.json"}), tmp_path.__truediv__)
    whole = drawn(more={REFERENCE_WARMUP: warmup})
    assert late == {tuple(range(10, 18))}
    assert whole == late | {tuple(range(5)), tuple(range(5, 10))}
    gone = losses_section(make_inputs(more={REFERENCE_WARMUP: Source(REFERENCE_WARMUP, "s3://bucket/warmup/1")}))
    assert gone.missing == ("Missing: the reference_warmup artifact s3://bucket/warmup/1 holds no history.json.",)


def test_a_training_s_warm_up_is_found_by_its_manifest(tmp_path):
    request = Request("tiny", str(tmp_path))

    def made(name, **inputs):
        def body(context):
            (context.out / "history.json").write_text('{"points": []}')
            return {}

        url = f"{tmp_path}/{name}/0"
        return execute(request, name, url=url, fields={}, inputs=inputs, body=body)

    first = made("warmup")
    joint = Artifact.open(made("joint", init=first))
    found = reference_warmup(joint)[REFERENCE_WARMUP]
    assert (found.url, found.json("history.json")) == (first, {"points": []})
    storage.delete_tree(first)
    assert reference_warmup(joint) == {REFERENCE_WARMUP: Source(REFERENCE_WARMUP, first)}
    assert reference_warmup(Artifact.open(made("alone"))) == reference_warmup(None) == {}


def test_long_curves_are_averaged_to_few_points():
    trace = [{"phase": "fine", "step": s, "terms": {"task": float(s % 2)}} for s in range(10_000)]
    (segment,) = training_curve(trace, reader("terms", "task"))
    assert len(segment.values) <= POINTS
    assert segment.values.mean() == pytest.approx(0.5, abs=0.01)


def test_no_history_names_the_stages_that_lack_it(make_inputs):
    with pytest.raises(Missing, match=r"no warmup artifact.*no alsn artifact"):
        logged_points(make_inputs(without=("warmup", "alsn")), "warmup", "alsn")


def table(difficulty, **weights):
    return pa.table({"difficulty": difficulty, **{f"w_{name}": values for name, values in weights.items()}})


def test_bins_and_rho_by_hand():
    difficulty = np.arange(20.0)[::-1].copy()  # rows from hard to easy
    found = difficulty_profile(table(difficulty, P2=difficulty / 100, P5=np.where(difficulty < 10, 0.8, 0.2)), VISION)
    rising, step = found.levels
    assert (rising.name, step.name, found.samples) == ("P2", "P5", 20)
    np.testing.assert_allclose(rising.mean, [0.045, 0.145])
    np.testing.assert_allclose(step.mean, [0.8, 0.2])
    np.testing.assert_allclose(step.error, [0.0, 0.0])
    assert rising.rho == pytest.approx(1.0)
    assert step.rho < -0.8
    np.testing.assert_allclose(found.centres, [25, 75])


def test_shuffling_across_samples_removes_the_relation_and_keeps_the_weights():
    generator = np.random.default_rng(0)
    difficulty = generator.standard_normal(400)
    real = difficulty_profile(table(difficulty, P2=difficulty, P3=-difficulty), VISION)
    control = difficulty_profile(table(difficulty, P2=difficulty, P3=-difficulty), VISION, seed=0)
    assert real.levels[0].rho == pytest.approx(1.0)
    assert abs(control.levels[0].rho) < 4 / 400**0.5
    assert control.levels[0].rho == pytest.approx(-control.levels[1].rho)  # a sample's weights stay together
    assert control.levels[0].mean.mean() == pytest.approx(real.levels[0].mean.mean())


def test_constant_weights_have_no_rank_correlation():
    (level,) = difficulty_profile(table(np.arange(30.0), P2=np.full(30, 0.25)), ("P2",)).levels
    assert level.rho is None


def test_too_few_samples_or_no_weights_are_missing():
    with pytest.raises(Missing, match="at least 8 samples"):
        difficulty_profile(table(np.arange(5.0), P2=np.arange(5.0)), VISION)
    with pytest.raises(Missing, match="P2, P3, P4, P5"):
        difficulty_profile(table(np.arange(50.0), L1=np.arange(50.0)), VISION)
