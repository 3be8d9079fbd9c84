"""The files and folders that a stage reads by path; identities.py says what they were and whether they still are."""

from __future__ import annotations

from cmapkd_core.catalog import EVALUATIONS, IMAGENET, PROMPTS
from cmapkd_core.config import FOLDER, ModelConfig, Recipe
from cmapkd_core.method_specs import METHODS
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.named import CONFIGS, weights_file
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.stages.identities import Paths


def of_model(config: ModelConfig, name: str, *, weights: bool = True) -> Paths:
    """A model's config file or folder, and the file of its weights; names of open_clip and the hub have none."""
    paths = {}
    if config.model.startswith(FOLDER):
        paths[f"{name}.model"] = config.model.removeprefix(FOLDER)
    elif config.model.endswith(".json") and not (CONFIGS / f"{config.model}.json").is_file():
        paths[f"{name}.model"] = config.model
    # Weights that the model has not, or a file that may hold code, the stage refuses itself, in its place.
    if weights and (file := weights_file(config.weights)):
        paths[f"{name}.weights"] = file
    return paths


def of_classes(recipe: Recipe) -> Paths:
    """Files of prompt templates and class names."""
    chosen = {"evaluate.templates": recipe.evaluate.templates, "evaluate.classes": recipe.evaluate.classes}
    return {name: path for name, path in chosen.items() if path not in ("", IMAGENET, *PROMPTS)}


def of_teacher(recipe: Recipe) -> Paths:
    """What stage teacher reads by path."""
    return of_model(recipe.teacher, "teacher") | of_model(recipe.student, "student", weights=False)


def of_training(recipe: Recipe, init: str) -> Paths:
    """What a training stage reads by path: the student where no stage comes before it, and its classes."""
    student = {} if init else of_model(recipe.student, "student")
    return student | (of_classes(recipe) if METHODS[recipe.method.name].classes else {})


def of_evaluation(recipe: Recipe, model_ref: str, tasks: tuple[str, ...] = ()) -> Paths:
    """What an evaluation or an export reads by path; an artifact among its inputs has a digest of its own."""
    classes = of_classes(recipe) if any("evaluate.classes" in EVALUATIONS[task].reads for task in tasks) else {}
    if model_ref == RECIPE_STUDENT:
        return of_model(recipe.student, "student") | classes
    named = named_model(model_ref)
    return (of_model(ModelConfig(named[0], named[1] or "random"), "model") if named else {}) | classes
