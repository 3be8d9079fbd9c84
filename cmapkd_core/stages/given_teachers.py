"""The teachers' artifacts as stages are given them: `--teacher URL`, of further ones `--artifacts teacher-2 URL ..`."""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd_core.config import Recipe
from cmapkd_core.ensemble import FIRST, further_teachers, own_fields
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides
from cmapkd_core.method_specs import METHODS


def teacher_inputs_of(recipe: Recipe, stage: str, teacher: str, artifacts: Mapping[str, str]) -> dict[str, str]:
    """URLs of the artifacts that the recipe's method is taught by, by input; {} of a method without a teacher.

    Args:
        teacher, artifacts: of the first, and of further ones by name, as they were given.

    Raises:
        InputError: one is missing, or one is given that the recipe does not name.
    """
    method, further = recipe.method.name, further_teachers(recipe)
    if not METHODS[method].teacher:
        return {}
    if not teacher:
        raise InputError(
            f"stage {stage} of method '{method}' trains towards its teacher: give the artifact of stage teacher as "
            "--teacher URL"
        )
    if {*further} != {*artifacts}:
        named, given = (" ".join(names) or "none" for names in (further, artifacts))
        ways = "; ".join(make_teacher(recipe, name) for name in further if name not in artifacts)
        raise InputError(
            f"teachers={','.join(recipe.teachers) if METHODS[method].ensemble else ''} has further teachers: {named}, "
            f"and --artifacts gives: {given}. {ways or 'Leave out --artifacts, or name them in the field'}. A package "
            "of Kubeflow Pipelines has the tasks of the teachers that it was compiled with"
        )
    return {FIRST: teacher, **artifacts}


def make_teacher(recipe: Recipe, name: str) -> str:
    """How a person makes a teacher's artifact and gives it."""
    if name == FIRST:
        return "run stage teacher with this recipe and give its artifact as --teacher"
    own = as_overrides(own_fields(further_teachers(recipe)[name]))
    return f"run stage teacher with --set '{own}' and give its artifact as --artifacts {name} URL"
