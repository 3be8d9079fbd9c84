"""A method with its student and teacher: built, loaded from artifacts, and its state saved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cmapkd_core import parallel
from cmapkd_core.catalog import load
from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.engine.runtime import seed_everything
from cmapkd_core.ensemble import FIRST, further_teachers
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.classnames import load_class_names
from cmapkd_core.evaluate.embed import embed_texts
from cmapkd_core.evaluate.zeroshot import class_embeddings, load_templates
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build_student, load_model
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context

METHOD_STATE, LEVELS_STATE = "method.safetensors", "pyramid.safetensors"
SELECTOR = "selector."  # names of its tensors in a method's state begin so
MODEL, STUDENT = "model", "student"  # folders of a training artifact: what is evaluated, and what is trained on


def common_grid(student: Backbone) -> int:
    """The student's patch grid g: the side of its third tap, level P4's size."""
    return student.spec.vision_grids[2]


def load_teacher(artifact: Artifact, grid: int, width: int, further: Sequence[Artifact] = ()) -> Teacher:
    """The frozen teacher that stage `teacher` wrote, and the towers of further ones.

    Raises:
        InputError: it was fitted for levels of another width.
    """
    backbone = load_model(artifact.fetch_folder("model"))
    state = load_file(artifact.fetch(LEVELS_STATE))
    levels = LevelTower(backbone.spec, grid, width)
    alpha = state.pop("alpha")
    if names := misfits(state, levels.state_dict()):
        raise InputError(
            f"{artifact.url} was fitted for other levels than pyramid.width={width} (it differs in "
            f"{', '.join(names[:4])}): run stage teacher with this recipe and give its artifact as --teacher"
        )
    levels.load_state_dict(state)
    others = [load_model(other.fetch_folder(MODEL)) for other in further]
    return Teacher(backbone, levels, alpha, others).to(parallel.device())


def misfits(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors [..] that only one of two states has, or that differ in shape."""
    left, right = ({name: tuple(x.shape) for name, x in state.items()} for state in (loaded, expected))
    return sorted(name for name in {*left, *right} if left.get(name) != right.get(name))


def build_method(recipe: Recipe, context: Context) -> tuple[Method, Teacher | None]:
    """The method with the weights of the artifact `init`, or with the recipe's untrained student."""
    # The same seed on every rank: what is drawn here must be equal everywhere.
    seed_everything(recipe.seed, rank=0)
    init = context.inputs.get("init")
    student = load_model(_student_folder(init)) if init else build_student(recipe.student, recipe.seed, context.scratch)
    student.freeze(recipe.schedule.frozen_quarters)
    context.introduce("student", student.identity)
    teacher = None
    if METHODS[recipe.method.name].teacher:
        names = [FIRST, *further_teachers(recipe)]
        first, *further = (context.inputs[name] for name in names)
        teacher = load_teacher(first, common_grid(student), recipe.pyramid.width, further)
        for name, backbone in zip(names, (teacher.backbone, *teacher.further), strict=True):
            context.introduce(name, backbone.identity)
        if METHODS[recipe.method.name].classes:
            teacher.classes = class_features(teacher.backbone, shards_of(context), recipe)
    method: Method = load("method", recipe.method.name, METHODS)(recipe, student, teacher)
    require_grouped(method, recipe.method.name)
    if init:
        load_method_state(method, init.fetch(METHOD_STATE), init.file_url(METHOD_STATE))
    else:
        for line in method.begin(teacher):
            context.say(f"{recipe.method.name}: {line}\n")
    return method, teacher


def require_grouped(method: Method, name: str) -> None:
    """Each of a method's modules and parameters beside the student is in one of its groups, or is frozen on purpose.

    Asked of a phase of all levels and terms, and of none of the recipe's: a stage may read its own phases alone.

    Raises:
        InputError: one is in none, so that no phase would ever train it; names it, and the file.
    """
    grouped = {id(p) for params in method.groups(Phase(selects=True)).values() for p in params}
    own: dict[str, list[torch.nn.Parameter]] = {}
    for place, parameter in method.named_parameters():
        own.setdefault(place.partition(".")[0], []).append(parameter)
    own.pop("student", None)
    for part, params in own.items():
        if any(p.requires_grad for p in params) and not any(id(p) in grouped for p in params):
            spec = METHODS[name]
            path, class_name = spec.code.replace(".", "/").split(":")
            raise InputError(
                f"method '{name}' has parameters in self.{part}, and its groups() gives them in no group, so no phase "
                f"would train them: give them in groups() of {class_name} in {path}.py under one of its row's groups "
                f"({', '.join(spec.groups)}; METHODS in cmapkd_core/method_specs.py), or, where they are to stay as "
                f"they are, self.{part}.requires_grad_(False) where they are made"
            )


def class_features(teacher: Backbone, shards: ShardSet, recipe: Recipe) -> torch.Tensor:
    """The teacher's text features of the data's classes by the recipe's templates, [C,E] unit norm on the device.

    Raises:
        InputError: fewer than two classes, or templates or names that cannot be used.
    """
    if len(shards.classes) < 2:
        raise InputError(
            f"{recipe.method.name} compares the data's classes, and {shards.url} has {len(shards.classes)}: give the "
            "source's rows classes, or use method promptkd, whose classes are captions"
        )
    names = load_class_names(recipe.evaluate.classes, shards.classes)
    encode = partial(embed_texts, teacher, batch=recipe.evaluate.batch, device=parallel.device())
    return class_embeddings(encode, names, load_templates(recipe.evaluate.templates))


def _student_folder(init: Artifact) -> Path:
    return init.fetch_folder(STUDENT if any(name.startswith(f"{STUDENT}/") for name in init.files()) else MODEL)


def method_state(method: Method, but: str = "student.") -> dict[str, torch.Tensor]:
    """Tensors of any shape [..] that a method has beside its student and the names that begin with `but`."""
    state = method.state_dict().items()
    return {k: v.contiguous() for k, v in state if not k.startswith(("student.", but))}


def unsaved(stage: str) -> str:
    """Beginning of the names that neither the stage's artifact nor its checkpoints hold: the selector's in warm-up.

    Warm-up does not read who chooses the weights later, and rows that differ in that share its artifact and go on from
    each other's checkpoints.
    """
    return SELECTOR if stage == "warmup" else ""


def save_method_state(method: Method, path: Path, *, stage: str) -> None:
    """Write `method_state`; the student itself is the artifact's model/ folder."""
    but = unsaved(stage) or "student."
    save_file({k: v.detach().cpu().clone() for k, v in method_state(method, but).items()}, path)


def load_method_state(method: Method, path: Path, url: str = "") -> None:
    """The inverse of `save_method_state`; a selector that no stage has trained yet stays as the recipe's seed drew it.

    Args:
        url: where the file is from, for an error.

    Raises:
        InputError: the file belongs to another method, or to other sizes of it.
    """
    state = load_file(path)
    expected = method_state(method, "student." if any(name.startswith(SELECTOR) for name in state) else SELECTOR)
    if names := misfits(state, expected):
        raise InputError(
            f"{url or path} was written by another recipe (it differs in {', '.join(names[:4])}): run the stage before "
            "this one with the same method, levels, widths and optim.batch, and give its artifact as --init"
        )
    method.load_state_dict(state, strict=False)
