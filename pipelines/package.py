"""Compiled packages: the pipeline that KFP makes of a plan, with the form that its UI shows before a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from pipelines import ir
from pipelines.graph import Plan, connect
from pipelines.site import Site

# The run form: its parameters, and what is said of each.
PARAMETERS = {
    "recipe": "Named configuration, a row of RECIPES such as paper or demo.",
    "ablation": "What to change in it; none, a row of ABLATIONS such as no_alsn, or of BASELINES such as kd.",
    "overrides": "Single fields, blanks between: optim.batch=128 method.weights.align=0.3. They win over the row.",
    "seed": "Seed of the student's training; empty keeps the recipe's.",
    "data": "Empty keeps the recipe's data; else SOURCE:URL, such as folder:s3://bucket/pictures.",
    "root": "Where artifacts, checkpoints and reports go, such as s3://bucket/cmapkd.",
    "tracking_uri": "MLflow server; empty keeps a journal in the artifacts only.",
    "image": "Container image of all stages, by digest.",
}
ABOUT = "Distils a small CLIP model from a large one on your pairs."


def defaults(site: Site) -> dict[str, str]:
    """The form's values before anyone edits it."""
    fresh = {"ablation": "none", "overrides": "", "seed": ""}
    return {name: fresh[name] if name in fresh else getattr(site, name) for name in PARAMETERS}


def build(site: Site, plan: Plan, form: Mapping[str, str], fixed: Mapping[str, str] | None = None) -> Any:
    """The KFP pipeline of a plan.

    Args:
        form: a value for each of PARAMETERS before anyone edits it.
        fixed: values that are not on the form: of a suite those that decide which of its tasks are equal.
    """
    known = dict(fixed or {})
    names = [name for name in PARAMETERS if name not in known]

    def cmapkd(*values: Any) -> None:
        given = known | dict(zip(names, values, strict=True))
        image = given.pop("image")
        connect(plan, site, given, image)

    one = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, one, default=form[name], annotation=str) for name in names]
    cmapkd.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    said = "".join(f"    {name}: {PARAMETERS[name]}\n" for name in names)
    cmapkd.__doc__ = f"{ABOUT}\n\nArgs:\n{said}"
    return dsl.pipeline(name="cmapkd", description=ABOUT)(cmapkd)


def write_package(pipeline: Any, path: Path) -> Path:
    """Write a compiled pipeline (IR and platform configuration, YAML).

    Raises:
        InputError: a task that KFP could not start (ir.refuse_unresolved); nothing is written.
    """
    ir.refuse_unresolved(pipeline.pipeline_spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    return path
