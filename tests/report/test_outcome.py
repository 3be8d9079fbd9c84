"""The verdict of a run and of a suite, by answers and numbers that are made for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_suites import suite_inputs

from cmapkd_core.report.read.run_inputs import ROLES, RunInputs, run_results
from cmapkd_core.report.read.suite_inputs import MEAN, SuiteInputs, suite_results
from cmapkd_core.report.reports import of_run
from cmapkd_core.report.sections import outcome as outcome_section
from cmapkd_core.report.sections.outcome import LEAST, Outcome, judged, run_outcome, suite_outcome
from cmapkd_core.report.significance import Interval

NO_TEACHER, BEFORE = "the same student trained without a teacher", "the student before training"


def answered(first: int, n: int = 40) -> dict[str, Any]:
    """n pictures with a caption each; both ways the first so many are found at once, the others at place 50."""
    ranks = [1 if i < first else 50 for i in range(n)]
    return {
        "i2t": {f"p{i}": {"rank": rank, "correct": [f"c{i}"], "top": []} for i, rank in enumerate(ranks)},
        "t2i": {f"c{i}": {"rank": rank, "correct": [f"p{i}"], "top": []} for i, rank in enumerate(ranks)},
    }


Judge = Callable[..., Outcome]


@pytest.fixture
def judge(make_inputs: Callable[..., RunInputs]) -> Judge:
    """The outcome of a run whose models found so many of n pictures."""

    def of(n: int = 40, without: tuple[str, ...] = (), ablation: str = "none", **found: int) -> Outcome:
        inputs = make_inputs(without=without, ablation=ablation)
        for role, first in found.items():
            inputs.source(ROLES[role].evaluation).path("retrieval.json").write_text(json.dumps(answered(first, n)))
        return run_outcome(inputs, run_results(inputs))

    return of


@pytest.mark.parametrize(
    ("found", "tone", "sentence"),
    [
        # 30 against 20 of 40 found: 10 of 40 gain 100 points, mean 25, standard deviation sqrt(10 * 30 / (40 * 39)).
        # t(0.975, 39) = 2.0227, so 2.0227 * 100 * 0.43853 / sqrt(40) = 14.0.
        (
            {"student": 30, "reference": 20, "before": 20},
            "better",
            f"The distilled student is better than {NO_TEACHER} (mean recall +25.0 points, 95 % interval +11.0 to "
            f"+39.0), and is better than {BEFORE} (mean recall +25.0 points, 95 % interval +11.0 to +39.0).",
        ),
        (
            {"student": 20, "reference": 30, "before": 0},
            "worse",
            f"The distilled student is worse than {NO_TEACHER} (mean recall -25.0 points, 95 % interval -39.0 to "
            f"-11.0), but is better than {BEFORE} (mean recall +50.0 points, 95 % interval +33.8 to +66.2).",
        ),
        # 2 of 40: mean 5, standard deviation sqrt(2 * 38 / (40 * 39)) = 0.22072, half 7.06.
        (
            {"student": 22, "reference": 20, "before": 0},
            "unclear",
            f"The distilled student is not told apart from {NO_TEACHER} (mean recall +5.0 points, 95 % interval -2.1 "
            f"to +12.1), but is better than {BEFORE} (mean recall +55.0 points, 95 % interval +38.9 to +71.1).",
        ),
        # Worse than before training stands first, whatever the teacher gave.
        (
            {"student": 10, "reference": 10, "before": 20},
            "worse",
            f"The distilled student is worse than {BEFORE} (mean recall -25.0 points, 95 % interval -39.0 to -11.0), "
            f"but answers every test query just as {NO_TEACHER}.",
        ),
    ],
)
def test_a_run_by_hand(judge: Judge, found: dict[str, int], tone: str, sentence: str) -> None:
    outcome = judge(**found)
    assert (outcome.sentence, outcome.tone) == (sentence, tone)
    assert outcome.notes[0].startswith("Mean recall decides")
    assert outcome.notes[-1].startswith("This is one seed")


def test_without_a_reference_only_training_is_judged(judge: Judge) -> None:
    outcome = judge(without=("reference_eval",), student=30, before=20)
    assert outcome.sentence.startswith(f"The distilled student is better than {BEFORE} (mean recall +25.0 points")
    assert outcome.tone == "unclear"  # nothing is known of the teacher
    assert outcome.notes[0] == f"Not compared with {NO_TEACHER}: there is no evaluation of it."
    assert set(outcome.comparisons or {}) == {"before"}


def test_nothing_to_compare_with_and_no_student(judge: Judge) -> None:
    alone = judge(without=("reference_eval", "before_eval"))
    assert alone.sentence.startswith("The distilled student was compared with nothing")
    assert judge(without=("student_eval",)).sentence.startswith("The student was not evaluated")


def test_few_pictures_judge_nothing(judge: Judge) -> None:
    outcome = judge(n=7, student=7, reference=0, before=0)
    assert outcome.sentence == (
        f"7 test pictures are too few to judge the distilled student: {LEAST} are needed, those that share a caption "
        f"counted as one (points of mean recall: +100.0 against {NO_TEACHER}, +100.0 against {BEFORE})."
    )
    assert outcome.tone == "unclear"


def test_a_method_without_a_teacher_is_not_called_distilled(judge: Judge) -> None:
    assert judge(ablation="scratch", student=30, reference=20, before=0).sentence.startswith(
        "The student of row scratch is better"
    )


def test_single_cuts_are_named_where_their_mean_tells_nothing(make_inputs: Callable[..., RunInputs]) -> None:
    """Ten of forty come from place 20 to place 8 and eight fall from 1 to 4: R@10 rises by what R@1 loses."""
    ours, theirs = answered(20), answered(20)
    for side in ours:
        for i, query in enumerate(ours[side]):
            if i < 8:
                ours[side][query]["rank"] = 4
            if 20 <= i < 30:
                ours[side][query]["rank"], theirs[side][query]["rank"] = 8, 20
    inputs = make_inputs()
    for role, found in {"student": ours, "reference": theirs}.items():
        inputs.source(ROLES[role].evaluation).path("retrieval.json").write_text(json.dumps(found))
    inputs = dataclasses.replace(
        inputs, sources={name: one for name, one in inputs.sources.items() if name != "before_eval"}
    )
    outcome = run_outcome(inputs, run_results(inputs))
    # R@1 -20, R@5 0, R@10 +25 points: their mean +1.7.
    assert "not told apart" in outcome.sentence
    assert "(mean recall +1.7 points" in outcome.sentence
    (said,) = [note for note in outcome.notes if note.startswith("Of its six parts")]
    assert "image to text R@1 -20.0 points" in said
    assert "text to image R@10 +25.0 points" in said
    assert "R@5" not in said


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        (Interval(3.0, 2.0, LEAST), "better"),
        (Interval(-3.0, 2.0, LEAST), "worse"),
        (Interval(3.0, 4.0, LEAST), "not told apart"),
        (Interval(0.0, 0.0, LEAST), "the same"),
        (Interval(3.0, 2.0, LEAST - 1), "too few pictures"),
        (Interval(3.0, None, 1), "too few pictures"),
        (None, "too few pictures"),
    ],
)
def test_what_an_interval_says(gain: Interval | None, word: str) -> None:
    assert judged(gain) == word


def test_the_verdict_is_in_every_form(made_run: RunInputs) -> None:
    made = of_run(made_run)
    sentence = made.table["outcome"]["sentence"]
    assert made.html.index(sentence) < made.html.index("Table 2. ")
    assert made.markdown.splitlines()[2] == f"**{sentence}**"
    assert made.table["outcome"]["decides"] == "retrieval/mean_recall"
    json.dumps(made.table)


# ---- suites -----------------------------------------------------------------------------------------


def told(inputs: SuiteInputs) -> Outcome:
    return suite_outcome(inputs, suite_results(inputs))


def test_a_suite_names_what_is_better_worse_and_not_told(make: Callable[..., SuiteInputs]) -> None:
    outcome = told(make())
    assert outcome.sentence.startswith("Over 5 seeds the full method is better than 3 (w/o visual pyramid -")
    assert ") and not told apart from 1 (one-stage training +" in outcome.sentence
    assert "worse" not in outcome.sentence
    assert outcome.tone == "better"
    assert outcome.notes[0].startswith(f"The full method against {BEFORE}: better, mean recall +")
    comparisons = outcome.comparisons or {}
    ps = sorted(one["p"] for one in comparisons.values())
    # Holm's rule: the smallest times 4, the next one times 3 and so on, none below the one before.
    expected = [max(p * (4 - i) for i, p in list(enumerate(ps))[: place + 1]) for place in range(4)]
    assert sorted(one["p_holm"] for one in comparisons.values()) == pytest.approx([min(1.0, p) for p in expected])
    assert comparisons["no_pyramid"]["word"] == "worse"


def test_many_rows_that_fare_alike_are_counted_and_not_named(
    make: Callable[..., SuiteInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_section, "NAMED", 2)
    sentence = told(make()).sentence
    assert "better than 3 (named in the table of differences) and not told" in sentence
    assert "not told apart from 1 (one-stage training +" in sentence


def shifted(inputs: SuiteInputs, row: str, gains: list[float]) -> SuiteInputs:
    """A row's recalls as the full method's of the same seed and so many points more."""
    for seed, gain in zip(inputs.seeds, gains, strict=True):
        metrics = inputs.evaluations["none", seed].json("metrics.json")
        recalls = {
            k: v + gain for k, v in metrics.items() if k.rpartition("/")[2].startswith("R@") and "chance" not in k
        }
        inputs.evaluations[row, seed].path("metrics.json").write_text(json.dumps(metrics | recalls))
    return inputs


def test_holm_takes_back_what_one_interval_alone_would_call(make: Callable[..., SuiteInputs]) -> None:
    """t = 1 / (0.6325 / sqrt(5)) = 3.54 at 4 degrees of freedom: p = 0.024, and 0.096 as the least of four."""
    inputs = make()
    for row in ("no_pyramid", "no_alsn", "no_align", "one_stage"):
        shifted(inputs, row, [0.2, 0.6, 1.0, 1.4, 1.8] if row == "one_stage" else [1.0, -1.0, 0.5, -0.5, 0.1])
    outcome = told(inputs)
    one = (outcome.comparisons or {})["one_stage"]
    assert one["low"] > 0  # alone it excludes zero
    assert (one["p"], one["p_holm"]) == (pytest.approx(0.024, abs=1e-3), pytest.approx(0.096, abs=1e-3))
    assert one["word"] == "not told apart"
    assert "the full method is not told apart from 4 (" in outcome.sentence


def test_a_row_that_is_better_makes_the_tone(make: Callable[..., SuiteInputs]) -> None:
    outcome = told(shifted(make(), "one_stage", [5.0, 5.1, 5.2, 4.9, 4.8]))
    assert "worse than 1 (one-stage training +5.0)" in outcome.sentence
    assert outcome.tone == "worse"


def test_a_suite_of_one_seed_tells_nothing_apart(tmp_path: Path) -> None:
    outcome = told(suite_inputs(tmp_path, seeds=1))
    assert outcome.sentence == "With one seed no row is told apart from the full method: run the suite with more seeds."
    assert outcome.tone == "unclear"


def test_a_suite_of_which_one_seed_is_measured_says_that_others_are_to_come(make: Callable[..., SuiteInputs]) -> None:
    rows = ("none", "no_pyramid", "no_alsn", "no_align", "one_stage")
    outcome = told(make(without=tuple(f"{row}/{seed}" for row in rows for seed in range(1, 5))))
    assert outcome.sentence.endswith(": other seeds of the suite are not measured yet.")


def test_nothing_stands_in_brackets_that_is_not_there(
    make: Callable[..., SuiteInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_section, "NAMED", 0)
    assert told(make()).sentence.endswith(", of 4 other rows.")


def test_a_suite_without_its_full_method(make: Callable[..., SuiteInputs]) -> None:
    assert "was not measured" in told(make(without=tuple(f"none/{s}" for s in range(5)))).sentence
    others = tuple(f"{row}/{s}" for row in ("no_pyramid", "no_alsn", "no_align", "one_stage") for s in range(5))
    assert told(make(without=others)).sentence == "No measured row can be compared with the full method."
    assert MEAN == "retrieval/mean_recall"


def test_two_seeds_that_agree_do_not_tell_a_row_apart(make: Callable[..., SuiteInputs]) -> None:
    """Their p is far below 0.05 after Holm's rule too."""
    outcome = told(shifted(make(seeds=2), "one_stage", [5.0, 5.0001]))
    one = (outcome.comparisons or {})["one_stage"]
    assert one["p_holm"] < 0.001
    assert one["word"] == "not told apart"
    assert outcome.tone == "unclear"


@pytest.mark.parametrize(
    ("better", "worse", "unclear", "sentence"),
    [
        (["a +1.0"], [], [], "worse than 1 (a +1.0), of 1 other row; in"),
        (["a +1.0"], ["b -1.0"], [], "better than 1 (b -1.0) and worse than 1 (a +1.0), of 2 other rows; in"),
        (
            ["a +1.0"],
            ["b -1.0"],
            ["c 0.0"],
            "better than 1 (b -1.0), worse than 1 (a +1.0) and not told apart from 1 (c 0.0), of 3 other rows; in",
        ),
    ],
)
def test_the_sentence_of_a_suite(better: list[str], worse: list[str], unclear: list[str], sentence: str) -> None:
    rows = {outcome_section.BETTER: better, outcome_section.WORSE: worse, outcome_section.UNDECIDED: unclear}
    assert outcome_section._suite_sentence("5", rows).startswith(f"Over 5 seeds the full method is {sentence}")
