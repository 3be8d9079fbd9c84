"""Models made of others: with a lift, an image tower with a head beside another's text tower, inherited layers."""

from __future__ import annotations

from open_clip.model import CustomTextCLIP
from torch import Tensor

from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.construct import LIFT, construct
from cmapkd_core.models.headed import ImageHead
from cmapkd_core.models.lifted import liftable
from cmapkd_core.models.weights import fill

SCALARS = ("logit_scale", "logit_bias")


def with_lift(backbone: Backbone, width: int, seed: int) -> Backbone:
    """`backbone` with its image tokens lifted to `width` channels (lifted.py), with copies of its weights.

    It embeds as before, to rounding.

    Args:
        seed: of the lift's channels beyond the tower's own.

    Raises:
        InputError: it has no place for a lift, or has one.
    """
    if LIFT in backbone.config:
        raise InputError(
            f"student.lift={width}: {backbone.identity.architecture} is lifted to {backbone.config[LIFT]['width']} "
            "channels already: leave student.lift at 0"
        )
    liftable(backbone.model.visual, width)
    made = construct(backbone.identity.architecture, {**backbone.config, LIFT: {"width": width}}, backbone.files, seed)
    tensors, own = dict(backbone.model.state_dict()), made.model.state_dict()
    image = {f"visual.tower.{n.removeprefix('visual.')}": x for n, x in tensors.items() if n.startswith("visual.")}
    rows = own["visual.tower.proj"].new_zeros(own["visual.tower.proj"].shape)
    rows[: len(tensors["visual.proj"])] = tensors["visual.proj"]
    lift = {n: x for n, x in own.items() if n.startswith("visual.lift.")}
    rest = {n: x for n, x in tensors.items() if not n.startswith("visual.")}
    fill(made.model, {**rest, **image, **lift, "visual.tower.proj": rows}, "the lifted tower does not fit")
    return made


def with_text_of(image: Backbone, head: ImageHead, text: Backbone) -> Backbone:
    """`image`'s tower below `head` and `text`'s text tower as one model, with copies of their weights.

    It takes images as `image` does, tokenizes as `text` does, and embeds both into `text`'s space.
    """
    image_config, text_config = image.config["model_cfg"], text.config["model_cfg"]
    quick = {"quick_gelu": image_config.get("quick_gelu", False)}
    model_cfg = {
        "embed_dim": text_config["embed_dim"],
        "vision_cfg": image_config["vision_cfg"],
        "text_cfg": text_config["text_cfg"],
        "quick_gelu": text_config.get("quick_gelu", False),
        "custom_text": True,
    }
    named = f"{image.identity.architecture} below a head, texts by {text.identity.architecture}"
    config = {"architecture": named, "model_cfg": model_cfg, "preprocess_cfg": image.config["preprocess_cfg"]}
    config |= {LIFT: image.config[LIFT]} if LIFT in image.config else {}
    config["image_head"] = {"embed_dim": image_config["embed_dim"], **quick}
    made = construct("composed", config, text.files, seed=0)
    tensors = {f"visual.tower.{name}": x for name, x in image.model.visual.state_dict().items()}
    tensors |= {f"visual.head.{name}": x for name, x in head.state_dict().items()}
    tensors |= {f"text.{name}": x for name, x in text_state(text).items()}
    tensors["logit_scale"] = image.model.logit_scale.detach().reshape(())
    fill(made.model, tensors, "the parts do not fit")
    return made


def image_state(backbone: Backbone) -> dict[str, Tensor]:
    """Weights of the image tower by its own names, also below a lift; of this `lift.weight` and `lift.bias`."""
    return {name.removeprefix("tower."): x for name, x in backbone.model.visual.state_dict().items()}


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
        "image": (image_state(student), image_state(teacher)),
        "text": (text_state(student), text_state(teacher)),
    }
    return {name: _inherit(own, given, _projections(own)) for name, (own, given) in towers.items()}


def _projections(state: dict[str, Tensor]) -> set[str]:
    """Names of the projections, and of a lift, among tensors [..] of any shape."""
    return {
        n
        for n in state
        if n in ("proj", "text_projection") or n.startswith(("proj.", "head.", "text_projection.", "lift."))
    }


def _inherit(student: dict[str, Tensor], teacher: dict[str, Tensor], free: set[str]) -> str:
    """Fill a tower's tensors [..] in place from the teacher's; says how many fitted, or the first that did not."""
    deep, shallow = _depths(teacher), _depths(student)
    sources = {name: _source(name, shallow, deep) for name in student}
    for name, source in sources.items():
        fits = source in teacher and teacher[source].shape == student[name].shape
        if not fits and name not in free:
            shape = tuple(teacher[source].shape) if source in teacher else "no such tensor"
            return f"not inherited: {name} is {tuple(student[name].shape)} and the teacher has {shape}"
    kept = [n for n, source in sources.items() if source in teacher and teacher[source].shape == student[n].shape]
    for name in kept:
        student[name].copy_(teacher[sources[name]])
    return f"inherited: {len(kept)} of {len(student)} tensors"


def _depths(state: dict[str, Tensor]) -> dict[str, int]:
    """How many numbered modules there are below each prefix; tensors of any shape [..]."""
    depths: dict[str, int] = {}
    for name in state:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                prefix = ".".join(parts[:i])
                depths[prefix] = max(depths.get(prefix, 0), int(part) + 1)
    return depths


def layers_of(deep: int, shallow: int) -> list[int]:
    """Which of `deep` layers fill `shallow` ones, from the first on; those beyond the last do not exist."""
    return [i * max(1, deep // shallow) for i in range(shallow)]


def _source(name: str, shallow: dict[str, int], deep: dict[str, int]) -> str:
    """The teacher's name of what fills the student's tensor `name`."""
    student_parts: list[str] = []
    teacher_parts: list[str] = []
    for part in name.split("."):
        teacher_prefix, student_prefix = ".".join(teacher_parts), ".".join(student_parts)
        numbered = part.isdigit() and teacher_prefix in deep
        teacher_parts.append(
            str(layers_of(deep[teacher_prefix], shallow[student_prefix])[int(part)]) if numbered else part
        )
        student_parts.append(part)
    return ".".join(teacher_parts)
