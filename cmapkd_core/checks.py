"""Whether a recipe can run as written, said before anything starts. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection

from cmapkd_core.catalog import EVALUATIONS, LEAKAGE_CHECKS, OBJECTIVES, SELECTORS, SOURCES, STORES
from cmapkd_core.config import (
    ALL_LEVELS,
    ALPHAS,
    EMBEDDING_TERMS,
    EVALUATE_LEAKAGE_ACTIONS,
    LEAKAGE_ACTIONS,
    PRECISIONS,
    SPLITS,
    STAGE_PHASES,
    TEXT_LEVELS,
    VISION_LEVELS,
    Phase,
    Recipe,
    TermWeights,
    learns_policy,
)
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_text, choose, flatten
from cmapkd_core.method_specs import METHODS


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run as written.

    Raises:
        InputError: unknown method, a phase that trains nothing or has no level, sizes that cannot be.
    """
    spec = choose("method", recipe.method.name, METHODS, "METHODS in cmapkd_core/method_specs.py")
    _check_numbers(recipe)
    _check_names(recipe)
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
    if learns_policy(recipe) and recipe.schedule.alsn.epochs:
        _check_phase("schedule.alsn", recipe.schedule.alsn, ("selector",))
    if spec.weighs_levels:
        _check_selects(recipe)
    _check_goal(recipe)
    _check_sets(recipe)
    _check_sizes(recipe)
    _check_ranges(recipe)


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


def _check_goal(recipe: Recipe) -> None:
    toward, weights = recipe.selector.toward, vars(recipe.method.weights)
    for term in toward:
        choose("term of selector.toward", term, dict.fromkeys(EMBEDDING_TERMS))
    if learns_policy(recipe) and not any(weights[term] > 0 for term in toward):
        raise InputError(
            f"selector.toward={','.join(toward)} has no term with a weight: utilities would be measured against "
            f"nothing; give one of method.weights.{{{','.join(EMBEDDING_TERMS)}}} above 0 and name it"
        )


def _check_names(recipe: Recipe) -> None:
    evaluations = (*recipe.evaluate.tasks, *(task for task, _ in recipe.evaluate.own()))
    sources = (recipe.data.source, *(data.partition(":")[0] for _, data in recipe.evaluate.own() if data))
    rows: list[tuple[str, tuple[str, ...], str, Collection[str]]] = [
        ("data source", sources, "SOURCES", SOURCES),
        ("selector", (recipe.selector.kind,), "SELECTORS", SELECTORS),
        ("selector objective", (recipe.selector.objective,), "OBJECTIVES", OBJECTIVES),
        ("teacher_fit.store", (recipe.teacher_fit.store,), "STORES", STORES),
        ("leakage check", recipe.data.leakage, "LEAKAGE_CHECKS", LEAKAGE_CHECKS),
        ("evaluation task", evaluations, "EVALUATIONS", EVALUATIONS),
    ]
    for kind, names, table, known in rows:
        for name in names:
            choose(kind, name, dict.fromkeys(known), f"{table} in cmapkd_core/catalog.py")
    chosen: list[tuple[str, tuple[str, ...], Collection[str]]] = [
        ("precision", (recipe.optim.precision,), PRECISIONS),
        ("teacher_fit.alpha", (recipe.teacher_fit.alpha,), ALPHAS),
        ("level of pyramid.vision_levels", recipe.pyramid.vision_levels, VISION_LEVELS),
        ("level of pyramid.text_levels", recipe.pyramid.text_levels, TEXT_LEVELS),
        ("evaluate.split", (recipe.evaluate.split,), SPLITS),
        ("leakage action", (recipe.data.leakage_action,), LEAKAGE_ACTIONS),
        ("evaluate.leakage_action", (recipe.evaluate.leakage_action,), EVALUATE_LEAKAGE_ACTIONS),
        ("split", recipe.data.splits, SPLITS),
    ]
    for kind, names, known in chosen:
        for name in names:
            choose(kind, name, dict.fromkeys(known))


def _check_phase(name: str, phase: Phase, groups: tuple[str, ...]) -> None:
    if not any(rate > 0 for group, rate in vars(phase.lr).items() if group in groups):
        rates = ", ".join(f"{name}.lr.{group}" for group in groups)
        raise InputError(f"phase {name} has {phase.epochs} epochs and trains nothing: set one of {rates} above 0")


def _check_fit(name: str, phase: Phase, group: str) -> None:
    if phase.epochs:
        _check_phase(name, phase, (group,))
    if phase.levels != Phase().levels or phase.terms:
        raise InputError(f"{name} fits all levels with all of its terms: leave out {name}.levels and {name}.terms")


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


MAY_BE_NEGATIVE = ("method.kendall",)  # a rank correlation


def _check_numbers(recipe: Recipe) -> None:
    for name, value in flatten(recipe).items():
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, int | float)]
        if not all(math.isfinite(x) for x in numbers):
            raise InputError(f"{name}={as_text(value)}: it must be a finite number")
        if name not in MAY_BE_NEGATIVE and any(x < 0 for x in numbers):
            raise InputError(f"{name}={as_text(value)}: it cannot be below 0")


def _check_ranges(recipe: Recipe) -> None:
    leaves = flatten(recipe)
    above_zero = ("method.tau", "method.kd_tau", "selector.tau", "selector.utility_tau")
    shares = ("dropout", "optim.warmup", "val_share", "test_share", "quarantine_bound")
    for name, value in leaves.items():
        last = name.rpartition(".")[2]
        if name in above_zero and value <= 0:
            raise InputError(f"{name}={value}: it must be above 0")
        if (last in shares or name in shares) and not 0 <= value <= 1:
            raise InputError(f"{name}={value}: it must be from 0 to 1")
        if name in ("optim.gradient_spike", "optim.loss_spike") and 0 < value <= 1:
            raise InputError(f"{name}={value}: it must be above 1, or 0 for no spikes at all")
        if name in ("optim.beta1", "optim.beta2") and not 0 <= value < 1:
            raise InputError(f"{name}={value}: it must be from 0 to below 1")


def _check_checkpoints(recipe: Recipe) -> None:
    if not (recipe.runtime.checkpoint_every or recipe.runtime.checkpoint_minutes):
        raise InputError(
            "runtime.checkpoint_every=0 and runtime.checkpoint_minutes=0: a stage that is killed would begin again; "
            "give one of them, such as runtime.checkpoint_minutes=5"
        )


def _check_sizes(recipe: Recipe) -> None:
    leaves = flatten(recipe)
    for name in (
        "optim.batch",
        "optim.accumulate",
        "data.samples_per_shard",
        "data.max_pixels",
        "teacher_fit.batch",
        "evaluate.batch",
        "pyramid.width",
        "selector.every",
        "method.bank",
        *(f"runtime.{n}" for n in ("log_every", "shares_every")),
        *(f"evaluate.vqa.{n}" for n in ("answers", "epochs", "batch", "width", "layers")),
        *(
            f"evaluate.captioning.{n}"
            for n in ("epochs", "batch", "width", "layers", "grid", "vocabulary", "length", "beams")
        ),
    ):
        if leaves[name] < 1:
            raise InputError(f"{name}={leaves[name]}: it must be at least 1")
    _check_checkpoints(recipe)
    if len(recipe.data.crop_scale) != 2 or not 0 < recipe.data.crop_scale[0] <= recipe.data.crop_scale[1] <= 1:
        shown = ",".join(map(str, recipe.data.crop_scale))
        raise InputError(f"data.crop_scale={shown}: the least and the largest share of the area, such as 0.9,1.0")
    if leaves["optim.batch"] % leaves["optim.accumulate"]:
        raise InputError(
            f"optim.batch={leaves['optim.batch']} does not divide into "
            f"optim.accumulate={leaves['optim.accumulate']} micro-batches: use a multiple"
        )
    if not 0 < recipe.data.fraction <= 1:
        raise InputError(f"data.fraction={recipe.data.fraction}: it must be above 0 and at most 1")
    if len(recipe.selector.weights) != 4 or min(recipe.selector.weights) < 0 or sum(recipe.selector.weights) == 0:
        raise InputError(f"selector.weights={recipe.selector.weights}: four weights, none below 0, one above")
