"""Putting together what training stages need: shards, loaders, the frozen teacher, the method."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cmapkd_core import parallel
from cmapkd_core.catalog import load
from cmapkd_core.config import Recipe
from cmapkd_core.data.fixed import TeacherStore
from cmapkd_core.data.loader import Side, TrainLoader
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.engine.checkpoint import Checkpoints
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.runtime import Interrupted, StopRequest, seed_everything
from cmapkd_core.engine.session import Plan, Session
from cmapkd_core.errors import Diverged, InputError
from cmapkd_core.evaluate.classnames import load_class_names
from cmapkd_core.evaluate.embed import embed_texts
from cmapkd_core.evaluate.zeroshot import class_embeddings, load_templates
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build, load_model
from cmapkd_core.models.teacher import Teacher
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.common import Context
from cmapkd_core.stages.shards import open_shards

METHOD_STATE, LEVELS_STATE = "method.safetensors", "pyramid.safetensors"
SKIPPED = "skipped_updates.jsonl"
SELECTOR = "selector."  # names of its tensors in a method's state begin so
MODEL, STUDENT = "model", "student"  # folders of a training artifact: what is evaluated, and what is trained on


def train_loader(
    recipe: Recipe,
    shards: ShardSet,
    sides: dict[str, Side],
    *,
    batch: int,
    fraction: float,
    seed: int,
    crops: int = 0,
    store: TeacherStore | None = None,
) -> TrainLoader:
    """This rank's share of shuffled, augmented training pairs.

    Args:
        crops, store: as `TrainLoader` takes them.

    Raises:
        InputError: no training split, or fewer pairs than a batch.
    """
    if not shards.manifest["splits"].get("train", {}).get("count"):
        known = ", ".join(shards.manifest["splits"])
        raise InputError(
            f"{shards.url} has no training pairs (splits: {known}): prepare data with train among data.splits; a "
            "source that names splits itself must put rows into train"
        )
    data = recipe.data
    return TrainLoader(
        shards,
        sides,
        split="train",
        batch=batch,
        rank=parallel.rank(),
        world=parallel.world(),
        seed=seed,
        fraction=fraction,
        crop_scale=data.crop_scale,
        workers=recipe.runtime.workers,
        max_pixels=data.max_pixels,
        quarantine_bound=data.quarantine_bound,
        crops=crops,
        store=store,
    )


def common_grid(student: Backbone) -> int:
    """The student's patch grid g: the side of its third tap, level P4's size."""
    return student.spec.vision_grids[2]


def load_teacher(artifact: Artifact, grid: int, width: int) -> Teacher:
    """The frozen teacher that stage `teacher` wrote.

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
    return Teacher(backbone, levels, alpha).to(parallel.device())


def misfits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that only one side has, or that differ in shape."""
    theirs, ours = ({name: tuple(x.shape) for name, x in state.items()} for state in (found, wanted))
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def make_method(recipe: Recipe, context: Context) -> tuple[Method, Teacher | None]:
    """The method with the weights of the artifact `init`, or with the recipe's untrained student."""
    # The same seed on every rank: what is drawn here must be equal everywhere.
    seed_everything(recipe.seed, rank=0)
    init = context.inputs.get("init")
    student = load_model(_student_folder(init)) if init else build(recipe.student, recipe.seed, context.scratch)
    context.introduce("student", student.identity)
    teacher = None
    if METHODS[recipe.method.name].teacher:
        teacher = load_teacher(context.inputs["teacher"], common_grid(student), recipe.pyramid.width)
        context.introduce("teacher", teacher.backbone.identity)
        if METHODS[recipe.method.name].classes:
            teacher.classes = class_features(teacher.backbone, open_shards(context.inputs["shards"]), recipe)
    method: Method = load("method", recipe.method.name, METHODS)(recipe, student, teacher)
    if init:
        load_own_state(method, init.fetch(METHOD_STATE), init.file_url(METHOD_STATE))
    else:
        for line in method.begin(teacher):
            context.say(f"{recipe.method.name}: {line}\n")
    return method, teacher


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


def own_state(method: Method, but: str = "student.") -> dict[str, torch.Tensor]:
    """What a method has beside its student and the names that begin with `but`."""
    state = method.state_dict().items()
    return {k: v.contiguous() for k, v in state if not k.startswith(("student.", but))}


def _apart(stage: str) -> str:
    """What neither the stage's artifact nor its checkpoints hold: the selector in warm-up.

    Warm-up does not read who chooses the weights later, and rows that differ in that share its artifact and go on from
    each other's checkpoints.
    """
    return SELECTOR if stage == "warmup" else ""


def save_own_state(method: Method, path: Path, *, stage: str) -> None:
    """Write `own_state`; the student itself is the artifact's model/ folder."""
    but = _apart(stage) or "student."
    save_file({k: v.detach().cpu().clone() for k, v in own_state(method, but).items()}, path)


def load_own_state(method: Method, path: Path, url: str = "") -> None:
    """The inverse of `save_own_state`; a selector that no stage has trained yet stays as the recipe's seed drew it.

    Args:
        url: where the file is from, for an error.

    Raises:
        InputError: the file belongs to another method, or to other sizes of it.
    """
    found = load_file(path)
    wanted = own_state(method, "student." if any(name.startswith(SELECTOR) for name in found) else SELECTOR)
    if names := misfits(found, wanted):
        raise InputError(
            f"{url or path} was written by another recipe (it differs in {', '.join(names[:4])}): run the stage before "
            "this one with the same method, levels, widths and optim.batch, and give its artifact as --init"
        )
    method.load_state_dict(found, strict=False)


def run_plans(context: Context, stage: str, plans: list[Plan], work: dict[str, Any], seed: int) -> Session:
    """Run the phases of a stage in order; `work[name]()` gives a phase's (module, loader, targets).

    What diverges goes back to its last good checkpoint as often as the recipe allows, as a new attempt would, and on
    with another order of the batches.

    Raises:
        Diverged: once more than that.
    """
    stop = StopRequest().listen()
    try:
        session = _session(context, stage, plans, stop, seed)
        context.earlier_seconds = session.earlier_seconds
        while True:
            try:
                _run_phases(session, work)
                break
            except Diverged as error:
                if session.rolled >= context.recipe.optim.rollbacks:
                    raise
                context.say(f"{error}\n{stage}: goes back, and on with another order of the batches\n")
                rolled, seconds = session.rolled + 1, session.seconds
            session = _session(context, stage, plans, stop, seed, rolled)
            session.earlier_seconds = seconds
    finally:
        stop.release()
    if stop.anywhere():
        raise Interrupted(f"{stage} was asked to stop after its last step; everything is saved")
    return session


def _session(context: Context, stage: str, plans: list[Plan], stop: StopRequest, seed: int, rolled: int = 0) -> Session:
    seed_everything(seed, rank=parallel.rank())
    return Session(
        stage=stage,
        plans=plans,
        checkpoints=Checkpoints(context.workdir, context.scratch, context.identity),
        tracker=context.tracker,
        say=context.say,
        runtime=context.recipe.runtime,
        stop=stop,
        apart=_apart(stage),
        rolled=rolled,
    )


def _run_phases(session: Session, work: dict[str, Any]) -> None:
    with session:
        for plan in session.plans:
            if not session.finished(plan):
                module, loader, targets = work[plan.name]()
                run_phase(module, loader, targets, plan, session)
        session.share_replaced()


def write_skipped(context: Context, session: Session) -> None:
    """The table of the updates that a stage skipped, as a file of its artifact and in MLflow; none where none was."""
    if rows := session.watch.memory.skipped:
        path = context.out / SKIPPED
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        context.tracker.artifact(path)
