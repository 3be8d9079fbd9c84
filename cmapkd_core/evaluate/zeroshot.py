"""Zero-shot classification: a class is the mean of its prompts' embeddings (CLIP, section 3.1.4).

Shapes: n images, C classes, T templates, E embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.retrieval import ranks
from cmapkd_core.fields import nearest
from cmapkd_core.storage import read_bytes

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}", "a picture of {}", "an image of {}"),
    "clip": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),  # the 80 that CLIP used on ImageNet
}

KS = (1, 5)


def load_templates(name: str) -> tuple[str, ...]:
    """A row of TEMPLATES, or the lines of a text file (path or s3://), each with one `{}` for the class name.

    Raises:
        InputError: neither a row nor a readable file, an empty file, a line without exactly one `{}`.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        text = read_bytes(name).decode()
    except FileNotFoundError:
        known = nearest(name, tuple(TEMPLATES))
        raise InputError(f"templates '{name}' are no file and no row of TEMPLATES: {known}") from None
    except UnicodeDecodeError:
        raise InputError(
            f"templates '{name}' are not UTF-8 text: give one prompt a line, such as 'a photo of a {{}}.'"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        if line.count("{}") != 1:
            raise InputError(f"templates '{name}', line {number}: '{line}' needs {{}} once, where the class name goes")
    if not lines:
        raise InputError(f"templates '{name}' are empty: give one prompt a line, such as 'a photo of a {{}}.'")
    return tuple(line for _, line in lines)


def class_embeddings(encode: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """c = norm(mean_t norm(encode(template_t with c's name))), [C,E] unit norm.

    Args:
        encode: texts -> [n,E].
    """
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    prompt_embeddings = F.normalize(encode(prompts), dim=-1).unflatten(0, (len(classes), len(templates)))
    return F.normalize(prompt_embeddings.mean(dim=1), dim=-1)


def accuracy(
    similarity: Tensor, labels: Tensor, classes: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Top-1 and top-5 in percent over all images, and per class; ties count against the model.

    Every class is a candidate. A class without an image in the split makes the task harder and has no
    accuracy of its own: its row has images 0 and top1 None, and `classes_without_image` counts it.

    Args:
        similarity: [n,C].
        labels: [n] long.

    Returns:
        metrics (top1, top5, per_class_top1 = mean over classes that have images, chance, majority =
        share of the most frequent class, counts), and one row a class.
    """
    count = len(classes)
    places = ranks(
        similarity, torch.stack((torch.arange(len(labels)), labels.cpu()), dim=1).to(similarity.device)
    ).cpu()
    numbers = Counter(labels.tolist())
    hits = [(places[labels.cpu() == index] == 1).double() for index in range(count)]
    top1 = [100 * hit.mean().item() if len(hit) else None for hit in hits]
    rows = [{"class": c, "images": len(h), "top1": t} for c, h, t in zip(classes, hits, top1, strict=True)]
    seen = [value for value in top1 if value is not None]
    metrics = {
        **{f"top{k}": 100 * (places <= k).double().mean().item() for k in KS},
        "per_class_top1": sum(seen) / len(seen),
        **{f"chance/top{k}": 100 * min(1.0, k / count) for k in KS},
        "majority": 100 * max(numbers.values()) / len(labels),
        "images": float(len(labels)),
        "classes": float(count),
        "classes_without_image": float(count - len(seen)),
    }
    return metrics, rows
