"""The tasks a model is measured on: each takes a `Subject` and gives flat metrics and a detail to keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmapkd_core.config import BY_GROUP, EvaluateConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate import protocol, retrieval, right_answers, zeroshot
from cmapkd_core.evaluate.classnames import load_class_names
from cmapkd_core.evaluate.embed import embed_images, embed_texts
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.progress import Progress, Say


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
    out: Path  # folder of the evaluation's artifact, for files beyond the task's detail
    say: Say  # a line for the person who watches

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
            progress=Progress(self.say, "evaluate", self.shards.count(config.split), "images"),
        )

    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [n,E] of n texts."""
        progress = Progress(self.say, "evaluate", len(texts), "texts")
        return embed_texts(self.backbone, texts, self.config.batch, self.device, progress)

    def training_words(self) -> set[str]:
        """The words of all training captions, whatever share of them students saw: the teacher was fitted on all."""
        batches = self.shards.table("train").select(["captions"]).to_batches(max_chunksize=65536)
        return {word for one in batches for word in right_answers.words_of(one["captions"].flatten().to_pylist())}

    def column(self, name: str) -> list[Any]:
        """One column of the split's table."""
        return list(self.shards.table(self.config.split).column(name).to_pylist())


@dataclass
class Evaluated:
    """What a task found: numbers for the table, and the detail that the report's examples need."""

    metrics: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


def run_retrieval(subject: Subject) -> Evaluated:
    """Images to captions (i2t) and captions to images (t2i): R@k and chance in percent, median and mean rank.

    `protocol.py` says how texts that several images share are counted, and what `per_caption/` and `1k/` are. The
    detail holds, for every image by key and every distinct caption, the place of the best correct answer, the
    correct answers and the five best found with their scores.

    Raises:
        InputError: a split without images, or an image without a caption.
        NotApplicable: no image has one, as in sets of questions.
    """
    keys, captions = subject.column("key"), subject.column("captions")
    if not keys:
        split = subject.config.split
        raise InputError(
            f"split '{split}' has no image: name another with evaluate.split, or prepare data that has some there "
            f"(data.{'test' if split == 'test' else 'val'}_share, where the source names no splits)"
        )
    if not any(captions):
        raise NotApplicable(f"retrieval needs images with captions, and split '{subject.config.split}' has none")
    texts, rows = retrieval.distinct(captions)
    pairs = right_answers.right_pairs(rows, subject.column("group") if subject.config.answers == BY_GROUP else None)
    metrics, rankings = protocol.measure(subject.images, subject.texts(texts), rows, pairs)
    counts = {"images": len(keys), "captions": len(texts), "captions_merged": len(rows) - len(texts)}
    outcome = Evaluated({n: float(count) for n, count in counts.items()} | metrics, {"split": subject.config.split})
    if subject.config.strata:
        queries: dict[str, Sequence[Sequence[str]]] = {"i2t": captions, "t2i": [[text] for text in texts]}
        outcome.metrics |= right_answers.by_words(rankings, queries, subject.training_words())
    for name, correct, asked, offered in (("i2t", pairs, keys, texts), ("t2i", pairs.flip(1), texts, keys)):
        random = retrieval.chance(correct, len(asked), len(offered))
        outcome.metrics |= {f"{name}/chance/{metric}": value for metric, value in random.items()}
        outcome.detail[name] = _by_query(rankings[name], correct, asked, offered)
    outcome.detail["metrics"] = dict(outcome.metrics)
    return outcome


def _by_query(
    ranking: retrieval.Ranking, pairs: Tensor, asked: list[str], answers: list[str]
) -> dict[str, dict[str, Any]]:
    """The detail of each query; pairs (query, candidate) that are right, long [p,2]."""
    correct: dict[int, list[str]] = defaultdict(list)
    for query, candidate in pairs.tolist():
        correct[query].append(answers[candidate])
    rows = zip(ranking.ranks.tolist(), ranking.top.tolist(), ranking.scores.tolist(), strict=True)
    return {
        asked[query]: {
            "rank": rank,
            "correct": correct[query],
            "top": [[answers[candidate], round(score, 4)] for candidate, score in zip(top, scores, strict=True)],
        }
        for query, (rank, top, scores) in enumerate(rows)
    }


def run_zeroshot(subject: Subject) -> Evaluated:
    """Top-1 and top-5 in percent over the images that have a class; the others are counted and left out.

    The detail has a row a class: its names in the prompts, its images, its own top-1 and top-5.

    Raises:
        InputError: templates or class names that cannot be used.
        NotApplicable: no image of the split has a class, or there are fewer than two classes.
    """
    names, classes = subject.column("class_name"), list(subject.shards.classes)
    chosen = [i for i, name in enumerate(names) if name]
    if not chosen or len(classes) < 2:
        raise NotApplicable(
            f"zero-shot classification needs images with a class, and split '{subject.config.split}' has "
            f"{len(chosen)} in {len(classes)} classes: give the source's rows classes, or leave the task out"
        )
    templates = zeroshot.load_templates(subject.config.templates)
    spoken = load_class_names(subject.config.classes, classes)
    class_embeddings = zeroshot.class_embeddings(subject.texts, spoken, templates)
    place = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([place[names[i]] for i in chosen])
    similarity = subject.images[torch.tensor(chosen, device=subject.device)] @ class_embeddings.T
    metrics, rows = zeroshot.accuracy(similarity, labels, classes, spoken)
    metrics |= {"images_without_class": float(len(names) - len(chosen)), "templates": float(len(templates))}
    rows = [{**row, "names": list(called)} for row, called in zip(rows, spoken, strict=True)]
    detail = {"split": subject.config.split, "templates": list(templates), "metrics": metrics, "classes": rows}
    return Evaluated(metrics, detail)


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
