"""Right answers by concept, and strata of queries by their words, on values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cmapkd_core.evaluate.protocol import measure
from cmapkd_core.evaluate.retrieval import Ranking, distinct
from cmapkd_core.evaluate.right_answers import by_words, right_pairs


def test_all_texts_of_a_group_are_right_for_all_of_its_images() -> None:
    texts, rows = distinct([["fire engine"], ["engine of fire", "truck"], ["dog"]])
    assert texts == ["fire engine", "engine of fire", "truck", "dog"]
    assert right_pairs(rows).tolist() == [[0, 0], [1, 1], [1, 2], [2, 3]]
    grouped = right_pairs(rows, ["engine", "engine", "dog"])
    assert grouped.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 3]]


def test_a_caption_of_another_style_is_a_hit_by_group_and_a_miss_by_caption() -> None:
    """Image 0 is nearest to the caption of image 1, which is of its group; the published counting stays the same."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    _, rows = distinct([["fire engine"], ["engine of fire"], ["dog"]])
    own, _ = measure(images, texts, rows)
    grouped, _ = measure(images, texts, rows, right_pairs(rows, ["engine", "engine", "dog"]))
    assert own["i2t/R@1"] == pytest.approx(100 * 2 / 3)
    assert grouped["i2t/R@1"] == 100.0
    assert grouped["per_caption/i2t/R@1"] == own["per_caption/i2t/R@1"] == pytest.approx(100 * 2 / 3)


def test_queries_are_told_apart_by_a_word_that_training_never_had() -> None:
    def ranking(*places: int) -> Ranking:
        return Ranking(torch.tensor(places), torch.zeros(len(places), 1), torch.zeros(len(places), 1))

    found = {"i2t": ranking(1, 16), "t2i": ranking(1, 4, 12)}
    queries = {"i2t": [["a red dog"], ["a wolf", "Dog"]], "t2i": [["a red dog"], ["a wolf"], ["Dog"]]}
    metrics = by_words(found, queries, {"a", "red", "dog"})
    assert (metrics["seen_words/i2t/queries"], metrics["seen_words/t2i/queries"]) == (1, 2)
    assert (metrics["new_word/i2t/queries"], metrics["new_word/t2i/queries"]) == (1, 1)
    assert metrics["seen_words/t2i/R@1"] == 50
    assert metrics["seen_words/mean_recall"] == pytest.approx((3 * 100 + 3 * 50) / 6)
    assert metrics["seen_words/geometric_rank"] == pytest.approx(math.sqrt(1 * math.sqrt(12)))
    assert metrics["new_word/geometric_rank"] == pytest.approx(8)


def test_a_stratum_without_queries_has_no_recall() -> None:
    found = {"i2t": Ranking(torch.tensor([3]), torch.zeros(1, 1), torch.zeros(1, 1))}
    metrics = by_words(found, {"i2t": [["dog"]]}, {"dog"})
    assert metrics["new_word/i2t/queries"] == 0
    assert not {"new_word/mean_recall", "new_word/i2t/R@1"} & metrics.keys()
