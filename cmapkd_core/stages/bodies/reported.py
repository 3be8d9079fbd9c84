"""What a report reads: a run's or a suite's artifacts as report/read/run_inputs.py and read/suite.py want them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow.compute as pc

from cmapkd_core.config import Recipe
from cmapkd_core.recipes import FULL, resolve, row_overrides
from cmapkd_core.report.read.artifacts import Commands, Source, no_pictures
from cmapkd_core.report.read.run_inputs import REFERENCE_WARMUP, RunInputs
from cmapkd_core.report.read.suite_inputs import RowTraining, SuiteInputs
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.exported import export_command, export_of, start_words, student_use
from cmapkd_core.stages.report_kinds import ReportArgs
from cmapkd_core.stages.searched import search_command
from cmapkd_core.usage import StudentUse

UNNAMED = "unnamed run"
EXPORTED = ("joint", "shards", "student_eval")  # what a run's export is made from, as the report calls it


def of_run(args: ReportArgs, context: Context) -> RunInputs:
    """A run from its artifacts."""
    request, (joint, shards, evaluation) = args.request, (args.artifacts.get(name, "") for name in EXPORTED)
    export = export_of(request, joint, shards, evaluation)
    return RunInputs(
        recipe=context.recipe,
        ablation=args.request.ablation or "none",
        run=args.request.run or UNNAMED,
        sources={name: _source(name, artifact.url, artifact) for name, artifact in context.inputs.items()}
        | reference_warmup(context.inputs.get("reference")),
        picture=_pictures(context),
        commands=Commands(
            start_words(request), start_words(request, row=False), export_command(request, joint, shards, evaluation)
        ),
        use=_use(export, shards, request.data) if export else None,
    )


def reference_warmup(reference: Artifact | None) -> dict[str, Source]:
    """The stage before that of a training, as a report calls it; without files where it is gone."""
    if reference is None or "init" not in reference.manifest["inputs"]:
        return {}
    made = reference.earlier("init")
    if made is None:
        return {REFERENCE_WARMUP: Source(REFERENCE_WARMUP, reference.manifest["inputs"]["init"]["url"])}
    return {REFERENCE_WARMUP: _source(REFERENCE_WARMUP, made.url, made)}


def _use(export: str, shards: str, data: str) -> StudentUse | None:
    """The exported student as it is used, with the search of the run's pictures; None while there is no export."""
    use = student_use(export)
    return use and replace(use, search=search_command(export, shards, data))


def _pictures(context: Context) -> Callable[[str], bytes]:
    """key -> encoded image; of a key that two splits have, the evaluated split's."""
    if "shards" not in context.inputs:
        return no_pictures
    shards = shards_of(context)
    splits = sorted(shards.manifest["splits"], key=lambda name: name != context.recipe.evaluate.split)

    def picture(key: str) -> bytes:
        for split in splits:
            if (i := pc.index(shards.table(split)["key"], key).as_py()) >= 0:
                return shards.read_image(split, i)
        raise KeyError(key)

    return picture


def of_suite(args: ReportArgs, context: Context) -> SuiteInputs:
    """A suite from its artifacts, of which those that are not complete are not among the context's."""
    request, (rows, seeds) = args.request, args.cells
    every = [(row, seed) for row in rows for seed in seeds]

    def recipe(row: str, seed: str = "") -> Recipe:
        return resolve(request.recipe, row, row_overrides(row, request.overrides), seed, request.data)

    def source(name: str) -> Source:
        return _source(name, args.urls.get(name, ""), context.inputs.get(name))

    def named(kind: str) -> dict[str, Source]:
        return {name.partition(" ")[2]: source(name) for name in args.urls if name.startswith(f"{kind} ")}

    trainings = {
        (r, s): _training(source(f"training {r}/{s}"), context.inputs.get(f"training {r}/{s}")) for r, s in every
    }
    if gone := [f"{row}/{seed}" for (row, seed), one in trainings.items() if one.metrics and not one.seconds]:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        context.say(
            f"costs: without the seconds and the updates of {gone[0]}{more}, of which an earlier stage's artifact is "
            "gone\n"
        )
    return SuiteInputs(
        suite=args.suite,
        run=request.run or UNNAMED,
        recipe=recipe(FULL),
        overrides=request.overrides,
        rows=rows,
        seeds=seeds,
        methods={row: recipe(row, seeds[0]) for row in rows},
        evaluations={(row, seed): source(f"evaluation {row}/{seed}") for row, seed in every},
        trainings=trainings,
        before=named("before"),
        teacher=source("teacher"),
        executions=args.executions,
        naive=args.naive,
        expectations=args.expectations,
        more={name: replace(one, name=name) for name, one in named("more").items()},
        commands=Commands((*start_words(request, row=False), "--suite", args.suite, "--seeds", str(len(seeds)))),
    )


def _source(name: str, url: str, artifact: Artifact | None) -> Source:
    return Source(name, url, frozenset(artifact.files()), artifact.fetch) if artifact else Source(name, url)


def _training(source: Source, artifact: Artifact | None) -> RowTraining:
    """A training with the stages before it, which its manifest names; without them where one is gone."""
    if artifact is None:
        return RowTraining(source)
    stages, metrics = [artifact], artifact.manifest["metrics"]
    while "init" in stages[0].manifest["inputs"]:
        before = stages[0].earlier("init")
        if before is None:
            return RowTraining(source, metrics=metrics)
        stages.insert(0, before)
    seconds = sum(stage.manifest["seconds"] for stage in stages)
    earlier = tuple(_source(stage.manifest["stage"], stage.url, stage) for stage in stages[:-1])
    return RowTraining(source, seconds, metrics, earlier)
