"""What concepts add to a suite's numbers, from the ranks that evaluations keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from made_suites import files

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.concepts import class_sums, concept_sums


def detail(cat: int = 1) -> dict[str, Any]:
    """Two pictures of a cat that share both captions, and a dog with its own."""
    cats, dogs = ["a cat", "cat"], ["a dog"]
    return {
        "i2t": {
            "cat 1": {"rank": cat, "correct": cats},
            "cat 2": {"rank": 7, "correct": cats},
            "dog": {"rank": 20, "correct": dogs},
        },
        "t2i": {
            "a cat": {"rank": 2, "correct": ["cat 1", "cat 2"]},
            "cat": {"rank": 1, "correct": ["cat 1", "cat 2"]},
            "a dog": {"rank": 3, "correct": ["dog"]},
        },
        "split": "test",
    }


def test_sums_of_each_concept_by_hand(tmp_path: Path) -> None:
    found = concept_sums({("none", "0"): files(tmp_path, "a", retrieval=detail())})
    assert found is not None
    assert found.counts.tolist() == [[2, 2], [1, 1]]
    of_cats, of_dogs = found.sums["none", "0"]
    assert of_cats.tolist() == [[1, 1, 2, pytest.approx(math.log(7))], [1, 2, 2, pytest.approx(math.log(2))]]
    assert of_dogs.tolist() == [[0, 0, 0, pytest.approx(math.log(20))], [0, 1, 1, pytest.approx(math.log(3))]]


def test_the_order_of_queries_is_of_no_account(tmp_path: Path) -> None:
    turned = {side: dict(reversed(of.items())) for side, of in detail(4).items() if side != "split"}
    sources = {"0": files(tmp_path, "a", retrieval=detail()), "1": files(tmp_path, "b", retrieval=turned)}
    found = concept_sums({("none", seed): source for seed, source in sources.items()})
    assert found is not None
    change = found.sums["none", "0"] - found.sums["none", "1"]
    assert change[0, 0].tolist() == [1, 0, 0, pytest.approx(-math.log(4))]
    assert not change[1].any()
    assert not change[0, 1].any()


def test_other_queries_or_other_right_answers_are_refused(tmp_path: Path) -> None:
    first = files(tmp_path, "first", retrieval=detail())
    fewer = {side: dict(list(of.items())[:2]) for side, of in detail().items() if side != "split"}
    own = detail()
    own["i2t"]["cat 1"]["correct"] = ["cat"]
    for name, other in (("fewer", fewer), ("own", own)):
        second = files(tmp_path, name, retrieval=other)
        with pytest.raises(InputError, match=rf"first and {name} have different queries or right answers"):
            concept_sums({("none", "0"): first, ("none", "1"): second})


def test_evaluations_without_ranks_are_named(tmp_path: Path) -> None:
    nothing = files(tmp_path, "nothing", retrieval={"missing": "no captions"})
    found = concept_sums(
        {
            ("kd", "0"): Source("older", "s3://b/older"),
            ("kd", "1"): nothing,
            ("none", "0"): files(tmp_path, "a", retrieval=detail()),
        }
    )
    assert found is not None
    assert list(found.sums) == [("none", "0")]
    assert "older" in found.lacking["kd", "0"]
    assert "retrieval.json" in found.lacking["kd", "1"]
    assert concept_sums({("kd", "1"): nothing}) is None


def by_class(cats: int = 3) -> dict[str, Any]:
    classes = [("cat", cats, 100 / 3), ("dog", 4, 75.0), ("owl", 0, None)]
    return {"classes": [{"class": name, "images": n, "top1": top1} for name, n, top1 in classes]}


def test_hits_of_each_class_by_hand(tmp_path: Path) -> None:
    turned = {"classes": by_class()["classes"][::-1]}
    found = class_sums(
        {
            ("none", "0"): files(tmp_path, "a", zeroshot=by_class()),
            ("none", "1"): files(tmp_path, "b", zeroshot=turned),
            ("kd", "0"): files(tmp_path, "c", zeroshot={"missing": "no classes"}),
        }
    )
    assert found is not None
    assert found.of == "classes"
    assert found.counts.tolist() == [[3], [4]]
    for seed in ("0", "1"):
        assert found.sums["none", seed].tolist() == [[[pytest.approx(1)]], [[pytest.approx(3)]]]
    assert "zeroshot.json" in found.lacking["kd", "0"]
    assert class_sums({("kd", "0"): Source("older", "s3://b/older")}) is None


def test_other_classes_are_refused(tmp_path: Path) -> None:
    first, second = (files(tmp_path, name, zeroshot=by_class(n)) for name, n in (("first", 3), ("second", 6)))
    with pytest.raises(InputError, match="first and second have different classes"):
        class_sums({("none", "0"): first, ("none", "1"): second})
