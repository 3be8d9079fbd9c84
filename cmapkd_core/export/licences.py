"""Under what licence weights and data are, as far as it is known here, and who says so.

A distilled student is made from the teacher's outputs, its own initial weights and the data. What their licences
ask of it is a question for people; the card brings the facts together and decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cmapkd_core.models.named import CONFIGS
from cmapkd_core.models.open_clip_names import is_tag

UNKNOWN = "not known to us: check"

# open_clip's pretrained tags by their beginning -> licence, who says so.
TAGS = {
    "openai": ("MIT, of the repository that distributes them", "https://github.com/openai/CLIP/blob/main/LICENSE"),
    "laion": ("MIT", "https://github.com/mlfoundations/open_clip/issues/177"),
    "datacomp_": ("MIT", "https://huggingface.co/laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    "dfn2b": ("apple-amlr, research only", "https://huggingface.co/apple/DFN2B-CLIP-ViT-B-16"),
    "dfn5b": ("apple-amlr, research only", "https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14-378"),
}


@dataclass(frozen=True)
class Licence:
    """what: the weights. terms: their licence in a few words, or UNKNOWN. source: who says so; "" of the unknown."""

    what: str
    terms: str
    source: str = ""


def of_weights(model: str, weights: str) -> list[Licence]:
    """The licences of a recipe's ModelConfig: one, or one for each package that fills a tower."""
    if weights == "random":
        return [Licence(f"{model}, random", "none needed: nothing was trained before", "the recipe")]
    if weights == "packages":
        return [_of_package(name) for name in _packages(model)] or [Licence(f"packages of {model}", UNKNOWN)]
    tag, _, file = weights.partition("@")
    if is_tag(model, tag):
        terms, source = next((entry for start, entry in TAGS.items() if tag.startswith(start)), (UNKNOWN, ""))
        what = f"open_clip's {tag}" + (f", or trained on from it: file {file}" if file else "")
        return [Licence(f"{model}, {what}", terms, source)]
    if weights == "own":
        return [Licence(model, UNKNOWN)]
    return [Licence(f"{model}, file {weights}", UNKNOWN)]


def _packages(model: str) -> list[str]:
    config = CONFIGS / f"{model}.json"
    entries: dict[str, Any] = json.loads(config.read_text()).get("packages", {}) if config.is_file() else {}
    return [entry["package"] for entry in entries.values()]


def _of_package(name: str) -> Licence:
    """What an installed package's metadata says; packages that carry others' weights may leave that out."""
    try:
        fields: Any = metadata.metadata(name)  # an email.message.Message, which its declared type does not say
    except metadata.PackageNotFoundError:
        return Licence(f"package {name}", UNKNOWN)
    what = f"package {fields['Name']} {fields['Version']}"
    stated = fields.get("License-Expression") or fields.get("License") or "UNKNOWN"
    if stated == "UNKNOWN":
        return Licence(what, UNKNOWN, f"its metadata leaves it open; {fields.get('Home-page') or 'no home page'}")
    return Licence(what, stated.splitlines()[0], "the package's metadata; the weights in it may have their own")


def of_data(counts: Mapping[str, int]) -> list[Licence]:
    """Licences that the data source gave with its pictures, and how many pictures have each; "" where it gave none."""
    return [
        Licence(f"{n} pictures", licence or UNKNOWN, "the data source" if licence else "")
        for licence, n in counts.items()
    ]
