"""The pipeline from Python, in this process: prepare, distil, evaluate. Each is a few lines over the stages.

What is complete below `out` is not made again, and what was stopped goes on: call it once more with the same arguments.
Settings are those of the command line: a recipe, a row that changes it, single fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import MappingProxyType, NoneType

from cmapkd.arguments import require
from cmapkd_core import storage
from cmapkd_core.catalog import SOURCES
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, parse_overrides
from cmapkd_core.folders import check_data, reads_folder, spelled
from cmapkd_core.model_reference import named_model
from cmapkd_core.records import read_record
from cmapkd_core.request import DECIDING, DEFAULTS, Request, recipe_of
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.report_kinds import RUN

OUT = "runs/python"
NONE: Mapping[str, object] = MappingProxyType({})
PLACE = (str, Path)
DATA = "a folder of pictures or SOURCE[:URL], such as '/data/pictures' or 'emoji'"
MODEL = "a model's name or folder, such as 'ViT-B-32:openai'"


@dataclass(frozen=True)
class DataSet:
    """A prepared data set.

    Attributes:
        url: its artifact: shards, index, `quarantine.jsonl` with every bad row and its reason.
        counts: pictures by what became of them: `used`, `train`, `val`, `test`, `captions`, `classes`, `quarantined` ..
    """

    url: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """What a model can do.

    Attributes:
        url: the artifact, with the details of each task as JSON.
        metrics: by name, such as `retrieval/i2t/R@1` in percent.
    """

    url: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A distilled student, and all that was made on the way.

    Attributes:
        name: the run's, by which `cmapkd submit --root OUT --run NAME` finds it too.
        student: artifact of the exported student, for `load_student` and `evaluate`.
        report: the HTML page.
        outcome: in a sentence, whether the student is better than the same student without a teacher.
        metrics: of the student on the test pictures, such as `retrieval/i2t/R@1` in percent.
        compared: the same numbers of the `teacher`, of the student `before` training and of the `reference`, which is
            the same student trained on the same pairs without a teacher.
        artifacts: URL of every task's artifact, such as `prepare` and `joint`.
        out: the folder or s3:// prefix of all of it, with the run's settings.
    """

    name: str
    student: str
    report: str
    outcome: str
    metrics: Mapping[str, float] = field(repr=False)
    compared: Mapping[str, Mapping[str, float]] = field(repr=False)
    artifacts: Mapping[str, str] = field(repr=False)
    out: str = field(repr=False)


def prepare(
    data: str | Path, *, recipe: str = "", out: str | Path = OUT, fields: Mapping[str, object] = NONE
) -> DataSet:
    """Check pictures and captions and write them as shards; `distil` with the same arguments starts from these.

    Args:
        data: a folder with `captions.jsonl` beside the pictures, or SOURCE[:URL] as `--data` takes it, such as emoji or
            coco:s3://bucket/coco.
        recipe: its fields `data.*` decide splits and bounds. "" is `own` for a folder, which counts the pictures and
            takes what fits so many, and else `demo`.
        out: folder or s3:// prefix of all results.
        fields: single fields, such as `{"data.test_share": 0.1}`.

    Raises:
        InputError: no such folder, too many bad rows, or pictures in training and test at once; says the way out.
    """
    from cmapkd_core.stages import prepare as stage

    require(PLACE, DATA, data=data)
    _require_settings(recipe, out, fields)
    url = _in_process(stage.run, _request(data, recipe, out, fields))
    return DataSet(url, {name: int(count) for name, count in _metrics(url).items()})


def distil(
    data: str | Path,
    teacher: str = "",
    student: str = "",
    *,
    recipe: str = "",
    ablation: str = "none",
    out: str | Path = OUT,
    seed: int | None = None,
    run: str = "",
    tracking_uri: str = "",
    fields: Mapping[str, object] = NONE,
) -> Run:
    """Train a student from a teacher, beside the same student without one; measure, report and export them.

    It runs here, in this process. It can be stopped with Ctrl-C; the same call then goes on from the last checkpoint.

    Args:
        data: as of `prepare`.
        teacher, student: models as NAME:WEIGHTS, such as `ViT-L-14:openai`, `hf-hub:ORG/NAME` or `local-dir:FOLDER`; ""
            keeps the recipe's.
        recipe: full settings with a name; `cmapkd recipes` lists them. "" is as of `prepare`.
        ablation: a row of `cmapkd rows` to apply to it.
        out: folder or s3:// prefix of all results.
        seed: of the student's training; None keeps the recipe's.
        run: its name; "" makes one of the recipe and what changes it.
        tracking_uri: MLflow's server, or `sqlite:///FILE`; "" keeps the curves in the artifacts alone.
        fields: single fields, such as `{"optim.batch": 32}`; they win over the row.

    Raises:
        InputError: an unknown name, or a value that cannot be; and what stages say of their data.
        Diverged: training left the finite numbers; says the way out.
    """
    from cmapkd.pipelines import submit
    from cmapkd.pipelines.in_process import run_in_process
    from cmapkd.pipelines.submission import decide

    require(PLACE, DATA, data=data)
    require(str, f"{MODEL}, or ''", teacher=teacher, student=student)
    require(str, "a text, or leave it out", ablation=ablation, run=run, tracking_uri=tracking_uri)
    require((Integral, NoneType), "a whole number, or None", seed=seed)
    _require_settings(recipe, out, fields)
    models = _model_fields("teacher", teacher) | _model_fields("student", student)
    given = {
        "recipe": recipe or _usual(_data(data)),
        "ablation": ablation,
        "data": _data(data),
        "root": storage.absolute(str(out)),
        "run": run,
    }
    given |= {} if seed is None else {"seed": str(seed)}
    words = [f"--{name}={text}" for name, text in given.items() if text]
    settings = as_overrides({**models, **_plain(fields)})
    job = decide(submit.parser().parse_args(["--local", *words, *([f"--set={settings}"] if settings else [])]))
    run_in_process(replace(job, arguments=job.arguments | {"tracking_uri": tracking_uri}))
    return _finished(job.run, job.arguments["root"], job.urls)


def evaluate(
    model: str | Path | Run,
    data: str | Path | DataSet | Run,
    task: str = "",
    *,
    recipe: str = "",
    out: str | Path = "",
    fields: Mapping[str, object] = NONE,
) -> Evaluation:
    """Measure any model on held-out pictures.

    Args:
        model: a Run or its `student`, a stage's artifact, NAME:WEIGHTS of open_clip, `hf-hub:ORG/NAME`, or the folder
            of a model.
        data: a Run, for the very pictures that its student was tested on; else as of `prepare`, or what that gave.
        task: one of `cmapkd evaluations`; "" takes the recipe's.
        recipe: as of `prepare`; "" takes the settings of a Run that is the data.
        out: folder or s3:// prefix of the result; "" is that of the Run, else runs/python.
        fields: single fields; `evaluate.*` say how it is measured.

    Raises:
        InputError: unknown model or task, data without what the task needs, or pictures that the model was trained on.
    """
    from cmapkd_core.stages import evaluate as stage

    require((*PLACE, Run), f"a Run, or {MODEL}", model=model)
    require((*PLACE, DataSet, Run), f"a Run, what prepare gave, or {DATA}", data=data)
    require(str, "a text, or leave it out", task=task)
    _require_settings(recipe, out, fields)
    request, shards = _measured_on(data, recipe, out, fields)
    url = _in_process(stage.run, request, model=_measurable(model), shards=shards, task=task)
    return Evaluation(url, _metrics(url))


# ---- what is given --------------------------------------------------------------------------------


def _require_settings(recipe: str, out: str | Path, fields: Mapping[str, object]) -> None:
    """Raises InputError for one of another type."""
    require(str, "the name of a recipe, such as 'own', or leave it out", recipe=recipe)
    require(PLACE, "a folder or s3:// prefix, such as 'runs/mine'", out=out)
    require(Mapping, 'a dict, such as {"optim.batch": 32}', fields=fields)


def _request(data: str | Path, recipe: str, out: str | Path, fields: Mapping[str, object]) -> Request:
    """As a command decides it: the folder is there, and a recipe that is sized by its pairs has their sizes."""
    from cmapkd.pipelines.own_data import fitted

    text = _data(data)
    given = {"recipe": recipe or _usual(text), "overrides": as_overrides(_plain(fields)), "data": text}
    strings = {name: DEFAULTS[name] for name in DECIDING} | given
    check_data(recipe_of(strings), here=True)
    return Request(**fitted(strings)[0], root=str(out))


def _measured_on(
    data: str | Path | DataSet | Run, recipe: str, out: str | Path, fields: Mapping[str, object]
) -> tuple[Request, str]:
    """What stage evaluate is asked, and the shards that `data` has already."""
    if isinstance(data, Run):
        shards, out = data.artifacts["prepare"], out or data.out
        if not recipe:
            return _request_of(data, out, fields), shards
    elif isinstance(data, DataSet):
        shards = data.url
    else:
        return _request(data, recipe, out or OUT, fields), ""
    return Request(recipe or _usual(), str(out or OUT), overrides=as_overrides(_plain(fields))), shards


def _request_of(run: Run, out: str | Path, fields: Mapping[str, object]) -> Request:
    """What a run was asked for, sizes and all; `fields` win over its own."""
    record = read_record(run.out, run.name)
    strings = {name: record[name] for name in DECIDING}
    changed = as_overrides(parse_overrides(strings["overrides"]) | _plain(fields))
    return Request(**(strings | {"overrides": changed}), root=str(out))


def _usual(data: str = "") -> str:
    """The recipe where none is named: the demo's numbers are those of its own pictures, so a folder has another."""
    return "own" if reads_folder(data.partition(":")[0]) else "demo"


def _data(data: str | Path) -> str:
    """As `--data`; a path, and a folder that is there, names no source and stays as it is written."""
    text = str(data)
    is_folder = (isinstance(data, Path) or Path(text).is_dir()) and text.partition(":")[0] not in SOURCES
    return spelled(f"folder:{text}" if is_folder else text)


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    """A list is as good as a tuple."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _model_fields(side: str, model: str) -> dict[str, object]:
    """Raises InputError for a name without weights, which would keep those of another model."""
    if not model:
        return {}
    name, weights = named_model(model) or (model, "")
    if not weights:
        raise InputError(
            f"{side} '{model}' names no weights: write NAME:WEIGHTS, such as {model}:openai or {model}:random"
        )
    return {f"{side}.model": name, f"{side}.weights": weights}


def _measurable(model: str | Path | Run) -> str:
    """What stage evaluate takes: of an export the model that it was made of, so that their data can be compared."""
    if isinstance(model, Run):
        return model.artifacts["joint"]
    text = str(model)
    if named_model(text) and not Path(text).is_dir():
        return text
    artifact = find(text)
    if artifact is None and "://" not in text and Path(text).is_dir():
        return f"local-dir:{Path(text).expanduser()}"
    return (
        artifact.source("model").url
        if artifact and "model" in artifact.manifest["inputs"] and _is_export(artifact)
        else text
    )


def _is_export(artifact: Artifact) -> bool:
    return bool(artifact.manifest["stage"] == "export")


# ---- what comes back ------------------------------------------------------------------------------


def _in_process(run: Callable[..., str], request: Request, **given: str) -> str:
    from cmapkd.pipelines.in_process import threads_kept

    with threads_kept():
        return run(request, **given)


def _finished(name: str, out: str, urls: Mapping[str, str]) -> Run:
    report = Artifact.open(urls["report"])
    measured = {role: _metrics(urls[f"evaluate-{role}"]) for role in ("student", "teacher", "before", "reference")}
    outcome = json.loads(report.fetch(RUN.table).read_bytes())["outcome"]["sentence"]
    student = measured.pop("student")
    return Run(name, urls["export"], report.file_url(RUN.html), outcome, student, measured, dict(urls), out)


def _metrics(url: str) -> Mapping[str, float]:
    metrics: Mapping[str, float] = Artifact.open(url).manifest["metrics"]
    return metrics
