"""Figure 4: the level weights of four kinds of sample, chosen by rules that work on any data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.report.inputs import Inputs, Missing

WEIGHTS, STATISTICS = "weights.parquet", "sample_stats.parquet"  # both in one artifact
SHARE = 0.05  # of the samples that a kind takes, the most extreme ones
LEAST = 8  # samples of a kind at least
MOST_SAMPLES = 5000  # the first of a data set, in the table's shuffled order: neighbours are looked for among them
NEIGHBOURS = 10  # of a picture that are looked through for one with other captions
SHOWN = 3  # pictures of a kind


@dataclass(frozen=True)
class Samples:
    """Training samples with their weights: keys, captions by sample, weights [n,8], teacher embeddings [n,E]."""

    keys: list[str]
    captions: list[list[str]]
    names: tuple[str, ...]
    weights: np.ndarray
    difficulty: np.ndarray
    image: np.ndarray
    text: np.ndarray


@dataclass(frozen=True)
class Rule:
    """A kind of sample. score: greatest for the samples that are most of this kind; ties go by `tie`."""

    name: str
    words: str
    score: Callable[[Samples], np.ndarray]
    tie: Callable[[Samples], np.ndarray] = lambda samples: np.zeros(len(samples.keys))


@dataclass(frozen=True)
class Kind:
    """The samples of a rule, the most extreme first, with the mean and its standard error for each level."""

    rule: Rule
    keys: list[str]
    mean: dict[str, float]
    error: dict[str, float]


def word_count(samples: Samples) -> np.ndarray:
    """Mean number of words of a sample's captions, [n]."""
    return np.array([np.mean([len(text.split()) for text in texts]) for texts in samples.captions])


def nearest_other(samples: Samples) -> np.ndarray:
    """Cosine to the nearest other picture that has none of its captions, in the teacher's image space, [n].

    Of the NEIGHBOURS nearest ones; -1 where all of them share a caption with it.
    """
    cosines = samples.image @ samples.image.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    texts = [{text.casefold() for text in captions} for captions in samples.captions]
    found = np.full(len(texts), -1.0)
    for i, row in enumerate(order):
        others = [j for j in row if j != i and not texts[i] & texts[j]]
        if others:
            found[i] = cosines[i, others[0]]
    return found


def agreement(samples: Samples) -> np.ndarray:
    """Cosine of the teacher's embeddings of picture and caption, [n]."""
    return np.einsum("ne,ne->n", samples.image, samples.text)


RULES = (
    Rule("simple", "fewest words a caption, the easiest first", lambda s: -word_count(s), lambda s: -s.difficulty),
    Rule("complex", "most words a caption, the hardest first", word_count, lambda s: s.difficulty),
    Rule(
        "fine-grained", "greatest cosine to a picture with other captions, in the teacher's image space", nearest_other
    ),
    Rule("abstract", "smallest cosine of picture and caption in the teacher's joint space", lambda s: -agreement(s)),
)


def choose(samples: Samples, rules: Sequence[Rule] = RULES) -> list[Kind]:
    """The samples of each rule; one sample may be of several kinds.

    Raises:
        Missing: too few samples for four kinds.
    """
    n = len(samples.keys)
    count = max(LEAST, round(SHARE * n))
    if n < 4 * LEAST:
        raise Missing(f"Missing: weights of at least {4 * LEAST} samples, to choose kinds among; there are {n}.")
    kinds = []
    for rule in rules:
        order = np.lexsort((-rule.tie(samples), -rule.score(samples)))[:count]
        rows = samples.weights[order]
        mean = dict(zip(samples.names, rows.mean(0).tolist(), strict=True))
        error = dict(zip(samples.names, (rows.std(0, ddof=1) / len(rows) ** 0.5).tolist(), strict=True))
        kinds.append(Kind(rule, [samples.keys[i] for i in order], mean, error))
    return kinds


def read(inputs: Inputs) -> Samples:
    """Weights and statistics of the training samples, joined by key with their captions.

    Raises:
        Missing: one of the tables is not there.
    """
    source = inputs.first(WEIGHTS, "joint", "alsn")
    weights = source.parquet(WEIGHTS).slice(0, MOST_SAMPLES)
    statistics = source.head(STATISTICS, MOST_SAMPLES, ["key", "teacher_image", "teacher_text"])
    captions = captions_of(inputs, "train")
    places = {key: i for i, key in enumerate(statistics["key"].to_pylist())}
    kept = [i for i, key in enumerate(weights["key"].to_pylist()) if key in places and key in captions]
    chosen = weights.take(kept)
    keys = chosen["key"].to_pylist()
    rows = statistics.take([places[key] for key in keys])
    names = tuple(name for name in ALL_LEVELS if f"w_{name}" in weights.column_names)
    return Samples(
        keys,
        [captions[key] for key in keys],
        names,
        np.stack([chosen[f"w_{name}"].to_numpy() for name in names], axis=1).astype(float),
        chosen["difficulty"].to_numpy().astype(float),
        unit(rows["teacher_image"]),
        unit(rows["teacher_text"]),
    )


def captions_of(inputs: Inputs, split: str) -> Mapping[str, list[str]]:
    """Captions by key, from the shards' index."""
    index = inputs.source("shards").parquet("index.parquet")
    index = index.filter(pc.equal(index["split"], split))
    return dict(zip(index["key"].to_pylist(), index["captions"].to_pylist(), strict=True))


def unit(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists as rows of length 1, [n,E]."""
    rows = np.stack(column.to_numpy()).astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
