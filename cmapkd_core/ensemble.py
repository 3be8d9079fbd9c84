"""Several teachers of one student (docs/decisions/0032): the recipe's `teacher`, and further ones of its `teachers`.

Each further one has a task and an artifact of stage teacher of its own, `teacher-2`, `teacher-3` and so on: those of
the recipe whose only teacher it is, but for its levels, which nobody reads and so are neither fitted nor stored. No
torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cmapkd_core.config import ModelConfig, Recipe, TeacherFitConfig
from cmapkd_core.errors import InputError
from cmapkd_core.fields import override
from cmapkd_core.method_specs import METHODS
from cmapkd_core.model_reference import named_model

FIRST = "teacher"
_KEY, _STORE = FIRST + "-{}", "embeddings"
_HEADLESS = "packages"  # towers that were trained apart (models/build.py): heads that are not fitted are random


def further_teachers(recipe: Recipe) -> dict[str, ModelConfig]:
    """Those beside the first by the names of their tasks; {} of a method without a teacher.

    Raises:
        InputError: one is no NAME:WEIGHTS.
    """
    spec = METHODS[recipe.method.name]
    return _read(recipe.teachers) if spec.teacher and spec.ensemble else {}


def own_fields(teacher: ModelConfig) -> dict[str, Any]:
    """What a further teacher's stage has otherwise than the run."""
    return {
        "teacher.model": teacher.model,
        "teacher.weights": teacher.weights,
        "teachers": (),
        "teacher_fit.pyramid.epochs": 0,
        "teacher_fit.store": _STORE,
        "teacher_fit.levels": TeacherFitConfig.levels,
    }


def as_stored(fit: TeacherFitConfig) -> TeacherFitConfig:
    """What a further teacher's store is filled by, from the run's."""
    return replace(fit, store=_STORE, levels=TeacherFitConfig.levels)


def recipe_of_teacher(recipe: Recipe, name: str) -> Recipe:
    """The recipe of which a teacher is fitted, by the name of its task; of the first the recipe itself."""
    further = further_teachers(recipe)
    result: Recipe = override(recipe, own_fields(further[name])) if name in further else recipe
    return result


def check_teachers(recipe: Recipe) -> None:
    """Refuse further teachers that a recipe cannot have.

    Raises:
        InputError: one is no NAME:WEIGHTS, one stands twice, or the method has a single teacher.
    """
    known = [recipe.teacher]
    for model in _read(recipe.teachers).values():
        if model in known:
            raise InputError(
                f"teachers={_text(recipe)} has {model.model}:{model.weights} a second time, or names the recipe's own "
                "teacher again (teacher.model, teacher.weights): name further ones, each once"
            )
        known.append(model)
    spec = METHODS[recipe.method.name]
    if recipe.teachers and spec.teacher and not spec.ensemble:
        several = ", ".join(name for name, one in METHODS.items() if one.ensemble)
        raise InputError(
            f"method {recipe.method.name} has one teacher, and teachers={_text(recipe)} names further ones: leave them "
            f"out with teachers=, or take a method that averages over several ({several})"
        )


def require_heads(recipe: Recipe) -> None:
    """Refuse a teacher that would teach by random heads.

    Raises:
        InputError: its towers were trained apart, and no heads into a joint space are fitted.
    """
    if not METHODS[recipe.method.name].teacher or recipe.teacher_fit.space.epochs:
        return
    for model in (recipe.teacher, *further_teachers(recipe).values()):
        if model.weights == _HEADLESS:
            raise InputError(
                f"teacher {model.model}:{model.weights} has towers without a joint space, and teacher_fit.space.epochs"
                "=0 fits none, of any teacher: set it and its rate, such as teacher_fit.space.epochs=30 "
                "teacher_fit.space.lr.heads=0.001, or name a teacher that has one"
            )


def _read(teachers: tuple[str, ...]) -> dict[str, ModelConfig]:
    return {_KEY.format(number): _model(text) for number, text in enumerate(teachers, 2)}


def _model(text: str) -> ModelConfig:
    named = named_model(text)
    if named is None or not named[1]:
        raise InputError(
            f"teachers={text}: a further teacher is NAME:WEIGHTS, such as ViT-B-32:openai or lite0-minilm:packages; "
            "several stand with commas between"
        )
    return ModelConfig(*named)


def _text(recipe: Recipe) -> str:
    return ",".join(recipe.teachers)
