"""Stage teacher: fit the frozen teacher's joint space (where it has none), pyramid and bridges; freeze them.

    python -m cmapkd_core.stages.teacher --recipe demo --root runs/local --shards runs/local/prepare/88c2824ac398

Artifact: model/ (the teacher), pyramid.safetensors (its levels and alpha), fit.json (per level retrieval
R@1 and explained variance on held-out pairs, alpha), history.json; stored/ (what it says of the training pairs) where
teacher_fit.views > 0; skipped_updates.jsonl where updates were skipped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.config import ModelConfig, Phase, Recipe
from cmapkd_core.data.loader import Batch, TableLoader, eval_batches
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.engine.finite import require_finite
from cmapkd_core.engine.optim import choose_precision
from cmapkd_core.engine.runtime import seed_everything
from cmapkd_core.engine.session import Plan
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.evaluate.levels import level_report
from cmapkd_core.fingerprints import declared, reads
from cmapkd_core.methods.base import precision
from cmapkd_core.methods.teacher_fit import FrozenFeatures, PyramidFit, SpaceFit
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.teacher import Teacher
from cmapkd_core.places import place
from cmapkd_core.request import Request
from cmapkd_core.stages.assembly import LEVELS_STATE, common_grid, run_plans, train_loader, write_skipped
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.common import Context, execute
from cmapkd_core.stages.foreign import refuse_foreign
from cmapkd_core.stages.given import of_teacher
from cmapkd_core.stages.shards import open_shards
from cmapkd_core.stages.stored import fill_store
from cmapkd_core.stages.tracked import told_to_mlflow


def run(request: Request, *, shards: str) -> str:
    """Fit the teacher on the pairs of `shards` (a prepare artifact's URL).

    Raises:
        InputError: they are missing, or were prepared by another recipe.
    """
    parallel.start()
    recipe = request.resolved()
    with told_to_mlflow(request, "teacher"):
        refuse_foreign(recipe, request.root, {"shards": shards})
    fields, may = reads(recipe, "teacher"), declared(recipe, "teacher")
    url = place(request.root, "teacher", fields)
    return execute(
        request,
        "teacher",
        url=url,
        fields=fields,
        inputs={"shards": shards},
        body=body,
        declared=may,
        paths=of_teacher(recipe),
    )


def body(context: Context) -> dict[str, float]:
    """Phases `space` (heads, from stored pooled states) and `pyramid` (levels, from pictures)."""
    recipe, fit, device = context.recipe, context.recipe.teacher_fit, parallel.device()
    shards = open_shards(context.inputs["shards"])
    seed_everything(fit.seed, rank=0)  # what is drawn here must be equal on every rank and after a restart
    backbone = build(recipe.teacher, fit.seed, context.scratch).to(device)
    backbone.requires_grad_(False)
    context.introduce("teacher", backbone.identity)
    # Of the student its shape alone: students of other weights share this artifact.
    grid = common_grid(build(ModelConfig(recipe.student.model, "random"), fit.seed, context.scratch))
    pyramid = PyramidFit(backbone, grid, recipe.pyramid.width, fit)
    loader = train_loader(recipe, shards, {"teacher": side_of(backbone)}, batch=fit.batch, fraction=1.0, seed=fit.seed)
    work: dict[str, Any] = {
        "space": lambda: (SpaceFit(backbone, fit), stored_pairs(recipe, shards, backbone), _nothing),
        "pyramid": lambda: (pyramid, loader, frozen(backbone, recipe)),
    }
    table_steps = _pairs(shards) // fit.batch
    weights = {"contrast": 1.0, "reconstruction": fit.reconstruction, "prior": fit.alpha_prior, "task": 1.0}
    rows = [("space", fit.space, table_steps), ("pyramid", fit.pyramid, loader.steps_per_epoch)]
    session = run_plans(context, "teacher", _plans(recipe, rows, weights), work, fit.seed)
    state = {**pyramid.levels.state_dict(), "alpha": pyramid.alpha().detach()}
    require_finite(backbone.state_dict() | state, "teacher: what it fitted")
    report = level_report(pyramid, backbone, shards, side_of(backbone), device) if parallel.rank() == 0 else {}
    save_model(backbone, context.out / "model")
    save_file({k: v.cpu().contiguous().clone() for k, v in state.items()}, context.out / LEVELS_STATE)
    fill_store(context, shards, Teacher(backbone, pyramid.levels, state["alpha"]))
    write_skipped(context, session)
    (context.out / "history.json").write_text(json.dumps({"points": session.history}))
    (context.out / "fit.json").write_text(json.dumps({**report, "alpha": pyramid.alpha().tolist()}, indent=1))
    found = {f"{name}/{k}": v for name, row in report.get("levels", {}).items() for k, v in row.items()}
    return found | session.costs.metrics() | session.watch.metrics() | {"rollbacks": float(session.rolled)}


def _plans(recipe: Recipe, rows: list[tuple[str, Phase, int]], weights: dict[str, float]) -> list[Plan]:
    chosen = [row for row in rows if row[1].epochs]
    batch = recipe.teacher_fit.batch
    # Stage teacher fits a few layers: its whole batch is one micro-batch.
    optim = replace(recipe.optim, batch=batch, accumulate=1)
    return [Plan(i, name, phase, steps, weights, optim, batch) for i, (name, phase, steps) in enumerate(chosen)]


def _nothing(batch: Any, phase: Phase) -> None:
    return None


def frozen(backbone: Backbone, recipe: Recipe) -> Any:
    """targets(batch, phase): the teacher's own features, without a graph."""
    dtype = choose_precision(recipe.optim.precision, parallel.device())

    @torch.no_grad()
    def targets(batch: Batch, phase: Phase) -> FrozenFeatures:
        with precision(parallel.device().type, dtype):
            backbone.eval()
            return FrozenFeatures(backbone.vision(batch.images["teacher"]), backbone.text(batch.tokens["teacher"]))

    return targets


def _pairs(shards: ShardSet) -> int:
    return sum(len(captions) for captions in shards.table("train")["captions"].to_pylist())


@torch.no_grad()
def stored_pairs(recipe: Recipe, shards: ShardSet, backbone: Backbone) -> TableLoader:
    """Pooled states of every training picture with each of its captions, shuffled in batches.

    The towers are locked, so they run once: heads then train in seconds.
    """
    device, side = parallel.device(), side_of(backbone)
    shards.require_captions("train")
    pictures = [
        backbone.vision(images.to(device)).pooled.cpu()
        for _, images in eval_batches(
            shards, "train", side, batch=recipe.teacher_fit.batch, workers=recipe.runtime.workers
        )
    ]
    captions = shards.table("train")["captions"].to_pylist()
    owners = torch.tensor([i for i, own in enumerate(captions) for _ in own])
    texts = [text for own in captions for text in own]
    states: list[Tensor] = []
    for start in range(0, len(texts), recipe.teacher_fit.batch):
        tokens = backbone.tokenize(texts[start : start + recipe.teacher_fit.batch]).to(device)
        states.append(backbone.text(tokens).pooled.cpu())
    columns = {"image": torch.cat(pictures)[owners], "text": torch.cat(states)}
    fit = recipe.teacher_fit
    return TableLoader(columns, batch=fit.batch, rank=parallel.rank(), world=parallel.world(), seed=fit.seed)


if __name__ == "__main__":
    sys.exit(main(run))
