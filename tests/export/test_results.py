"""The card's table of results on answers that can be counted by hand."""

import pytest

from cmapkd_core.export.card_results import of_run, of_suite


def ranks(*places):
    return {f"q{i}": {"rank": rank, "correct": [], "top": []} for i, rank in enumerate(places)}


def test_intervals_over_queries_hold_the_value_and_shrink_with_their_number():
    def interval(copies):
        metrics = {"retrieval/i2t/R@1": 25.0, "retrieval/i2t/median_rank": 3.5, "retrieval/i2t/chance/R@1": 1.0}
        details = {"retrieval": {"i2t": ranks(*([1, 3, 4, 9] * copies)), "t2i": ranks(1, 2)}}
        return {row.name: row for row in of_run(metrics, details)}

    few, many = interval(10), interval(1000)
    assert set(few) == {"retrieval/i2t/R@1", "retrieval/i2t/median_rank"}
    for rows, n in ((few, 40), (many, 4000)):
        row = rows["retrieval/i2t/R@1"]
        assert row.low < row.value == 25.0 < row.high
        assert (row.n, row.chance) == (n, 1.0)
    width = {name: row.high - row.low for name, row in few.items()}
    assert many["retrieval/i2t/R@1"].high - many["retrieval/i2t/R@1"].low < width["retrieval/i2t/R@1"] / 5
    # 1.96 sqrt(0.25 0.75 / 4000) = 1.34 points on each side
    assert many["retrieval/i2t/R@1"].high == pytest.approx(26.34, abs=0.3)
    assert few["retrieval/i2t/median_rank"].low >= 1
    assert few["retrieval/i2t/median_rank"].high <= 9


def test_the_same_answers_give_the_same_interval():
    given = {"retrieval/t2i/R@5": 50.0}, {"retrieval": {"t2i": ranks(*range(1, 11))}}
    assert of_run(*given) == of_run(*given)


def test_zero_shot_counts_its_hits_over_images():
    classes = [{"class": "a", "images": 30, "top1": 100.0}, {"class": "b", "images": 10, "top1": 0.0}]
    classes.append({"class": "c", "images": 0, "top1": None})
    metrics = {"zeroshot/top1": 75.0, "zeroshot/top5": 80.0, "zeroshot/chance/top1": 33.3}
    top1, top5 = of_run(metrics, {"zeroshot": {"classes": classes}})
    assert top1.low < 75.0 < top1.high
    assert (top1.n, top1.chance) == (40, 33.3)
    assert (top5.interval, top5.n) == ("", 0)


def test_what_has_no_single_answers_has_no_interval():
    metrics = {"vqa/overall": 51.0, "retrieval/images": 2.0, "parameters/image": 5.0}
    rows = of_run(metrics, {"retrieval": {"missing": "no captions"}, "zeroshot": {"missing": "no classes"}})
    assert [(row.name, row.interval) for row in rows] == [("vqa/overall", ""), ("retrieval/images", "")]


def test_a_suite_gives_its_means_and_intervals_over_seeds():
    mean = {"mean": 30.0, "low": 28.0, "high": 32.0, "n": 5, "excludes_zero": True}
    table = {"rows": [{"name": "none", "means": {"a": mean, "b": None}}, {"name": "kd", "means": {}}]}
    (row,) = of_suite(table | {"chance": {"a": 1.0}}, "none")
    assert (row.value, row.interval, row.n, row.chance) == (30.0, "28.0 to 32.0", 5, 1.0)
    assert of_suite(table | {"chance": {}}, "absent") == []
