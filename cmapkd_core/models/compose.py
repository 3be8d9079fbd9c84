"""Models made of parts of two: an image tower with a head beside another's text tower, or inherited layers."""

from __future__ import annotations

from open_clip.model import CustomTextCLIP
from torch import Tensor

from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.construct import construct
from cmapkd_core.models.headed import ImageHead
from cmapkd_core.models.weights import fill

SCALARS = ("logit_scale", "logit_bias")


def with_text_of(image: Backbone, head: ImageHead, text: Backbone) -> Backbone:
    """`image`'s tower below `head` and `text`'s text tower as one model, with copies of their weights.

    It takes images as `image` does, tokenizes as `text` does, and embeds both into `text`'s space.
    """
    ours, theirs = image.config["model_cfg"], text.config["model_cfg"]
    quick = {"quick_gelu": ours.get("quick_gelu", False)}
    model_cfg = {
        "embed_dim": theirs["embed_dim"],
        "vision_cfg": ours["vision_cfg"],
        "text_cfg": theirs["text_cfg"],
        "quick_gelu": theirs.get("quick_gelu", False),
        "custom_text": True,
    }
    named = f"{image.identity.architecture} below a head, texts by {text.identity.architecture}"
    config = {"architecture": named, "model_cfg": model_cfg, "preprocess_cfg": image.config["preprocess_cfg"]}
    config["image_head"] = {"embed_dim": ours["embed_dim"], **quick}
    made = construct("composed", config, text.files, seed=0)
    tensors = {f"visual.tower.{name}": x for name, x in image.model.visual.state_dict().items()}
    tensors |= {f"visual.head.{name}": x for name, x in head.state_dict().items()}
    tensors |= {f"text.{name}": x for name, x in text_state(text).items()}
    tensors["logit_scale"] = image.model.logit_scale.detach().reshape(())
    fill(made.model, tensors, "the parts do not fit")
    return made


def text_state(backbone: Backbone) -> dict[str, Tensor]:
    """Weights of the text tower by the names of open_clip's text tower, also of the unpacked one in `CLIP`."""
    if isinstance(backbone.model, CustomTextCLIP):
        return dict(backbone.model.text.state_dict())
    state = backbone.model.state_dict()
    return {n: x for n, x in state.items() if not n.startswith("visual.") and n not in SCALARS}


def inherit(student: Backbone, teacher: Backbone) -> dict[str, str]:
    """Fill each tower of the student with layers of the teacher's where every width is equal.

    Of N layers for n the i-th comes from layer i (N // n): 0, 2, .., 22 of 24 for 12, in each stage of a tower
    that has several (TinyCLIP's manual inheritance in depth as released, its `interval_front`; its channel
    selection is not built). A tower's own projection is inherited with it where the joint spaces have the same width.

    Returns:
        Per tower ("image", "text") what was inherited, or the first tensor that did not fit.
    """
    towers = {
        "image": (dict(student.model.visual.state_dict()), dict(teacher.model.visual.state_dict())),
        "text": (text_state(student), text_state(teacher)),
    }
    return {name: _inherit(ours, theirs, _projections(ours)) for name, (ours, theirs) in towers.items()}


def _projections(state: dict[str, Tensor]) -> set[str]:
    return {
        n for n in state if n in ("proj", "text_projection") or n.startswith(("proj.", "head.", "text_projection."))
    }


def _inherit(ours: dict[str, Tensor], theirs: dict[str, Tensor], free: set[str]) -> str:
    deep, shallow = _depths(theirs), _depths(ours)
    sources = {name: _source(name, shallow, deep) for name in ours}
    for name, source in sources.items():
        fits = source in theirs and theirs[source].shape == ours[name].shape
        if not fits and name not in free:
            found = tuple(theirs[source].shape) if source in theirs else "no such tensor"
            return f"not inherited: {name} is {tuple(ours[name].shape)} and the teacher has {found}"
    kept = [n for n, source in sources.items() if source in theirs and theirs[source].shape == ours[n].shape]
    for name in kept:
        ours[name].copy_(theirs[sources[name]])
    return f"inherited: {len(kept)} of {len(ours)} tensors"


def _depths(state: dict[str, Tensor]) -> dict[str, int]:
    """How many numbered modules there are below each prefix."""
    found: dict[str, int] = {}
    for name in state:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                prefix = ".".join(parts[:i])
                found[prefix] = max(found.get(prefix, 0), int(part) + 1)
    return found


def layers_of(deep: int, shallow: int) -> list[int]:
    """Which of `deep` layers fill `shallow` ones, from the first on; those beyond the last do not exist."""
    return [i * max(1, deep // shallow) for i in range(shallow)]


def _source(name: str, shallow: dict[str, int], deep: dict[str, int]) -> str:
    """The teacher's name of what fills the student's tensor `name`."""
    ours: list[str] = []
    theirs: list[str] = []
    for part in name.split("."):
        there, here = ".".join(theirs), ".".join(ours)
        numbered = part.isdigit() and there in deep
        theirs.append(str(layers_of(deep[there], shallow[here])[int(part)]) if numbered else part)
        ours.append(part)
    return ".".join(theirs)
