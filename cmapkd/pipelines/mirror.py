"""Files of the site in place of what a pod would fetch from a hub: `[weights]` in the site file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cmapkd_core.config import FOLDER, HUB, ModelConfig, Recipe
from cmapkd_core.ensemble import further_teachers
from cmapkd_core.errors import InputError
from cmapkd_core.model_reference import named_model

_HERE = (".safetensors", ".pt", ".pth", ".bin")  # ends of weights that are a file; the last are refused where read


def check_weights(weights: Mapping[str, str], path: str) -> None:
    """Refuse an entry that is not `"MODEL TAG" = "TAG@FILE"` or `= "local-dir:FOLDER"`.

    Raises:
        InputError: names it.
    """
    for key, value in weights.items():
        tag = key.rpartition(" ")[2]
        if len(key.split()) != 2 or not value.startswith((f"{tag}@", FOLDER)):
            raise InputError(
                f'{path}: weights."{key}" = "{value}": write the line that cmapkd_core.fetch_weights prints, '
                f'"MODEL TAG" = "TAG@FILE" or "{FOLDER}FOLDER"'
            )


def replaced(weights: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """The overrides that give a recipe's models the site's files; one whose weights are no such tag keeps its own."""
    overrides: dict[str, str] = {}
    for side, model in _sides(recipe):
        value = weights.get(_key(model), "")
        if value.startswith(FOLDER):
            overrides |= {f"{side}.model": value, f"{side}.weights": "own"}
        elif value:
            overrides[f"{side}.weights"] = value
    further = [_replaced(weights, text) for text in recipe.teachers]
    return overrides | ({} if further == [*recipe.teachers] else {"teachers": ",".join(further)})


def _replaced(weights: Mapping[str, str], teacher: str) -> str:
    """A further teacher, NAME:WEIGHTS, with the site's file for its weights."""
    model = ModelConfig(*(named_model(teacher) or (teacher, "")))
    value = weights.get(_key(model), "")
    if not value:
        return teacher
    return value if value.startswith(FOLDER) else f"{model.model}:{value}"


def fetched(recipe: Recipe) -> Iterable[str]:
    """Of each model that its pod would fetch from a hub: "teacher ViT-L-14 openai"."""
    for side, model in (*_sides(recipe), *further_teachers(recipe).items()):
        stored = model.weights in ("packages", "random") or "@" in model.weights or model.weights.endswith(_HERE)
        if model.model.startswith(HUB) or not (stored or model.model.startswith(FOLDER)):
            yield f"{side} {_key(model)}"


def _sides(recipe: Recipe) -> tuple[tuple[str, ModelConfig], ...]:
    return ("teacher", recipe.teacher), ("student", recipe.student)


def _key(model: ModelConfig) -> str:
    return f"{model.model} {model.weights}"
