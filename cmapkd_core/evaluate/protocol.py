"""What counts as a query and as an answer in image-text retrieval, and COCO's five folds.

Merged texts (the main figures): candidates are distinct caption texts. Images that share a text are all correct
answers to it, and a text that stands under many images takes one place in a ranking, not many.

`per_caption/`: every caption is a candidate and a query of its own, and its own image the only correct answer. That
is how published figures on COCO and Flickr30K are counted, and clip-benchmark's `recall_at_k > 0`. Where all texts
differ the two are the same numbers. COCO's 25,000 test captions hold a few texts twice: there merged texts give the
model the credit that `per_caption` takes from it for the right text under another image. Ties (`retrieval.TIE`) count
against the model, also those of a text with its own copy; clip-benchmark leaves them to the order of `topk`. On random
embeddings of COCO's size that moved no figure by more than 0.004 points.

`1k/`: the mean over five folds of 1000 images each in the order of the split, with the captions of these images
alone. COCO's protocol for its 5000 test images, so only a split of exactly 5000 images has it.

Shapes: n images, T distinct texts, E embedding width. `rows` [captions,2] holds the (image, text) of every caption.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from cmapkd_core.evaluate.retrieval import Ranking, recall, search

TOP = 5  # found answers kept per query, for the report's examples
FOLD, FOLDS = 1000, 5


def measure(
    images: Tensor, texts: Tensor, rows: Tensor, pairs: Tensor | None = None
) -> tuple[dict[str, float], dict[str, Ranking]]:
    """Both countings, with COCO's folds where there are 5000 images.

    Args:
        images: [n,E] unit norm.
        texts: [T,E] unit norm, same device.
        rows: [captions,2] long, as `retrieval.distinct` gives it.
        pairs: the right (image, text) of merged texts, long [p,2]; None: those of `rows`.

    Returns:
        Metrics: `{i2t,t2i}/{R@1,R@5,R@10,median_rank,mean_rank,geometric_rank}`, `mean_recall` (of the six R@k, in
        percent) and `geometric_rank` (of both ways), for merged texts and below `per_caption/`, both again below `1k/`;
        and the rankings "i2t" and "t2i" of merged texts.

    Raises:
        InputError: embeddings that are not finite.
    """
    metrics, rankings = _countings(images, texts, rows, pairs)
    return metrics | _folds(images, texts, rows), rankings


def _countings(
    images: Tensor, texts: Tensor, rows: Tensor, pairs: Tensor | None = None
) -> tuple[dict[str, float], dict[str, Ranking]]:
    """Both countings of unit embeddings [n,E], [m,E] and captions (image, text), long [p,2]; pairs: as `measure`."""
    right = rows.unique(dim=0) if pairs is None else pairs
    metrics, rankings = _both_ways(images, texts, right)
    alone = metrics
    if not len(texts) == len(right) == len(rows):  # else each caption is a text, and right for its image alone
        image, text = rows.unbind(1)
        own = torch.stack((image, torch.arange(len(rows))), dim=1)
        alone, _ = _both_ways(images, texts[text.to(texts.device)], own)
    return metrics | {f"per_caption/{name}": value for name, value in alone.items()}, rankings


def _both_ways(images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[dict[str, float], dict[str, Ranking]]:
    """Metrics and rankings of images [n,E] among texts [m,E] and the reverse; right pairs long [p,2]."""
    sides = {"i2t": (images, texts, pairs), "t2i": (texts, images, pairs.flip(1))}
    rankings = {name: search(*side, k=TOP) for name, side in sides.items()}
    metrics = {f"{n}/{metric}": x for n, ranking in rankings.items() for metric, x in recall(ranking.ranks).items()}
    recalls = [value for name, value in metrics.items() if "/R@" in name]
    both = math.sqrt(metrics["i2t/geometric_rank"] * metrics["t2i/geometric_rank"])
    return metrics | {"mean_recall": sum(recalls) / len(recalls), "geometric_rank": both}, rankings


def _folds(images: Tensor, texts: Tensor, rows: Tensor) -> dict[str, float]:
    """Means over COCO's 1K folds of images [n,E], texts [m,E] and pairs, long [p,2]; {} of other numbers of images."""
    if len(images) != FOLD * FOLDS:
        return {}
    total: Counter[str] = Counter()
    for first in range(0, len(images), FOLD):
        inside = rows[(rows[:, 0] >= first) & (rows[:, 0] < first + FOLD)]
        used, text = inside[:, 1].unique(return_inverse=True)
        part = torch.stack((inside[:, 0] - first, text), dim=1)
        total.update(_countings(images[first : first + FOLD], texts[used.to(texts.device)], part)[0])
    return {f"1k/{name}": value / FOLDS for name, value in total.items()}
