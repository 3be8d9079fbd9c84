"""What a student gained on the same queries: by hand, against scipy, and where queries hang together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_rel

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.concepts import Queries, answer_groups
from cmapkd_core.report.significance import holm, mean_of_means, p_value, told_apart, wilson
from cmapkd_core.report.significance import interval as interval_of
from cmapkd_core.report.tables.gains import recall_gain

ONE_WAY = {"ks": (1,), "sides": ("i2t",)}


def answers(
    i2t: dict[str, int], t2i: dict[str, int] | None = None, captions: dict[str, list[str]] | None = None
) -> Queries:
    """Ranks of pictures and of captions; picture p has the captions `captions[p]`, or one of its own, `of p`."""
    of = captions or {picture: [f"of {picture}"] for picture in i2t}
    pictures = {caption: [p for p in i2t if caption in of[p]] for texts in of.values() for caption in texts}
    return {
        "i2t": {picture: {"rank": rank, "correct": of[picture]} for picture, rank in i2t.items()},
        "t2i": {text: {"rank": rank, "correct": pictures[text]} for text, rank in (t2i or {}).items()},
    }


def test_one_way_is_the_paired_t_interval() -> None:
    ours = answers({"a": 1, "b": 1, "c": 4, "d": 1})
    theirs = answers({"a": 1, "b": 2, "c": 1, "d": 3})
    # Differences 0, 1, -1, 1: mean 1/4, standard deviation sqrt(11/12), over sqrt(4).
    found = recall_gain(ours, theirs, **ONE_WAY)
    assert found is not None
    assert found.mean == pytest.approx(25.0)
    expected = ttest_rel([100, 100, 0, 100], [100, 0, 100, 0]).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == pytest.approx((expected.low, expected.high, 4))
    assert found.half == pytest.approx(t.ppf(0.975, 3) * 100 * (11 / 12) ** 0.5 / 2)


def test_both_ways_and_all_cuts_by_hand() -> None:
    ours = answers({"a": 1, "b": 4}, {"of a": 1, "of b": 11})
    theirs = answers({"a": 2, "b": 11}, {"of a": 1, "of b": 11})
    # Of R@1, R@5, R@10 picture a gains one (1/3), b two (2/3), their captions none: means 50 and 0, together 25.
    # By picture (100/3 + 0) / 2 and (200/3 + 0) / 2: standard deviation (100/6) / sqrt(2), over sqrt(2).
    found = recall_gain(ours, theirs)
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(25.0), 2)
    assert found.half == pytest.approx(t.ppf(0.975, 1) * 100 / 12)


def test_pictures_that_share_a_caption_are_one() -> None:
    captions = {"a": ["x"], "b": ["x", "y"], "c": ["z"]}
    groups = answer_groups(answers({"a": 1, "b": 1, "c": 1}, {"x": 1, "y": 1, "z": 1}, captions))
    linked = [("i2t", "a"), ("i2t", "b"), ("t2i", "x"), ("t2i", "y")]
    assert len({groups[query] for query in linked}) == 1
    assert groups["i2t", "c"] == groups["t2i", "z"] != groups["i2t", "a"]
    found = recall_gain(*(answers({"a": r, "b": r, "c": 1}, None, captions) for r in (1, 2)), **ONE_WAY)
    # Gains 100, 100 of one group and 0 of the other: sums of influence 2/9 and -2/9 of 100, G / (G - 1) = 2.
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(200 / 3), 2)
    assert found.half == pytest.approx(t.ppf(0.975, 1) * 100 * (2 * 2 * (2 / 9) ** 2) ** 0.5)


def test_groups_of_one_are_the_t_interval_of_the_means() -> None:
    draw = np.random.default_rng(0)
    one, other = ({str(i): float(v) for i, v in enumerate(draw.normal(1, 2, 30))} for _ in range(2))
    found = mean_of_means([one, other], {name: name for name in one})
    expected = interval_of([(one[name] + other[name]) / 2 for name in one])
    assert (found.mean, found.half, found.n) == pytest.approx((expected.mean, expected.half, expected.n))


def test_many_captions_of_a_picture_do_not_narrow_the_interval() -> None:
    """A picture whose five captions always agree is one observation and not five."""
    few = {f"{i}": float(i % 2) for i in range(10)}
    many = {f"{i}.{j}": float(i % 2) for i in range(10) for j in range(5)}
    found = mean_of_means([many], {name: name.partition(".")[0] for name in many})
    assert found.half == pytest.approx(interval_of(list(few.values())).half)


def test_equal_answers_have_no_spread_and_other_queries_are_refused() -> None:
    same = answers({"a": 1, "b": 9})
    found = recall_gain(same, same, **ONE_WAY)
    assert found is not None
    assert (found.mean, found.half) == (0.0, 0.0)
    assert recall_gain({"i2t": {}}, {"i2t": {}}, **ONE_WAY) is None
    with pytest.raises(InputError, match="different queries"):
        recall_gain(same, answers({"a": 1}), **ONE_WAY)


def test_wilson_by_its_equation_and_at_the_ends() -> None:
    z = norm.ppf(0.975)
    for end in wilson(30.0, 20):  # the shares p at which |0.3 - p| is z standard errors of p
        assert abs(0.3 - end / 100) == pytest.approx(z * (end / 100 * (1 - end / 100) / 20) ** 0.5)
    low, high = wilson(0.0, 7)
    assert (low, high) == (0.0, pytest.approx(100 * z**2 / (7 + z**2)))
    assert wilson(100.0, 7) == (pytest.approx(100 - high), 100.0)


def test_p_is_that_of_the_t_test() -> None:
    one, other = [1.0, 3.0, 2.0, 5.0], [0.5, 1.0, 2.5, 2.0]
    found = p_value(interval_of([a - b for a, b in zip(one, other, strict=True)]))
    assert found == pytest.approx(ttest_rel(one, other).pvalue)
    assert p_value(interval_of([1.0, 1.0])) is None
    assert p_value(interval_of([1.0])) is None


def test_two_seeds_tell_nothing_apart() -> None:
    """However small their p: they agree by chance."""
    assert [told_apart(1e-6, seeds) for seeds in (2, 3)] == [False, True]
    assert not told_apart(0.06, 5)
    assert not told_apart(None, 5)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and none below the one before it.
    found = holm({"d": 0.5, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
