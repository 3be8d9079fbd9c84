"""The compiled package as Kubeflow Pipelines reads it: its form, tasks and edges (its pods: test_pods.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cmapkd.pipelines.ir import load_package, steps
from cmapkd.pipelines.package import PARAMETERS, Plan, build, defaults, select, write_package
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.tasks import output_urls, own_recipe, tasks_of
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request

# every kind of evaluation of its own, on the run's data and on another set
SETS = "evaluate.sets=vqa=scenes_vqa,captioning,efficiency"
TASKS = tasks_of(resolve("tiny", overrides=SETS))
SITE = Site(root="s3://bucket/x", image="registry.test/cmapkd@sha256:1")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(build(SITE, Plan(TASKS), defaults(SITE)), tmp_path_factory.mktemp("ir") / "pipeline.yaml")


@pytest.fixture(scope="module")
def tasks(package: Path) -> dict:
    """Per display name: the step and its Kubernetes configuration. The protos refuse fields they do not have."""
    spec, configs = load_package(package)
    return {step.name: (step, configs[step.component.executor_label]) for step in steps(spec)}


def test_the_run_form_has_the_eight_parameters_with_defaults_and_descriptions(package: Path) -> None:
    form = load_package(package)[0].root.input_definitions.parameters
    assert sorted(form) == sorted(PARAMETERS)
    for name, value in defaults(SITE).items():
        assert form[name].default_value.string_value == value
        assert form[name].is_optional
        assert len(form[name].description) > 20


@pytest.mark.parametrize(("sets", "splits"), [("retrieval=scenes_vqa", "data.splits=test"), ("vqa=scenes_vqa", "")])
def test_of_a_set_that_is_only_asked_the_split_of_the_questions_is_prepared(sets: str, splits: str) -> None:
    """A probe trains, and then all of its splits are."""
    tasks = tasks_of(resolve("tiny", overrides=f"evaluate.sets={sets},zeroshot=scenes_vqa"))
    (prepared,) = (task for task in tasks if task.name == "prepare-scenes-vqa")
    assert prepared.own_overrides == splits
    urls = output_urls(tasks, lambda task: own_recipe(task, resolve("tiny")), "root", "run")
    wanted = resolve("tiny", overrides=splits, data="scenes_vqa")
    assert urls[prepared.name] == stage_url("root", "prepare", wanted)


def test_a_set_keeps_its_data_whatever_the_overrides_say_of_the_runs(tasks: dict) -> None:
    own = [task.name for task in TASKS if task.data]
    assert "prepare-scenes-vqa" in own
    for name in own:
        inputs = tasks[name][0].task.inputs.parameters
        assert inputs["overrides"].component_input_parameter == "overrides"  # the run's, as they come
        alone = inputs["own_overrides"].runtime_value.constant.string_value
        asked = Request("tiny", "/root", overrides="data.source=folder data.url=/pictures", own_overrides=alone)
        given = asked.resolved().data
        assert (given.source, given.url) == ("scenes_vqa", "")


def test_tasks_and_what_they_wait_for(tasks: dict) -> None:
    key_to_name = {step.key: name for name, (step, _) in tasks.items()}
    waits = {name: {key_to_name[key] for key in step.needs} for name, (step, _) in tasks.items()}
    assert waits == {task.name: task.sources() for task in TASKS}
    assert waits["joint"] == {"prepare", "teacher", "alsn"}
    assert waits["reference-warmup"] == {"prepare"}  # which reads no teacher, so its fit takes the reference no time
    assert waits["evaluate-reference"] == {"prepare", "reference-joint"}


def test_no_task_depends_on_the_value_of_the_ablation(tasks: dict) -> None:
    for name, (step, _) in tasks.items():
        ablation = step.task.inputs.parameters["ablation"]
        if name.startswith("reference-"):
            assert ablation.runtime_value.constant.string_value == "finetune"
        else:
            assert ablation.component_input_parameter == "ablation"


def test_the_report_shows_html_markdown_and_metrics(tasks: dict) -> None:
    step = tasks["report"][0]
    kinds = {name: a.artifact_type.schema_title for name, a in step.component.output_definitions.artifacts.items()}
    assert kinds == {"html": "system.HTML", "markdown": "system.Markdown", "metrics": "system.Metrics"}


def test_one_stage_alone_takes_the_others_from_their_urls(tmp_path: Path) -> None:
    done = {task.name: f"s3://bucket/{task.name}" for task in TASKS if task.name != "joint"}
    plan = Plan(select(TASKS, only="joint"), done, "old-run", redo="yes")
    spec, _ = load_package(write_package(build(SITE, plan, defaults(SITE)), tmp_path / "one.yaml"))
    (step,) = steps(spec)
    given = {name: p.runtime_value.constant.string_value for name, p in step.task.inputs.parameters.items()}
    assert step.name == "joint"
    assert not step.needs
    assert (given["init"], given["teacher"], given["run"], given["redo"]) == (
        "s3://bucket/alsn",
        "s3://bucket/teacher",
        "old-run",
        "yes",
    )


def test_a_stage_and_what_follows_from_it() -> None:
    own = [f"{task}-student" for task in ("vqa-scenes-vqa", "captioning", "efficiency")]
    follow = ["joint", "evaluate-student", "levels", "export", *own, "report"]
    assert [task.name for task in select(TASKS, start="joint")] == follow
    assert [task.name for task in select(TASKS, start="reference-joint")] == [
        "reference-joint",
        "evaluate-reference",
        "vqa-scenes-vqa-reference",
        "captioning-reference",
        "report",
    ]
    assert {task.name for task in TASKS} - {task.name for task in select(TASKS, start="prepare")} == {
        "prepare-scenes-vqa"
    }


def test_an_evaluation_on_other_data_prepares_them_once_and_reads_them(tasks: dict) -> None:
    step = tasks["prepare-scenes-vqa"][0]
    for role in ("student", "reference", "teacher"):
        vqa = tasks[f"vqa-scenes-vqa-{role}"][0]
        assert step.key in vqa.needs
        assert vqa.task.inputs.parameters["task"].runtime_value.constant.string_value == "vqa"
    report = next(task for task in TASKS if task.name == "report")
    assert report.collects["vqa-scenes_vqa/teacher"] == "vqa-scenes-vqa-teacher"
    assert report.collects["efficiency/student"] == "efficiency-student"


def test_nothing_stands_between_a_single_rank_and_its_exit_code(tmp_path: Path) -> None:
    site = replace(SITE, pods=replace(SITE.pods, train=replace(SITE.pods.train, gpus=1)))
    spec, _ = load_package(write_package(build(site, Plan(TASKS), defaults(site)), tmp_path / "one.yaml"))
    assert {tuple(step.container.command[:2]) for step in steps(spec)} == {("python", "-m")}
