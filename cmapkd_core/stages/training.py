"""Training set-up of the stages warmup, alsn and joint: student, teacher targets, loaders and phases."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.catalog import SELECTORS
from cmapkd_core.config import STAGE_PHASES, OptimConfig, Phase, Recipe, SelectorConfig
from cmapkd_core.data.fixed_crops import TeacherCache
from cmapkd_core.data.loader import ALL_CAPTIONS, NO_CACHES, Batch, Captions, Side, TableLoader, TrainLoader
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.with_pictures import WithPictures
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.optim import choose_teacher_precision
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.session import Session
from cmapkd_core.engine.targets_ahead import TargetsAhead
from cmapkd_core.ensemble import further_teachers
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method, require_teacher
from cmapkd_core.methods.policy_fit import PolicyFit
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.compiled import compiled_blocks, require_compiler
from cmapkd_core.models.frozen_teacher import KINDS, Embeddings, PictureTargets, Teacher, beside, narrowed
from cmapkd_core.models.pyramid import needed
from cmapkd_core.models.selector import selectors_of
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import build_method
from cmapkd_core.stages.statistics import SAMPLE_STATS, shared_columns
from cmapkd_core.stages.teacher_bank import bank_of
from cmapkd_core.stages.teacher_cache import open_cache, open_further
from cmapkd_core.stages.validation_pairs import ValidationPairs
from cmapkd_core.view import with_part


class TrainingSetup:
    """What a stage trains, on which batches, towards which targets: a method on pictures and captions (warmup, joint).

    Built with the student and the teacher alone. Shards and the teacher's cache are opened by the first `loader`, so
    a stage that makes none reads neither.
    """

    def __init__(self, context: Context, stage: str, method: Method, teacher: Teacher | None) -> None:
        self.context, self.recipe, self.stage = context, context.recipe, stage
        self.method, self.teacher = method, teacher

    @classmethod
    def build(cls, context: Context, stage: str) -> TrainingSetup:
        """The method with the student of the artifact `init`, or of the recipe, and the frozen teacher that it has."""
        method, teacher = build_method(recipe_of_stage(context.recipe, stage), context)
        if context.recipe.runtime.grad_checkpointing:
            method.student.checkpoint_blocks()
        return cls(context, stage, method, teacher)

    @property
    def trained(self) -> Method | PolicyFit:
        """The module whose parameters the phases train."""
        return self.method

    def phases(self) -> list[PhasePlan]:
        """The phases of the stage that have epochs, in order."""
        names = [name for name in STAGE_PHASES[self.stage] if getattr(self.recipe.schedule, name).epochs]
        steps_per_epoch = self.loader(names[0], ()).steps_per_epoch if names else 0
        return self.plans(names, steps_per_epoch, self.recipe.optim, self.recipe.optim.batch)

    def run(self, plan: PhasePlan, session: Session) -> None:
        """Train one phase."""
        self.fill_bank()
        levels = self.method.active(plan.phase)
        loader, device = self.batches(plan.name, levels), parallel.device()
        if self._validates(plan.phase):
            pairs = ValidationPairs(self.context, side_of(self.method.student), phase_seed(self.recipe.seed, plan.name))
            for selector in selectors_of(self.method):
                selector.pairs = pairs.of_step
        live = self._live()
        with self._compiled(live):
            whole = plan.optim.accumulate == 1  # who splits a batch has no room for a second one's targets
            if live and whole and self.recipe.runtime.teacher_ahead and device.type == "cuda":
                ahead = TargetsAhead(loader, lambda batch: self.targets(batch, levels), device)
                run_phase(self.method, ahead, ahead.targets, plan, session)
            else:
                run_phase(self.method, loader, lambda batch: self.targets(batch, levels), plan, session)

    def fill_bank(self) -> None:
        """Give the method the teacher's embeddings of the training pairs that it still lacks."""
        if pairs := self.method.lacks():
            teacher = require_teacher(self.teacher)
            self.method.keep(*bank_of(self.context, teacher, self.teacher_cache, pairs, self.further_caches))

    def _validates(self, phase: Phase) -> bool:
        """Whether the phase's level weights come from validation pairs; its declared fields alone are read."""
        weighs = METHODS[self.recipe.method.name].weighs_levels and phase.selects
        return weighs and SELECTORS[self.recipe.selector.kind].validates

    def _live(self) -> list[Backbone]:
        """The teachers' towers that run beside the student."""
        if self.teacher is None:
            return []
        first = [] if self.teacher_cache else [self.teacher.backbone]
        return [*first, *([] if self.further_caches else self.teacher.further)]

    def _compiled(self, live: list[Backbone]) -> contextlib.AbstractContextManager[None]:
        """Inside, the towers that work are compiled, where the recipe says so."""
        if not self.recipe.runtime.compile:
            return contextlib.nullcontext()
        require_compiler(parallel.device())
        return compiled_blocks([self.method.student, *live])

    def loader(self, phase: str, levels: tuple[str, ...], parts: int = 1, alone: bool = False) -> TrainLoader:
        """A phase's own stream of batches, of the same pairs, crops and captions for all methods.

        Beside the student's inputs they have the teacher's, or its cached outputs at the levels.

        Args:
            parts: a batch has the recipe's pairs divided by so many.
            alone: of the pictures whose captions are withheld, in place of the pairs.
        """
        recipe, cache = self.recipe, self.teacher_cache
        sides = {"student": side_of(self.method.student)}
        if self.teacher is not None and cache is None:
            sides["teacher"] = side_of(self.teacher.backbone)
        if self.teacher is not None and not self.further_caches:
            sides |= {name: side_of(one) for name, one in self._further().items()}
        return train_loader(
            recipe,
            shards_of(self.context),
            sides,
            batch=recipe.optim.batch // parts,
            fraction=recipe.data.fraction,
            captions=Captions(recipe.data.unpaired, alone, 0.0 if alone else recipe.data.noise),
            seed=phase_seed(recipe.seed, phase),
            crops=recipe.teacher_fit.views,
            cache=cache.only("image", *needed(levels), *(() if alone else ("text", *levels))) if cache else None,
            further={
                name: one.only("image", *(() if alone else ("text",))) for name, one in self.further_caches.items()
            },
        )

    def batches(self, phase: str, levels: tuple[str, ...]) -> TrainLoader | WithPictures:
        """As `loader`, with pictures without captions where there are some and the method can use them."""
        recipe, pairs = self.recipe, self.loader(phase, levels)
        used = METHODS[recipe.method.name].unpaired and recipe.data.unpaired and recipe.method.unpaired
        return WithPictures(pairs, self.loader(phase, levels, alone=True)) if used else pairs

    def targets(self, batch: Batch, levels: tuple[str, ...]) -> Embeddings | None:
        """The teacher targets of b pairs at the levels: cached, else computed live; None for a method without teacher.

        Returns:
            as much as the method's row declares: embeddings [b,E]; level maps [b,W,h,h] and text levels [b,W]; towers.
        """
        if self.teacher is None:
            return None
        kind = KINDS[METHODS[self.recipe.method.name].targets]
        if self.teacher_cache is not None:
            targets = self.teacher.cached_targets(batch.cached, levels)
        else:
            targets = self.teacher.targets(batch.images["teacher"], batch.tokens["teacher"], levels)
        if batch.pictures is not None:
            targets.pictures = self._of_pictures(self.teacher, batch.pictures, levels)
        further = [self._of_further(batch, *one) for one in self._further().items()]
        return narrowed(self.teacher.joined(targets, further), kind)

    def _further(self) -> dict[str, Backbone]:
        """The towers of further teachers by name."""
        towers = self.teacher.further if self.teacher is not None else []
        return dict(zip(further_teachers(self.recipe), towers, strict=True))

    def _of_further(self, batch: Batch, name: str, backbone: Backbone) -> dict[str, Tensor]:
        """Embeddings by a further teacher by modality, [b,E_k] each: cached or computed live; of pictures no text."""
        if name in self.further_caches:
            start = f"{name}/"
            return {n.removeprefix(start): x.float() for n, x in batch.cached.items() if n.startswith(start)}
        teacher = require_teacher(self.teacher)
        image = {"image": teacher.image_of(backbone, batch.images[name])}
        return image | ({"text": teacher.text_of(backbone, batch.tokens[name])} if batch.tokens else {})

    def _of_pictures(self, teacher: Teacher, batch: Batch, levels: tuple[str, ...]) -> PictureTargets:
        """The same of pictures without captions."""
        live = self.teacher_cache is None
        targets = teacher.of_pictures(
            teacher.image_outputs(batch.images["teacher"], levels) if live else batch.cached, levels
        )
        further = [self._of_further(batch, *one)["image"] for one in self._further().items()]
        return replace(targets, image=beside([targets.image, *further])) if further else targets

    @cached_property
    def teacher_cache(self) -> TeacherCache | None:
        """The teacher's cached outputs, opened once; None where it runs beside the student, or there is none.

        The towers of a teacher whose outputs are cached leave the device.
        """
        cache = open_cache(self.context)
        if self.teacher is not None:
            self.teacher.amp = choose_teacher_precision(self.recipe.optim, parallel.device())
            if cache is not None:
                self.teacher.backbone.cpu()
        return cache

    @cached_property
    def further_caches(self) -> dict[str, TeacherCache]:
        """The same of further teachers by name; {} where they run beside the student, or there are none."""
        caches = open_further(self.context)
        for backbone in self.teacher.further if self.teacher is not None and caches else []:
            backbone.cpu()
        return caches

    def plans(self, names: list[str], steps_per_epoch: int, optim: OptimConfig, batch: int) -> list[PhasePlan]:
        """Phases of the recipe's schedule by name, ready to run."""
        plans = []
        for i, name in enumerate(names):
            phase: Phase = getattr(self.recipe.schedule, name)
            weights = self.recipe.method.weights.within(phase)
            plans.append(PhasePlan(i, name, phase, steps_per_epoch, weights, optim, batch))
        return plans

    def trained_parameters(self, plans: list[PhasePlan]) -> int:
        """Parameters that at least one of the phases gives a learning rate."""
        groups = [(plan.phase, name, own) for plan in plans for name, own in self.trained.groups(plan.phase).items()]
        moved = {id(p): p.numel() for phase, name, own in groups if getattr(phase.lr, name) > 0 for p in own}
        return sum(moved.values())

    def has_sample_stats(self) -> bool:
        """Whether the stage's `init` has warm-up's table."""
        return "init" in self.context.inputs and SAMPLE_STATS in self.context.inputs["init"].files()


class SelectorSetup(TrainingSetup):
    """Stage alsn: the selector of level weights alone, on the rows of warm-up's table; no picture and no teacher."""

    @cached_property
    def fit(self) -> PolicyFit | None:
        """The selector as what is trained; None for a fixed one or a method without one."""
        return self.method.policy_fit()

    @cached_property
    def table(self) -> TableLoader:
        """Shuffled rows of the table, the same for all ranks of a machine.

        Rows are small: a batch of them goes at once, however pairs are split to fit a GPU.
        """
        columns, world, recipe = shared_columns(self.context.inputs["init"]), parallel.world(), self.recipe
        batch = min(recipe.optim.batch, len(columns["u"]) // world * world)
        return TableLoader(
            columns, batch=batch, rank=parallel.rank(), world=world, seed=recipe.seed, named=self._keys_of
        )

    def _keys_of(self, rows: np.ndarray) -> list[str]:
        """Keys of the table's rows, long [b]."""
        return list(self._keys.take(rows).to_pylist())

    @cached_property
    def _keys(self) -> pa.ChunkedArray:
        """Keys of the whole table; only a stage that skips an update reads them."""
        return pq.read_table(self.context.inputs["init"].fetch(SAMPLE_STATS), columns=["key"])["key"]

    @property
    def trained(self) -> Method | PolicyFit:
        """The selector; the method where there is none to train."""
        return self.fit or self.method

    def phases(self) -> list[PhasePlan]:
        """The selector's phase; none where nothing is to be learned.

        Raises:
            InputError: the stage has no init with warm-up's table.
        """
        if self.fit is None or not self.recipe.schedule.alsn.epochs:
            return []
        if not self.has_sample_stats():
            raise InputError(f"stage alsn learns from {SAMPLE_STATS}: give the warm-up's artifact as --init")
        optim = replace(self.recipe.optim, accumulate=1)
        return self.plans(list(STAGE_PHASES[self.stage]), self.table.steps_per_epoch, optim, self.table.batch)

    def run(self, plan: PhasePlan, session: Session) -> None:
        """Train the selector."""
        assert self.fit is not None, "without a selector there is no phase"
        run_phase(self.fit, self.table, lambda batch: None, plan, session)


SETUPS: dict[str, type[TrainingSetup]] = {"warmup": TrainingSetup, "alsn": SelectorSetup, "joint": TrainingSetup}


def recipe_of_stage(recipe: Recipe, stage: str) -> Recipe:
    """In warm-up nobody chooses: it is the same for all selectors, which share it, so the method gets a fixed one."""
    if stage != "warmup" or not METHODS[recipe.method.name].weighs_levels:
        return recipe
    toward, measured = recipe.selector.toward, recipe.selector.measured
    return with_part(recipe, "selector", SelectorConfig(kind="fixed", toward=toward, measured=measured))


def phase_seed(seed: int, phase: str) -> int:
    """The seed of a phase's stream: phases do not repeat each other's order and crops."""
    names = [name for names in STAGE_PHASES.values() for name in names]
    return seed * len(names) + names.index(phase)


def train_loader(
    recipe: Recipe,
    shards: ShardSet,
    sides: dict[str, Side],
    *,
    batch: int,
    fraction: float,
    seed: int,
    captions: Captions = ALL_CAPTIONS,
    crops: int = 0,
    cache: TeacherCache | None = None,
    further: Mapping[str, TeacherCache] = NO_CACHES,
) -> TrainLoader:
    """This rank's share of shuffled, augmented training pairs.

    Args:
        sides, batch, fraction, seed, captions, crops, cache, further: as `TrainLoader` takes them.

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
        captions=captions,
        crop_scale=data.crop_scale,
        workers=recipe.runtime.workers,
        max_pixels=data.max_pixels,
        quarantine_bound=data.quarantine_bound,
        crops=crops,
        cache=cache,
        further=further,
        device=parallel.device(),
    )
