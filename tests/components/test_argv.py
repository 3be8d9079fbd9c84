"""What a component tells its stage; every argv against its stage's parser is in tests/pipelines/test_driver.py."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

from cmapkd.pipelines import components, suite
from cmapkd.pipelines.components import Component
from cmapkd.pipelines.ir import Step, command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.package import Plan, build, defaults, write_package
from cmapkd.pipelines.runs import GATES
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.tasks import Task, tasks_of
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request

# every kind of evaluation of its own, on the run's data and on another set
SETS = "evaluate.sets=vqa=scenes_vqa,captioning,efficiency"
TASKS = tasks_of(resolve("tiny", overrides=SETS))
SITE = Site(root="s3://bucket/root", recipe="tiny")
OF_SUITE = suite.lay_out("smoke", {"recipe": "tiny", "overrides": SETS, "data": ""}, range(1), SITE.root, "r").tasks
IN_PARTS = tasks_of(resolve("tiny", overrides="data.partitions=2"))
TAUGHT = tasks_of(resolve("tiny", overrides="teachers=tiny-student:random"))
EVERY: list[Task] = [*TASKS, *IN_PARTS, *TAUGHT, *OF_SUITE, GATES]
COMPONENTS = [one for one in vars(components).values() if isinstance(one, Component)]


@pytest.fixture(scope="module")
def commands(quick_compile: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("ir")
    spec, _ = load_package(write_package(build(SITE, Plan(TASKS), defaults(SITE)), folder / "pipeline.yaml"))
    every = steps(spec)
    outputs = {step.key: {"artifact": f"s3://bucket/{step.name}"} for step in every}

    def argv(step: Step) -> list[str]:
        inputs = resolve_inputs(step, defaults(SITE), outputs, "a-run")
        return command_line(step, executor_input(step, inputs, folder))

    return {step.name: argv(step) for step in every}


def test_a_component_tells_the_whole_request(commands: dict[str, list[str]]) -> None:
    for name, command in commands.items():
        for field in dataclasses.fields(Request):
            assert command.count(f"--{field.name.replace('_', '-')}") == 1, (name, field.name)


# What a stage takes and no pipeline tells it: of its command line alone.
BY_HAND = {"prepare": {"source"}, "export": {"suite", "licence"}}
OUTPUTS = {"html", "markdown", "metrics", "executor_input"}


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda one: one.stage)
def test_a_component_tells_its_stage_everything(component: Component) -> None:
    """An input that all tasks forget would be left to the stage's own default."""
    run = importlib.import_module(f"cmapkd_core.stages.{component.stage}").run
    takes = {name for name, one in inspect.signature(run).parameters.items() if one.kind is one.KEYWORD_ONLY}
    tasks = [task for task in EVERY if task.component is component]
    told = {name for task in tasks for name in (*task.inputs, *task.values)}
    told |= {"artifacts"} if any(task.collects for task in tasks) else set()
    told |= OUTPUTS if component.shows else set()
    assert takes - told == BY_HAND.get(component.stage, set())
    assert told <= takes


def test_torchrun_takes_its_part(commands: dict[str, list[str]]) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(commands["joint"][1:])
    assert (given.nproc_per_node, given.shutdown_timeout, given.standalone, given.module) == ("8", 25, True, True)
    assert given.training_script == "cmapkd_core.stages.train"
    assert given.training_script_args == commands["joint"][commands["joint"].index("--recipe") :]


def test_stages_read_what_the_earlier_ones_wrote(commands: dict[str, list[str]]) -> None:
    joint = commands["joint"]
    assert joint[joint.index("--init") + 1] == "s3://bucket/alsn"
    assert joint[joint.index("--stage") + 1] == "joint"
    before = commands["evaluate-before"]
    assert before[before.index("--model") + 1] == "recipe:student"
