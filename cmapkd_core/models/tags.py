"""What open_clip's pretrained tags say of a name: two weights of one architecture may still be two models.

OpenAI trained ViT-L-14 with QuickGELU, LAION with GELU and other pixels. The tensors of both have the same names and
shapes, so a weights file alone fits either model and is right in one of them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from open_clip import get_model_config
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg

from cmapkd_core.errors import InputError
from cmapkd_core.models.open_clip_names import builtin, tags_of

FIELDS = ("mean", "std", "interpolation", "resize_mode")
Facts = dict[str, Any]  # "quick_gelu" and FIELDS


def facts_of(model: str, tag: str) -> Facts:
    """Activation and preprocessing that the weights of `tag` were trained with; "" is the plain config."""
    facts = get_pretrained_cfg(builtin(model), tag) if tag else {}
    usual = asdict(PreprocessCfg())
    plain = (get_model_config(builtin(model)) or {}).get("quick_gelu", False)
    # OpenAI trained with QuickGELU. open_clip only warns of the mismatch with the plain config; that model is wrong.
    quick = bool(plain or facts.get("quick_gelu", False))
    return {"quick_gelu": quick, **{name: plain_value(facts.get(name, usual[name])) for name in FIELDS}}


def plain_value(value: Any) -> Any:
    """A field as JSON holds it: open_clip writes means as lists here and as tuples there."""
    return list(value) if isinstance(value, list | tuple) else value


def agreed(model: str) -> Facts:
    """What all tags of a name say alike, else the plain config's: for weights that the seed draws."""
    plain, facts = facts_of(model, ""), [facts_of(model, tag) for tag in tags_of(model)]
    same = {name for name in plain if facts and all(one[name] == facts[0][name] for one in facts)}
    return plain | {name: facts[0][name] for name in same}


def of_any_file(model: str, weights: str) -> Facts:
    """What a file of a name's weights was trained with, where every tag of the name says the same.

    Raises:
        InputError: they do not; lists which say what, and how to name one.
    """
    tags = tags_of(model)
    groups: dict[str, list[str]] = {}
    for tag in tags:
        groups.setdefault(_words(facts_of(model, tag)), []).append(tag)
    if len(groups) > 1:
        listed = "\n  ".join(f"{words}: {', '.join(own)}" for words, own in groups.items())
        raise InputError(
            f"weights {weights} may be of {len(groups)} different models: the pretrained tags of {model} do not agree, "
            f"and a file does not say which it is:\n  {listed}\n"
            f"Name the tag that it is, or that it was trained on from: weights={tags[0]}@{weights}"
        )
    return facts_of(model, tags[0] if tags else "")


def _words(facts: Facts) -> str:
    activation = "QuickGELU" if facts["quick_gelu"] else "GELU"
    mean, std = (" ".join(f"{value:g}" for value in facts[name]) for name in ("mean", "std"))
    return f"{activation}, mean {mean}, std {std}, {facts['resize_mode']}, {facts['interpolation']}"
