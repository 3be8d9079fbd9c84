"""What stage teacher does: fit the frozen teacher's space and pyramid, and write it with its cached outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow.compute as pc
import torch
from safetensors.torch import save_file
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.config import ModelConfig, Recipe
from cmapkd_core.data.loader import Batch, TableLoader, TrainLoader, eval_batches
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.engine.finite import require_finite
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.matmul import matmul_precision
from cmapkd_core.engine.optim import choose_teacher_precision
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.runtime import seed_everything
from cmapkd_core.engine.session import Session
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.evaluate.teacher_levels import PAIRS, level_report
from cmapkd_core.methods.base import precision
from cmapkd_core.methods.teacher_fit import FrozenFeatures, PyramidFit, SpaceFit
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.progress import Progress, Say
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import LEVELS_STATE, MODEL, common_grid
from cmapkd_core.stages.phases import require_no_stop, run_phases, write_skipped
from cmapkd_core.stages.store_filling import write_store
from cmapkd_core.stages.training import train_loader


def body(context: Context) -> dict[str, float]:
    """Run the phases and write the artifact."""
    with matmul_precision(context.recipe.optim.matmul_precision, parallel.device()):
        return _fitted(context)


def _fitted(context: Context) -> dict[str, float]:
    fit, setup = context.recipe.teacher_fit, TeacherSetup.build(context)
    session = run_phases(context, "teacher", setup.phases(), setup.run, fit.seed)
    shards, backbone, pyramid = setup.shards, setup.backbone, setup.pyramid
    state = {**pyramid.levels.state_dict(), "alpha": pyramid.alpha().detach()}
    require_finite(backbone.state_dict() | state, "teacher: what it fitted")
    report = _report(context, pyramid, backbone, shards) if parallel.rank() == 0 else {}
    save_model(backbone, context.out / MODEL)
    save_file({k: v.cpu().contiguous().clone() for k, v in state.items()}, context.out / LEVELS_STATE)
    write_store(context, shards, Teacher(backbone, pyramid.levels, state["alpha"]))
    write_skipped(context, session)
    (context.out / "history.json").write_text(json.dumps({"points": session.history}))
    (context.out / "fit.json").write_text(json.dumps({**report, "alpha": pyramid.alpha().tolist()}, indent=1))
    metrics = {f"{name}/{k}": v for name, row in report.get("levels", {}).items() for k, v in row.items()}
    return metrics | session.costs.metrics() | session.watch.metrics() | {"rollbacks": float(session.rollbacks)}


@dataclass
class TeacherSetup:
    """What stage teacher fits on a frozen backbone, on which batches.

    Phase `space`: the heads, from the towers' pooled states. Phase `pyramid`: the levels, from pictures.
    """

    recipe: Recipe
    shards: ShardSet
    backbone: Backbone
    pyramid: PyramidFit
    loader: TrainLoader

    @classmethod
    def build(cls, context: Context) -> TeacherSetup:
        """The recipe's teacher on the device, with a pyramid on the patch grid of the recipe's student."""
        recipe, fit = context.recipe, context.recipe.teacher_fit
        shards = shards_of(context)
        seed_everything(fit.seed, rank=0)  # what is drawn here must be equal on every rank and after a restart
        backbone = build(recipe.teacher, fit.seed, context.scratch).to(parallel.device())
        backbone.requires_grad_(False)
        context.introduce("teacher", backbone.identity)
        # Of the student its shape alone: students of other weights share this artifact.
        grid = common_grid(build(ModelConfig(recipe.student.model, "random"), fit.seed, context.scratch))
        pyramid, sides = PyramidFit(backbone, grid, recipe.pyramid.width, fit), {"teacher": side_of(backbone)}
        loader = train_loader(recipe, shards, sides, batch=fit.batch, fraction=1.0, seed=fit.seed)
        return cls(recipe, shards, backbone, pyramid, loader)

    def phases(self) -> list[PhasePlan]:
        """The phases that have epochs, in order."""
        fit = self.recipe.teacher_fit
        rows = [("space", fit.space, _pairs(self.shards) // fit.batch)]
        rows += [("pyramid", fit.pyramid, self.loader.steps_per_epoch)]
        weights = {"contrast": 1.0, "reconstruction": fit.reconstruction, "prior": fit.alpha_prior, "task": 1.0}
        # Stage teacher fits a few layers: its batch goes at once.
        optim = replace(self.recipe.optim, batch=fit.batch, accumulate=1)
        chosen = enumerate(row for row in rows if row[1].epochs)
        return [PhasePlan(i, name, phase, steps, weights, optim, fit.batch) for i, (name, phase, steps) in chosen]

    def run(self, plan: PhasePlan, session: Session) -> None:
        """Train one phase."""
        if plan.name == "space":
            going_on = partial(require_no_stop, plan, session)  # all the data goes through the towers
            table = pooled_pairs(self.recipe, self.shards, self.backbone, session.say, going_on)
            run_phase(SpaceFit(self.backbone, self.recipe.teacher_fit), table, lambda batch: None, plan, session)
        else:
            run_phase(self.pyramid, self.loader, self.features, plan, session)

    @torch.no_grad()
    def features(self, batch: Batch) -> FrozenFeatures:
        """The teacher's own features of b pairs, taps and embeddings [b,E]."""
        amp = choose_teacher_precision(self.recipe.optim, parallel.device())
        with precision(parallel.device().type, amp):
            vision, text = self.backbone.eval().vision, self.backbone.text
            return FrozenFeatures(vision(batch.images["teacher"]), text(batch.tokens["teacher"]))


def _report(context: Context, pyramid: PyramidFit, backbone: Backbone, shards: ShardSet) -> dict[str, Any]:
    count = min(PAIRS, shards.count("val")) if "val" in shards.manifest["splits"] else 0
    progress = Progress(context.say, "teacher: levels of held-out pairs", count, "pairs")
    return level_report(pyramid, backbone, shards, side_of(backbone), parallel.device(), progress)


def _pairs(shards: ShardSet) -> int:
    return int(pc.sum(pc.list_value_length(shards.table("train")["captions"])).as_py() or 0)


@torch.no_grad()
def pooled_pairs(
    recipe: Recipe, shards: ShardSet, backbone: Backbone, say: Say, between: Callable[[], None]
) -> TableLoader:
    """Pooled states of every training picture with each of its captions: rows `image` [b,D_v], `text` [b,D_l].

    The towers are locked, so they run once: heads then train in seconds. All ranks call `between` after each batch.
    """
    device, side = parallel.device(), side_of(backbone)
    shards.require_captions("train")
    batch, workers = recipe.teacher_fit.batch, recipe.runtime.workers
    progress = Progress(say, "teacher space", shards.count("train"), "pictures")
    pictures: list[Tensor] = []
    for index, images in eval_batches(shards, "train", side, batch=batch, workers=workers, device=device):
        pictures.append(backbone.vision(images).pooled.cpu())
        progress(int(index[-1]) + 1)
        between()
    captions, keys = shards.table("train")["captions"].to_pylist(), shards.table("train")["key"]
    owners = torch.tensor([i for i, own in enumerate(captions) for _ in own])
    texts = [text for own in captions for text in own]
    progress = Progress(say, "teacher space", len(texts), "captions")
    states = torch.empty(len(texts), backbone.spec.text_pooled)
    # Captions of a length together: a tower that is padded to the longest of a batch does half of the work.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), batch):
        chosen = order[start : start + batch]
        states[chosen] = backbone.text(backbone.tokenize([texts[i] for i in chosen]).to(device)).pooled.cpu()
        progress(min(start + batch, len(texts)))
        between()
    columns = {"image": torch.cat(pictures)[owners], "text": states}
    seed = recipe.teacher_fit.seed
    return TableLoader(
        columns,
        batch=batch,
        rank=parallel.rank(),
        world=parallel.world(),
        seed=seed,
        named=lambda rows: list(keys.take(owners.numpy()[rows]).to_pylist()),
    )
