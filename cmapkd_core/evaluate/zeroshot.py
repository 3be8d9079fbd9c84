"""Zero-shot classification: a class is the mean of its prompts' embeddings (CLIP, section 3.1.4).

Shapes: n images, C classes, T templates, E embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from cmapkd_core.data.texts import checked
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
    return tuple(checked(line, f"templates '{name}', line {number}:") for number, line in lines)


def class_embeddings(
    encode: Callable[[list[str]], Tensor], names: Sequence[Sequence[str]], templates: Sequence[str]
) -> Tensor:
    """c = norm(mean over templates t and c's names of norm(encode(t with the name))), [C,E] unit norm.

    Args:
        encode: texts -> [n,E].
        names: for each class its names, one or more.
    """
    prompts = [template.replace("{}", name) for spoken in names for name in spoken for template in templates]
    sizes = [len(spoken) * len(templates) for spoken in names]
    parts = F.normalize(encode(prompts), dim=-1).split(sizes)
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)


def accuracy(
    similarity: Tensor, labels: Tensor, classes: Sequence[str], names: Sequence[Sequence[str]] = ()
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Top-1 and top-5 in percent over all images, and per class; ties count against the model.

    Every class is a candidate. A class without an image in the split makes the task harder and has no
    accuracy of its own: its row has images 0 and top1 None, and `classes_without_image` counts it.
    Of classes with equal names (ImageNet has two missiles) the first takes the answer, as `argmax` would:
    no model can tell them apart, and `classes_with_shared_name` counts them.

    Args:
        similarity: [n,C].
        labels: [n] long.
        names: what each class is called in the prompts; (): by its own name.

    Returns:
        metrics (top1, top5, per_class_top1 = mean over classes that have images, chance, majority =
        share of the most frequent class, counts), and one row a class.
    """
    count, counts = len(classes), Counter(labels.tolist())
    twins = _twins(names or [(name,) for name in classes])
    places = ranks(similarity, _correct(labels.cpu(), twins).to(similarity.device)).cpu()
    own = [places[labels.cpu() == index] for index in range(count)]
    shares = [{f"top{k}": _share(of_class, k) for k in KS} for of_class in own]
    rows = [{"class": c, "images": len(p), **share} for c, p, share in zip(classes, own, shares, strict=True)]
    top1 = [share["top1"] for share in shares if share["top1"] is not None]
    metrics = {
        **{f"top{k}": 100 * (places <= k).double().mean().item() for k in KS},
        "per_class_top1": sum(top1) / len(top1),
        **{f"chance/top{k}": 100 * min(1.0, k / count) for k in KS},
        "majority": 100 * max(counts.values()) / len(labels),
        "images": float(len(labels)),
        "classes": float(count),
        "classes_without_image": float(count - len(top1)),
        "classes_with_shared_name": float(sum(len(group) for group in twins)),
    }
    return metrics, rows


def _share(places: Tensor, k: int) -> float | None:
    """Percent of places [n] up to k; None of none."""
    return 100 * (places <= k).double().mean().item() if len(places) else None


def _twins(names: Sequence[Sequence[str]]) -> list[list[int]]:
    """Groups of classes that have equal names, in the order of the classes; [] where every class has its own."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, spoken in enumerate(names):
        groups.setdefault(tuple(spoken), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _correct(labels: Tensor, twins: list[list[int]]) -> Tensor:
    """(image, class) that is right, [pairs,2]; twins that come after it are beside it, so that they take no place."""
    images = torch.arange(len(labels))
    pairs = [torch.stack((images, labels), dim=1)]
    for first, later in (pair for group in twins for pair in combinations(group, 2)):
        rows = images[labels == first]
        pairs.append(torch.stack((rows, torch.full_like(rows, later)), dim=1))
    return torch.cat(pairs)
