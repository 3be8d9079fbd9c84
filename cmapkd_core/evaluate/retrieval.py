"""Ranks and recall at k with several correct answers a query; `protocol.py` says what a query is.

Shapes: Q queries, C candidates, E embedding width. `pairs` [n,2] holds every correct (query, candidate).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmapkd_core.errors import InputError

KS = (1, 5, 10)

# Scores this close are a tie. Above the rounding of a float32 dot product of unit vectors, whose last
# bits depend on the size of the block it was computed in; so a chunk's size cannot change a rank.
TIE = 1e-6

# Scores that stand in memory at once: 16 MB of float32. Larger blocks cost a CPU more in fresh pages than they save.
BLOCK = 2**22


@dataclass(frozen=True)
class Ranking:
    """What a search found, one row a query."""

    ranks: Tensor  # [Q] long, place of the best correct candidate, from 1
    top: Tensor  # [Q,k] long, candidates with the highest scores, best first
    scores: Tensor  # [Q,k], their scores


def ranks(similarity: Tensor, pairs: Tensor) -> Tensor:
    """Place of each query's best correct candidate, [Q] from 1.

    place = 1 + number of wrong candidates that score at least as high (within `TIE`). Ties therefore
    count against the model: one that gives every input the same embedding is last, not first. Other
    correct candidates take no place.

    Args:
        similarity: [Q,C] finite scores.
        pairs: [n,2] long, every correct (query, candidate) once; at least one for each query.

    Raises:
        InputError: scores that are not finite, or a query without a correct candidate.
    """
    query, candidate = pairs.unbind(1)
    if not all(torch.isfinite(extreme) for extreme in similarity.aminmax()):  # both are NaN where one score is
        raise InputError("similarities hold NaN or Inf: the model's embeddings are broken; look at its training loss")
    counts = torch.bincount(query, minlength=len(similarity))
    if bool((counts == 0).any()):
        raise InputError(f"query {int((counts == 0).nonzero()[0])} has no correct answer: give every image a caption")
    right = similarity[query, candidate]
    best = similarity.new_full((len(similarity),), float("-inf")).scatter_reduce(0, query, right, "amax") - TIE
    as_high = (similarity >= best[:, None]).sum(dim=1, dtype=torch.int32).long()
    return 1 + as_high - torch.zeros_like(as_high).index_add(0, query, (right >= best[query]).long())


def search(queries: Tensor, candidates: Tensor, pairs: Tensor, k: int = 5, chunk: int = 0) -> Ranking:
    """Rank all candidates for each query, a chunk of queries at a time.

    The full [Q,C] matrix never stands in memory; a chunk's [chunk,C] does, and its size changes no rank.

    Args:
        queries: [Q,E] unit norm.
        candidates: [C,E] unit norm, same device.
        pairs: [n,2] long as for `ranks`.
        k: how many of the best candidates to keep (fewer where there are fewer).
        chunk: queries at a time; 0: as many as fit `BLOCK` scores.

    Raises:
        InputError: as `ranks`.
    """
    chunk, k = chunk or max(1, BLOCK // max(1, len(candidates))), min(k, len(candidates))
    pairs = pairs[pairs[:, 0].argsort()].to(queries.device)
    # Made beforehand: small results kept from every chunk pin the heap between the freed blocks, and measured memory
    # grew with the number of chunks to more than all scores take.
    places = torch.empty(len(queries), dtype=torch.long)
    top, scores = torch.empty(len(queries), k, dtype=torch.long), torch.empty(len(queries), k, dtype=queries.dtype)
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ candidates.T
        part = slice(start, start + len(similarity))
        bounds = torch.tensor([part.start, part.stop], device=pairs.device)
        low, high = torch.searchsorted(pairs[:, 0].contiguous(), bounds).tolist()
        places[part] = ranks(similarity, pairs[low:high] - torch.tensor([start, 0], device=pairs.device)).cpu()
        best = similarity.topk(k, dim=1)
        top[part], scores[part] = best.indices.cpu(), best.values.cpu()
    return Ranking(places, top, scores)


def recall(places: Tensor, ks: Sequence[int] = KS) -> dict[str, float]:
    """R@k in percent; median (mean of the middle two of an even number), mean and geometric mean of [Q] ranks.

    The geometric mean takes in every query, and a rank that halves counts the same at the top and far below it. Between
    seeds it varies far less than R@k does, which sees only those queries that cross k.
    """
    values = {f"R@{k}": 100 * (places <= k).double().mean().item() for k in ks}
    ordered = places.double().sort().values  # torch's quantile takes 16 million values at most
    middle = ordered[[(len(ordered) - 1) // 2, len(ordered) // 2]].mean()
    averages = {"mean_rank": ordered.mean().item(), "geometric_rank": ordered.log().mean().exp().item()}
    return {**values, "median_rank": middle.item(), **averages}


def chance(pairs: Tensor, queries: int, candidates: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """R@k in percent that random orders give on average.

    A query with m correct of C candidates is missed by k random ones with probability
    prod_{j<m} (C - k - j) / (C - j).
    """
    correct = torch.bincount(pairs[:, 0], minlength=queries).double()
    values = {}
    for k in ks:
        missed = torch.ones_like(correct)
        for j in range(int(correct.max())):
            factor = max(0, candidates - k - j) / (candidates - j)
            missed = torch.where(j < correct, missed * factor, missed)
        values[f"R@{k}"] = 100 * (1 - missed).mean().item()
    return values


def distinct(captions: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """Distinct texts in order of appearance, and the (image, text) of every caption in order, [n,2] long.

    Texts are compared without case and surrounding or repeated spaces.

    Raises:
        InputError: an image without a caption.
    """
    texts: dict[str, int] = {}
    spelled: list[str] = []
    rows: list[tuple[int, int]] = []
    for image, group in enumerate(captions):
        if not group:
            raise InputError(f"image {image} of the split has no caption: retrieval needs at least one each")
        for text in group:
            folded = " ".join(text.lower().split())
            if folded not in texts:
                texts[folded] = len(spelled)
                spelled.append(text)
            rows.append((image, texts[folded]))
    return spelled, torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
