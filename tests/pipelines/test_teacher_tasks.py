"""Several teachers as tasks: of a run, of a package and its commands, of a suite, compiled and run here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from cmapkd.pipelines import mirror, size, submit
from cmapkd.pipelines.dryrun import describe
from cmapkd.pipelines.ir import command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.local import run_package
from cmapkd.pipelines.package import Plan
from cmapkd.pipelines.submission import Submission, decide
from cmapkd.pipelines.suite import lay_out
from cmapkd_core.errors import InputError
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import train
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import parser

TWO = "teachers=tiny-student:random"


def decided(*more: str, root: str = "s3://box/runs") -> Submission:
    return decide(submit.parser().parse_args(["--recipe", "tiny", "--run", "r", "--root", root, *more]))


def test_a_further_teacher_is_a_task_that_students_read(tmp_path: Path) -> None:
    one, two = decided(), decided("--set", TWO)
    added = [task.name for task in two.tasks if task.name not in one.urls]
    assert added == ["teacher-2"]
    assert {task.name for task in two.tasks if "teacher-2" in task.sources()} == {"warmup", "alsn", "joint", "levels"}
    kept = ("prepare", "teacher", "reference-joint", "evaluate-teacher")
    assert {name: two.urls[name] for name in kept} == {name: one.urls[name] for name in kept}
    assert two.urls["joint"] != one.urls["joint"]
    package = two.package(tmp_path / "two.yaml")
    assert size.measure(package).fits
    spec, _ = load_package(package)
    every = {step.name: step for step in steps(spec)}
    outputs = {step.key: {"artifact": f"s3://box/{step.name}"} for step in every.values()}

    def told(name: str, stage: str) -> object:
        inputs = resolve_inputs(every[name], two.arguments, outputs, "a-run")
        argv = command_line(every[name], executor_input(every[name], inputs, tmp_path))
        run = importlib.import_module(f"cmapkd_core.stages.{stage}").run
        return parser(run).parse_args(argv[argv.index("--recipe") :])

    warmup = told("warmup", "train")
    assert warmup.artifacts == {"teacher-2": "s3://box/teacher-2"}  # type: ignore[attr-defined]
    second = vars(told("teacher-2", "teacher"))
    request = Request(**{n: second[n] for n in ("recipe", "root", "ablation", "overrides", "own_overrides")})
    recipe = request.resolved()
    assert (recipe.teacher.model, recipe.teachers, recipe.teacher_fit.pyramid.epochs) == ("tiny-student", (), 0)
    text = describe(two)
    assert "teacher tiny-student (random), batch 16\n       space: no epochs\n       pyramid: no epochs" in text
    assert "reads prepare, teacher, teacher-2" in text


def test_a_suite_has_each_teacher_once() -> None:
    request = {"recipe": "tiny", "overrides": TWO, "data": ""}
    suite = lay_out("smoke", request, range(2), "s3://box/runs", "r")
    names = [task.name for task in suite.tasks]
    assert [name for name in names if name.startswith("teacher")] == ["teacher", "teacher-2-none"]
    readers = [one.name for one in suite.tasks if "teacher-2-none" in one.sources()]
    assert readers
    assert not any("finetune" in name for name in readers)
    with pytest.raises(InputError, match="method fitnet has one teacher"):
        lay_out("table2", request, range(1), "s3://box/runs", "r")


def test_a_sites_weights_are_those_of_further_teachers_too() -> None:
    recipe = resolve("paper", overrides="teachers=ViT-B-32:openai,ViT-B-16-quickgelu:openai")
    assert "teacher-2 ViT-B-32 openai" in {*mirror.fetched(recipe)}
    given = mirror.replaced({"ViT-B-32 openai": "openai@s3://box/b32.safetensors"}, recipe)
    assert given == {"teachers": "ViT-B-32:openai@s3://box/b32.safetensors,ViT-B-16-quickgelu:openai"}
    own = resolve("paper", overrides=f"teachers={given['teachers']}")
    assert "teacher-2 ViT-B-32 openai" not in {*mirror.fetched(own)}
    assert "teachers" not in mirror.replaced({}, recipe)


def test_a_model_that_is_none_is_refused_before_the_run_starts() -> None:
    with pytest.raises(InputError, match="unknown model 'tiny-studnet': did you mean 'tiny-student'"):
        decided("--set", "teachers=tiny-studnet:random")


@pytest.mark.heavy
def test_a_run_here_is_taught_by_two(tmp_path: Path) -> None:
    job = decided("--local", "--set", TWO, root=str(tmp_path))
    names = ("prepare", "teacher", "teacher-2", "warmup")
    plan = Plan(tuple(task for task in job.tasks if task.name in names))
    package = job.package(tmp_path / "package.yaml", plan=plan)
    outputs = run_package(package, job.arguments | {"tracking_uri": ""}, "r", list(names), parallel=2)
    assert outputs == {name: job.urls[name] for name in names}
    warmup = Artifact.open(outputs["warmup"]).manifest
    assert warmup["inputs"]["teacher-2"]["url"] == outputs["teacher-2"]
    assert {"teacher", "teacher-2"} <= {*warmup["models"]}
    again = Request("tiny", str(tmp_path), overrides=TWO)
    given = {"teacher": outputs["teacher"], "artifacts": {"teacher-2": outputs["teacher-2"]}}
    assert train.run(again, stage="warmup", shards=outputs["prepare"], **given) == outputs["warmup"]
