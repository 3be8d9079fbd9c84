"""Which answers of a retrieval are right, and of which of its queries every word was seen in training.

Shapes: n images, T distinct texts. `rows` [captions,2] holds the (image, text) of every caption.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cmapkd_core.evaluate.retrieval import Ranking, recall

SEEN, NEW = "seen_words", "new_word"  # strata: all words of a query are in training captions, or one is not
_WORD = re.compile(r"[^\W_]+")


def right_pairs(rows: Tensor, groups: Sequence[str] | None = None) -> Tensor:
    """Every right (image, text) once, long [p,2].

    Args:
        groups: of each image; all texts of a group's images are right for all of its images. None: an image's own are.
    """
    if groups is None:
        own: Tensor = rows.unique(dim=0)
        return own
    images: dict[str, list[int]] = defaultdict(list)
    for image, group in enumerate(groups):
        images[group].append(image)
    texts: dict[str, set[int]] = defaultdict(set)
    for image, text in rows.tolist():
        texts[groups[image]].add(text)
    pairs = sorted((image, text) for group, members in images.items() for image in members for text in texts[group])
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of texts, in lower case."""
    return {word for text in texts for word in words(text)}


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def by_words(
    rankings: dict[str, Ranking], queries: dict[str, Sequence[Sequence[str]]], known: set[str]
) -> dict[str, float]:
    """Recalls and ranks of the queries whose words are all `known`, below SEEN, and of the others, below NEW.

    Args:
        rankings: the ranking of each way, such as i2t.
        queries: by way, the texts that each query stands for: an image its captions, a text itself.

    Returns:
        `STRATUM/WAY/queries`, `STRATUM/WAY/{R@k,median_rank,..}`, and over both ways `STRATUM/mean_recall` and
        `STRATUM/geometric_rank`. A stratum without a query of one way has none of that way, nor of both.
    """
    metrics: dict[str, float] = {}
    for stratum, seen in ((SEEN, True), (NEW, False)):
        ways = {}
        for way, ranking in rankings.items():
            inside = torch.tensor([known.issuperset(words_of(texts)) == seen for texts in queries[way]])
            metrics[f"{stratum}/{way}/queries"] = float(inside.sum())
            if inside.any():
                ways[way] = recall(ranking.ranks[inside])
        metrics |= {f"{stratum}/{way}/{name}": value for way, those in ways.items() for name, value in those.items()}
        if len(ways) == len(rankings):
            recalls = [value for those in ways.values() for name, value in those.items() if name.startswith("R@")]
            ranks = torch.tensor([those["geometric_rank"] for those in ways.values()], dtype=torch.float64)
            metrics[f"{stratum}/mean_recall"] = sum(recalls) / len(recalls)
            metrics[f"{stratum}/geometric_rank"] = ranks.log().mean().exp().item()
    return metrics
