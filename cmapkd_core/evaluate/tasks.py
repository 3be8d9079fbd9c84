"""The tasks a model is measured on: each takes a `Subject` and gives flat metrics and a detail to keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmapkd_core.config import EvaluateConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate import retrieval, zeroshot
from cmapkd_core.evaluate.embed import embed_images, embed_texts
from cmapkd_core.models.backbones import Backbone

TOP = 5  # found answers kept per query, for the report's examples


class NotApplicable(InputError):
    """The data cannot be asked this task, such as zero-shot classification of pictures without a class."""


@dataclass
class Subject:
    """A model and the split it is measured on; the images are embedded once for all tasks."""

    backbone: Backbone
    shards: ShardSet
    config: EvaluateConfig
    workers: int
    device: torch.device
    progress: Callable[[int], None]  # images embedded so far
    out: Path  # folder of the evaluation's artifact, for files beyond the task's detail
    say: Callable[[str], None]  # a line for the person who watches; one that ends in a new line stays

    @cached_property
    def images(self) -> Tensor:
        """[n,E], in the order of the split's table."""
        config = self.config
        return embed_images(
            self.backbone,
            self.shards,
            config.split,
            batch=config.batch,
            workers=self.workers,
            device=self.device,
            progress=self.progress,
        )

    def texts(self, texts: list[str]) -> Tensor:
        """[len(texts),E]."""
        return embed_texts(self.backbone, texts, self.config.batch, self.device)

    def column(self, name: str) -> list[Any]:
        """One column of the split's table."""
        return list(self.shards.table(self.config.split).column(name).to_pylist())


@dataclass
class Outcome:
    """What a task found: numbers for the table, and the detail that the report's examples need."""

    metrics: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


def run_retrieval(subject: Subject) -> Outcome:
    """Images to captions (i2t) and captions to images (t2i): R@k and chance in percent, median rank.

    The detail holds, for every image by key and every distinct caption, the place of the best correct
    answer, the correct answers and the five best found with their scores.

    Raises:
        InputError: a split without images, or an image without a caption.
    """
    keys, captions = subject.column("key"), subject.column("captions")
    if not keys:
        raise InputError(f"split '{subject.config.split}' has no image: raise data.test_share or name another split")
    texts, pairs = retrieval.distinct(captions)
    text_embeddings = subject.texts(texts)
    outcome = Outcome({"images": float(len(keys)), "captions": float(len(texts))}, {"split": subject.config.split})
    sides = {
        "i2t": (subject.images, text_embeddings, pairs, keys, texts),
        "t2i": (text_embeddings, subject.images, pairs.flip(1), texts, keys),
    }
    for name, (queries, candidates, correct, asked, answers) in sides.items():
        found = retrieval.search(queries, candidates, correct, k=TOP)
        random = retrieval.chance(correct, len(asked), len(answers))
        values = {**retrieval.recall(found.ranks), **{f"chance/{k}": v for k, v in random.items()}}
        outcome.metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        outcome.detail[name] = _by_query(found, correct, asked, answers)
    outcome.detail["metrics"] = dict(outcome.metrics)
    return outcome


def _by_query(
    found: retrieval.Ranking, pairs: Tensor, asked: list[str], answers: list[str]
) -> dict[str, dict[str, Any]]:
    correct: dict[int, list[str]] = defaultdict(list)
    for query, candidate in pairs.tolist():
        correct[query].append(answers[candidate])
    rows = zip(found.ranks.tolist(), found.top.tolist(), found.scores.tolist(), strict=True)
    return {
        asked[query]: {
            "rank": rank,
            "correct": correct[query],
            "top": [[answers[candidate], round(score, 4)] for candidate, score in zip(top, scores, strict=True)],
        }
        for query, (rank, top, scores) in enumerate(rows)
    }


def run_zeroshot(subject: Subject) -> Outcome:
    """Top-1 and top-5 in percent over the images that have a class; the others are counted and left out.

    Raises:
        NotApplicable: no image of the split has a class, or there are fewer than two classes.
    """
    names, classes = subject.column("class_name"), list(subject.shards.classes)
    chosen = [i for i, name in enumerate(names) if name]
    if not chosen or len(classes) < 2:
        raise NotApplicable(
            f"zero-shot classification needs images with a class, and split '{subject.config.split}' has "
            f"{len(chosen)} in {len(classes)} classes: give the source a class column, or leave the task out"
        )
    templates = zeroshot.load_templates(subject.config.templates)
    class_embeddings = zeroshot.class_embeddings(subject.texts, classes, templates)
    place = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([place[names[i]] for i in chosen])
    similarity = subject.images[torch.tensor(chosen, device=subject.device)] @ class_embeddings.T
    metrics, rows = zeroshot.accuracy(similarity, labels, classes)
    metrics |= {"images_without_class": float(len(names) - len(chosen)), "templates": float(len(templates))}
    detail = {"split": subject.config.split, "templates": list(templates), "metrics": metrics, "classes": rows}
    return Outcome(metrics, detail)


def count_parameters(backbone: Backbone) -> dict[str, float]:
    """Parameters of the image tower and of the text tower, each with its projection, without the logit scale."""
    image = sum(p.numel() for p in backbone.model.visual.parameters())
    scalars = ("logit_scale", "logit_bias")
    text = sum(
        p.numel()
        for name, p in backbone.model.named_parameters()
        if not name.startswith("visual.") and name not in scalars
    )
    return {"parameters/image": float(image), "parameters/text": float(text)}
