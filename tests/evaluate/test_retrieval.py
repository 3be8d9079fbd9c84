"""Recall on matrices one can read, against a naive loop, and by chunks."""

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.measure import memory_rise
from cmapkd_core.evaluate.protocol import FOLD, FOLDS, measure
from cmapkd_core.evaluate.retrieval import chance, distinct, ranks, recall, search

torch.set_num_threads(1)


def pairs(*rows):
    return torch.tensor(rows)


def naive_ranks(similarity, correct):
    """1 + number of wrong candidates at least as good as the best correct one, by loops."""
    places = []
    for row, right in zip(similarity.tolist(), correct, strict=True):
        best = max(row[c] for c in right)
        places.append(1 + sum(score >= best for c, score in enumerate(row) if c not in right))
    return places


def test_ranks_of_a_readable_matrix():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # right: 0, first
            [0.8, 0.7, 0.1, 0.9],  # right: 1, after 3 and 0
            [0.4, 0.3, 0.1, 0.2],  # right: 2, last
        ]
    )
    assert ranks(similarity, pairs([0, 0], [1, 1], [2, 2])).tolist() == [1, 3, 4]


def test_the_best_of_several_correct_captions_counts_and_the_others_take_no_place():
    similarity = torch.tensor([[0.5, 0.9, 0.8, 0.7]])
    assert ranks(similarity, pairs([0, 1], [0, 2], [0, 0])).tolist() == [1]
    assert ranks(similarity, pairs([0, 0], [0, 3])).tolist() == [3]


def test_ties_count_against_the_model():
    assert ranks(torch.ones(3, 3), torch.arange(3)[:, None].repeat(1, 2)).tolist() == [3, 3, 3]
    assert ranks(torch.tensor([[0.5, 0.5, 0.4]]), pairs([0, 0], [0, 1])).tolist() == [1]


def test_recall_and_median_by_hand():
    found = recall(torch.tensor([1, 2, 5, 6, 10, 11]))
    middle = {"median_rank": 5.5, "mean_rank": 35 / 6, "geometric_rank": (2 * 5 * 6 * 10 * 11) ** (1 / 6)}
    assert found == pytest.approx({"R@1": 100 / 6, "R@5": 50.0, "R@10": 500 / 6, **middle})
    assert recall(torch.tensor([7, 3, 4]))["median_rank"] == 4


def random_case(seed=0, images=37, texts=53, width=8):
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(images, width, generator=generator), dim=1)
    text = F.normalize(torch.randn(texts, width, generator=generator), dim=1)
    owner = torch.randint(images, (texts,), generator=generator)
    rows = {(int(i), t) for t, i in enumerate(owner)} | {(i, i) for i in range(images)}
    return image, text, torch.tensor(sorted(rows))


def test_search_agrees_with_a_naive_loop_both_ways():
    image, text, correct = random_case()
    for queries, candidates, matches in ((image, text, correct), (text, image, correct.flip(1))):
        right = [{int(c) for q, c in matches if q == i} for i in range(len(queries))]
        if not all(right):
            continue
        found = search(queries, candidates, matches)
        assert found.ranks.tolist() == naive_ranks(queries @ candidates.T, right)


def test_chunk_size_changes_nothing():
    image, text, correct = random_case(seed=1)
    whole = search(image, text, correct, chunk=1000)
    for chunk in (1, 2, 7, 36, 37):
        part = search(image, text, correct, chunk=chunk)
        assert part.ranks.tolist() == whole.ranks.tolist()
        assert part.top.tolist() == whole.top.tolist()
        torch.testing.assert_close(part.scores, whole.scores)


def test_the_order_of_pairs_changes_nothing():
    image, text, correct = random_case(seed=2)
    shuffled = correct[torch.randperm(len(correct), generator=torch.Generator().manual_seed(0))]
    assert search(image, text, shuffled, chunk=5).ranks.tolist() == search(image, text, correct).ranks.tolist()


def test_identical_embeddings_rank_last_in_every_chunk():
    same = F.normalize(torch.ones(20, 33), dim=1)
    own = torch.arange(20)[:, None].repeat(1, 2)
    assert set(search(same, same, own, chunk=3).ranks.tolist()) == {20}


def test_top_holds_the_best_first_and_no_more_than_there_are():
    eye = torch.eye(3)
    found = search(eye, torch.tensor([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0]]), pairs([0, 0], [1, 0], [2, 1]), k=5)
    assert found.top.tolist()[:2] == [[1, 0], [0, 1]]
    assert found.scores.shape == (3, 2)


def test_shared_captions_are_correct_for_all_their_images():
    texts, rows = distinct([("a dog", "brown dog"), ("A  dog ",), ("a cat", "a cat")])
    assert texts == ["a dog", "brown dog", "a cat"]
    assert rows.tolist() == [[0, 0], [0, 1], [1, 0], [2, 2], [2, 2]]
    correct = rows.unique(dim=0)
    similarity = torch.tensor([[0.1, 0.0, 0.9], [0.9, 0.2, 0.3], [0.2, 0.1, 0.3]])
    assert ranks(similarity, correct).tolist() == [2, 1, 1]
    assert ranks(similarity.T, correct.flip(1)).tolist() == [1, 3, 3]  # the last one ties


def test_chance_is_the_mean_over_random_orders():
    # One correct of four: 1/4 at k = 1. Two of four: 2/4, and both wrong ones come first in 2/4 * 1/3 of the orders.
    assert chance(pairs([0, 0]), 1, 4) == pytest.approx({"R@1": 25.0, "R@5": 100.0, "R@10": 100.0})
    assert chance(pairs([0, 0], [0, 1]), 1, 4, ks=(1, 2)) == pytest.approx({"R@1": 50.0, "R@2": 100 * (1 - 1 / 6)})
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(20_000, 9, generator=generator)
    rows = torch.arange(20_000)
    matches = torch.cat([torch.stack((rows, torch.full_like(rows, c)), 1) for c in (0, 1, 2)])
    expected = chance(matches, 20_000, 9, ks=(1, 3))
    simulated = recall(ranks(drawn, matches), ks=(1, 3))
    assert simulated["R@1"] == pytest.approx(expected["R@1"], abs=1.5)
    assert simulated["R@3"] == pytest.approx(expected["R@3"], abs=1.5)


def test_bad_input_names_itself():
    with pytest.raises(InputError, match="NaN or Inf"):
        ranks(torch.tensor([[float("nan"), 1.0]]), pairs([0, 0]))
    with pytest.raises(InputError, match="query 1 has no correct answer"):
        ranks(torch.ones(2, 2), pairs([0, 0]))
    with pytest.raises(InputError, match="image 1 of the split has no caption"):
        distinct([("a",), ()])


def turned(*degrees):
    """Unit vectors at these angles."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def test_both_countings_of_a_shared_caption_by_hand():
    """Images at 0 and 90 degrees both say "a dog" (at 10); the second also says "b" (at 80), the third "c" (at 200)."""
    images = turned(0, 90, 180)
    _, rows = distinct([("a dog",), ("a dog", "b"), ("c",)])
    metrics, rankings = measure(images, turned(10, 80, 200), rows)
    assert rankings["i2t"].ranks.tolist() == [1, 1, 1]
    assert rankings["t2i"].ranks.tolist() == [1, 1, 1]
    assert metrics["mean_recall"] == metrics["i2t/R@1"] == metrics["t2i/mean_rank"] * 100 == 100
    # Alone, image 0 finds the other image's copy of its text in a tie with its own; the copy finds image 0 first.
    assert metrics["per_caption/i2t/R@1"] == pytest.approx(200 / 3)
    assert metrics["per_caption/i2t/mean_rank"] == pytest.approx(4 / 3)
    assert metrics["per_caption/t2i/R@1"] == pytest.approx(75)
    assert metrics["per_caption/t2i/R@5"] == 100
    assert metrics["per_caption/mean_recall"] == pytest.approx((200 / 3 + 75 + 400) / 6)


def test_both_countings_are_one_where_all_texts_differ():
    image, text, _ = random_case(seed=3, images=20, texts=60)
    rows = torch.stack((torch.arange(60) // 3, torch.arange(60)), dim=1)
    metrics, _ = measure(image, text, rows)
    merged = {name: value for name, value in metrics.items() if not name.startswith("per_caption/")}
    assert metrics == merged | {f"per_caption/{name}": value for name, value in merged.items()}
    assert len(merged) == 14


def folds_by_hand(image, text, rows):
    """Mean over five parts, each measured as a data set of its own."""
    parts = []
    for start in range(0, FOLD * FOLDS, FOLD):
        inside = [(i - start, t) for i, t in rows.tolist() if start <= i < start + FOLD]
        used = sorted({t for _, t in inside})
        part = torch.tensor([(i, used.index(t)) for i, t in inside])
        parts.append(measure(image[start : start + FOLD], text[used], part)[0])
    return {f"1k/{name}": sum(part[name] for part in parts) / FOLDS for name in parts[0]}


def test_five_folds_where_there_are_5000_images_and_only_there():
    images = FOLD * FOLDS
    image, text, _ = random_case(seed=4, images=images, texts=images + 400)
    owners = torch.cat(
        [torch.arange(images), torch.randint(images, (400,), generator=torch.Generator().manual_seed(5))]
    )
    rows = torch.stack((owners, torch.arange(images + 400)), dim=1)
    shared = torch.tensor([[7, 3], [1007, 3]])  # a text of image 3 under an image of its fold and under one of another
    rows = torch.cat([rows, shared])
    metrics, _ = measure(image, text, rows)
    folds = {name: value for name, value in metrics.items() if name.startswith("1k/")}
    assert folds == pytest.approx(folds_by_hand(image, text, rows))
    assert {f"1k/{name}" for name in metrics if not name.startswith("1k/")} == set(folds)
    assert metrics["1k/i2t/median_rank"] < metrics["i2t/median_rank"]
    fewer, _ = measure(image[:-1], text[: images - 1], rows[: images - 1])
    assert not [name for name in fewer if name.startswith("1k/")]


def test_memory_holds_a_few_blocks_of_scores_and_never_all_of_them(monkeypatch):
    block, queries, candidates = 2**20, 1000, 2**17
    monkeypatch.setattr("cmapkd_core.evaluate.retrieval.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (queries, candidates))
    own = torch.arange(queries)[:, None].repeat(1, 2)
    search(image[:8], text, own[:8])
    rise = memory_rise(lambda: search(image, text, own), torch.device("cpu"))
    if rise is None:
        pytest.skip("this system keeps no mark of its peak")
    print(f"rise {rise / 1e6:.0f} MB, all scores {4e-6 * queries * candidates:.0f} MB")
    assert rise < 4 * queries * candidates / 6
