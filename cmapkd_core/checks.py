"""Whether a recipe can run as written, said before anything starts: its values, alone and together. No torch."""

from __future__ import annotations

from collections.abc import Collection

from cmapkd_core.catalog import SELECTORS, SOURCES, STORES
from cmapkd_core.config import (
    ALL_LEVELS,
    EMBEDDING_TERMS,
    STAGE_PHASES,
    Phase,
    Recipe,
    TeacherFitConfig,
    TermWeights,
    learns_policy,
)
from cmapkd_core.ensemble import check_teachers
from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose
from cmapkd_core.method_specs import METHODS
from cmapkd_core.values import check_values


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run as written.

    Raises:
        InputError: a value that its field refuses, a row without its file, a phase that trains nothing or has no level,
            sizes that do not fit, further teachers that the method cannot have.
    """
    check_values(recipe)
    check_teachers(recipe)
    spec = METHODS[recipe.method.name]
    for stage, phases in STAGE_PHASES.items():
        for name in phases:
            phase: Phase = getattr(recipe.schedule, name)
            if phase.epochs and stage != "alsn":
                _check_phase(f"schedule.{name}", phase, spec.groups)
                _check_terms(f"schedule.{name}", phase, spec.terms, recipe.method.weights)
            if phase.epochs and "pyramid" in spec.groups:
                _check_levels(f"schedule.{name}.levels", phase.levels, recipe)
    if not any(getattr(recipe.schedule, name).epochs for name in ("coarse", "medium", "fine")):
        raise InputError("the schedule trains no student: give schedule.fine.epochs at least 1")
    for name, group in (("space", "heads"), ("pyramid", "pyramid")):
        _check_fit(f"teacher_fit.{name}", getattr(recipe.teacher_fit, name), group)
    _check_store(recipe.teacher_fit)
    if learns_policy(recipe) and recipe.schedule.alsn.epochs:
        _check_phase("schedule.alsn", recipe.schedule.alsn, ("selector",))
    if spec.weighs_levels:
        _check_selects(recipe)
        _check_validates(recipe)
    _check_goal(recipe)
    _check_sets(recipe)
    _check_sizes(recipe)


def _check_selects(recipe: Recipe) -> None:
    schedule = recipe.schedule
    for name in ("coarse", "medium"):
        if getattr(schedule, name).selects:
            raise InputError(
                f"schedule.{name}.selects=true: warm-up comes before the selector's training and is shared by all "
                "selectors, so its levels weigh the same; only schedule.fine can select"
            )
    for name in ("coarse", "medium", "fine"):
        phase: Phase = getattr(schedule, name)
        if phase.lr.selector > 0 and not phase.selects:
            raise InputError(
                f"schedule.{name}.selects=false leaves the selector out of the loss that schedule.{name}.lr.selector="
                f"{phase.lr.selector} would train it with: set that rate to 0 too"
            )
        if phase.lr.selector > 0 and learns_policy(recipe) and not recipe.method.weights.within(phase)["policy"]:
            raise InputError(
                f"schedule.{name} leaves out term policy, which alone trains the selector: name it in schedule.{name}"
                f".terms with method.weights.policy above 0, or set schedule.{name}.lr.selector to 0"
            )


def _check_validates(recipe: Recipe) -> None:
    selector, data = recipe.selector.kind, recipe.data
    if not SELECTORS[selector].validates:
        return
    if data.splits and "val" not in data.splits:
        raise InputError(
            f"selector.kind={selector} weighs by validation pairs, and data.splits={','.join(data.splits)} prepares "
            "none: add val to data.splits"
        )
    if data.source in SOURCES and SOURCES[data.source].by_share and not data.val_share:
        raise InputError(
            f"selector.kind={selector} weighs by validation pairs, and data.val_share=0 leaves source {data.source} "
            "none: give data.val_share above 0"
        )


def _check_goal(recipe: Recipe) -> None:
    toward, weights = recipe.selector.toward, vars(recipe.method.weights)
    if learns_policy(recipe) and not any(weights[term] > 0 for term in toward):
        raise InputError(
            f"selector.toward={','.join(toward)} has no term with a weight: utilities would be measured against "
            f"nothing; give one of method.weights.{{{','.join(EMBEDDING_TERMS)}}} above 0 and name it"
        )


def _check_phase(name: str, phase: Phase, groups: tuple[str, ...]) -> None:
    if not any(rate > 0 for group, rate in vars(phase.lr).items() if group in groups):
        rates = ", ".join(f"{name}.lr.{group}" for group in groups)
        raise InputError(f"phase {name} has {phase.epochs} epochs and trains nothing: set one of {rates} above 0")


def _check_fit(name: str, phase: Phase, group: str) -> None:
    if phase.epochs:
        _check_phase(name, phase, (group,))
    if phase.levels != Phase().levels or phase.terms:
        raise InputError(f"{name} fits all levels with all of its terms: leave out {name}.levels and {name}.terms")


def _check_store(fit: TeacherFitConfig) -> None:
    if fit.levels != TeacherFitConfig.levels and not STORES[fit.store].levels:
        raise InputError(
            f"teacher_fit.levels={fit.levels} says how levels are stored, and teacher_fit.store={fit.store} stores "
            "none: give teacher_fit.store=levels with it"
        )


def _check_terms(name: str, phase: Phase, terms: Collection[str], weights: TermWeights) -> None:
    for term in phase.terms:
        choose("term", term, TermWeights.defaults())
    shown = ",".join(phase.terms)
    if phase.terms and not set(phase.terms) & set(terms):
        raise InputError(f"{name}.terms={shown} has no term of this method: add one of {', '.join(terms)}")
    students = [term for term in terms if term != "policy"]  # which trains the selector
    if not any(weights.within(phase)[term] > 0 for term in students):
        counting = f" among {name}.terms={shown}" if shown else ""
        raise InputError(
            f"phase {name} trains a student by nothing: no term{counting} has a weight; "
            f"give one of method.weights.{{{','.join(students)}}} above 0"
        )


def _check_levels(name: str, levels: tuple[str, ...], recipe: Recipe) -> None:
    for field, known in (("vision_levels", recipe.pyramid.vision_levels), ("text_levels", recipe.pyramid.text_levels)):
        if not set(levels) & set(known):
            raise InputError(f"{name}={','.join(levels)} has none of pyramid.{field}={','.join(known)}: add one")
    unknown = set(levels) - set(ALL_LEVELS)
    if unknown:
        raise InputError(f"{name} names {', '.join(sorted(unknown))}: levels are P2..P5 and L1..L4")


def _check_sets(recipe: Recipe) -> None:
    """One set of a source: tasks, artifacts and the report's tables call an evaluation TASK-SOURCE."""
    urls: dict[str, str] = {}
    for _, data in recipe.evaluate.own():
        source = data.partition(":")[0]
        if data and urls.setdefault(source, data) != data:
            raise InputError(
                f"evaluate.sets names two sets of source {source}, {urls[source]} and {data}, which the report could "
                "not tell apart: give one of them here, and the other to a run or to stage evaluate of its own"
            )


def _check_sizes(recipe: Recipe) -> None:
    runtime, optim = recipe.runtime, recipe.optim
    if not (runtime.checkpoint_every or runtime.checkpoint_minutes):
        raise InputError(
            "runtime.checkpoint_every=0 and runtime.checkpoint_minutes=0: a stage that is killed would begin again; "
            "give one of them, such as runtime.checkpoint_minutes=5"
        )
    if optim.batch % optim.accumulate:
        raise InputError(
            f"optim.batch={optim.batch} does not divide into optim.accumulate={optim.accumulate} parts: use a multiple"
        )
