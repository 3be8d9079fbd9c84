"""Every kind of package as KFP 2.17's driver meets it: each argument of each task is resolved, or no run starts.

`driven` is written from the driver's own source, kubeflow/pipelines 2.17.0, backend/src/v2/driver/resolve.go
(resolveInputs: what a task gives, no defaults) and util.go (resolveContainerArgs), and reads the YAML: pipelines/ir.py,
by which packages and the local runner go, has no part in it.
"""

# No `from __future__ import annotations` here: KFP reads the types of a component's parameters.
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml
from kfp import compiler, dsl

from cmapkd.pipelines import check_run, submission, suite_runs
from cmapkd.pipelines.ir import load_package, refuse_unresolved
from cmapkd.pipelines.local import run_package
from cmapkd.pipelines.package import write_package
from cmapkd.pipelines.site import load_site
from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import parser as command_line
from cmapkd.pipelines.tasks import TASKS
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides
from cmapkd_core.recipes import SUITE_NEEDS, SUITES
from cmapkd_core.records import record_run
from cmapkd_core.stages.cli import parser

INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)']\}\}")
OWN = "evaluate.sets=retrieval=scenes,zeroshot=scenes_vqa,vqa=scenes_vqa,captioning,efficiency"
SITE = 'image = "registry.test/cmapkd@sha256:1"\nrecipe = "tiny"\nroot = "{root}"\n'
PODS = {
    "one-pod": "",
    "two-nodes": "[pods.train]\nnodes = 2\n",
    "one-rank": "[pods.train]\ngpus = 1\n",
    "two-ranks-of-no-gpu": "[pods.train]\ngpus = 0\nprocesses = 2\n",
}
# Of suites that recipe tiny cannot have as it is
HEADS = "teacher_fit.space.epochs=1 teacher_fit.space.lr.heads=0.001"
ASKED = {name: ("--set", as_overrides(needs)) for name, needs in SUITE_NEEDS.items()} | {
    "similarities": ("--set", HEADS)
}
WHOLE = {
    "run": [],
    "partitions": ["--set", "data.partitions=5"],
    "ablation": ["--ablation", "no_alsn"],
    "method": ["--method", "clip_kd", "--seed", "3", "--set", "optim.batch=8"],
    "own": ["--set", OWN],
    "named": ["--run", "mine", "--data", "folder:s3://box/pictures"],
    "every-monday": ["--schedule", "0 2 * * 1"],
    "here": ["--local", "--root", "runs"],
    **{f"suite-{name}": ["--suite", name, "--seeds", "1", *ASKED.get(name, ())] for name in SUITES},
    "suite-here": ["--suite", "smoke", "--local", "--root", "runs", "--parallel", "2"],
    "suite-half-done": ["--suite", "smoke", "--seeds", "2"],
    "suite-own": ["--suite", "smoke", "--seeds", "2", "--set", OWN, "--expectations"],
    "suite-partitions": ["--suite", "smoke", "--seeds", "2", "--set", "data.partitions=2"],
    "suite-two-lanes": ["--suite", "smoke", "--parallel", "2"],
}
STAGES = [*(task.name for task in TASKS), "report"]
PARTS = {
    **{f"only-{stage}": ["--run", "earlier", "--only", stage] for stage in STAGES},
    "only-joined": ["--run", "earlier-parts", "--only", "prepare"],
    **{
        f"only-{name}": ["--run", "earlier-own", "--only", name]
        for name in ("prepare-scenes-vqa", "vqa-scenes-vqa-student")
    },
    "from-joint-of-suite": ["--run", "earlier-suite", "--from-stage", "joint-none-s1"],
    "from-joint": ["--run", "earlier", "--from-stage", "joint"],
    "only-of-suite": ["--run", "earlier-suite", "--only", "joint-none-s1"],
    "report-of-suite": ["--run", "earlier-suite", "--only", "suite-report"],
}
CASES = [
    *((name, "one-pod") for name in (*WHOLE, *PARTS, "check")),
    *((name, pods) for name in ("run", "own", "suite-own", "only-joint", "check") for pods in list(PODS)[1:]),
]


@pytest.fixture(params=CASES, ids=lambda case: "-on-".join(case))
def packages(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The pipelines of compiled packages, as their YAML has them, compiled as the command does; and what names a run.

    They are several of a suite that a cluster gets.
    """
    name, pods = request.param
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    Path("site.toml").write_text(SITE.format(root=root) + PODS[pods])
    path = Path("package.yaml")
    if name == "check":
        paths = [write_package(check_run.pipeline(load_site("site.toml"), 5), path)]
    else:
        asked = {"recipe": "tiny", "ablation": "none", "overrides": "", "seed": "", "data": ""}
        record_run(str(root), "earlier", asked)
        record_run(str(root), "earlier-own", asked | {"overrides": OWN})
        record_run(str(root), "earlier-parts", asked | {"overrides": "data.partitions=2"})
        record_run(str(root), "earlier-suite", asked | {"suite": "smoke", "seeds": "2"})
        if name == "suite-half-done":
            done = {"prepare": "s3://box/p", "teacher": "s3://box/t", "joint-none-s0": "s3://box/j"}
            monkeypatch.setattr(submission, "finished", lambda laid: (done, {}))
        job = decide(command_line().parse_args((WHOLE | PARTS)[name]))
        paths = list(suite_runs.packages(job, Path("suite")).values()) if job.runs else [job.package(path)]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    irs = [next(yaml.load_all(path.read_text(), Loader=loader)) for path in paths]
    # KFP's controller starts a scheduled run from a workflow that was compiled once, without a run's name.
    scheduled = "--schedule" in (WHOLE | PARTS).get(name, [])
    return irs, {"{{$.pipeline_job_name}}": "" if scheduled else "a-run", "{{$.pipeline_job_resource_name}}": "w-1"}


def given(task: dict[str, Any], form: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    """The executor input's parameters: what the task gives, and no default of its component."""
    values = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source:
            values[name] = form[source["componentInputParameter"]]
        elif "taskOutputParameter" in source:
            values[name] = f"s3://box/{source['taskOutputParameter']['producerTask']}"
        else:
            constant = source["runtimeValue"]["constant"]
            values[name] = names.get(constant, constant)
    return values


def driven(texts: list[str], values: dict[str, str]) -> list[str]:
    """resolveContainerArgs: outputs are left to the launcher; an input that is not there ends the task (KeyError)."""
    return [text if "$.outputs" in text else INPUT.sub(lambda found: values[found[1]], text) for text in texts]


def containers(ir: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(display name, task, component, container) of every task."""
    for task in ir["root"]["dag"]["tasks"].values():
        component = ir["components"][task["componentRef"]["name"]]
        executor = ir["deploymentSpec"]["executors"][component["executorLabel"]]
        yield task["taskInfo"]["name"], task, component, executor["container"]


def test_every_argument_of_every_task_is_resolved_and_its_stage_takes_them(
    packages: tuple[list[dict[str, Any]], dict[str, str]],
) -> None:
    irs, names = packages
    assert irs
    for ir in irs:
        walk(ir, names)


def walk(ir: dict[str, Any], names: dict[str, str]) -> None:
    parameters = ir["root"].get("inputDefinitions", {}).get("parameters", {})
    form = {name: parameter["defaultValue"] for name, parameter in parameters.items()}
    walked = 0
    for name, task, component, container in containers(ir):
        values = given(task, form, names)
        argv = driven([*container.get("command", []), *container["args"]], values)
        assert driven([container["image"]], values) == ["registry.test/cmapkd@sha256:1"], name
        left = [text for text in argv if "{{" in text and "$.outputs" not in text]
        assert left == (["{{$}}"] if "--executor-input" in argv else []), name
        at = next(at for at, part in enumerate(argv) if part.startswith("cmapkd_core.stages."))
        told = parser(importlib.import_module(argv[at]).run).parse_args(argv[at + 1 :])
        assert (told.recipe, bool(told.run), bool(told.check)) == ("tiny", True, name.startswith("check-")), name
        assert (told.root, told.artifact) == (form["root"], "{{$.outputs.parameters['artifact'].output_file}}"), name
        defined = component["inputDefinitions"]["parameters"]
        assert set(defined) <= set(values), name
        assert not [one for one, definition in defined.items() if "defaultValue" in definition], name
        walked += 1
    assert walked == len(ir["root"]["dag"]["tasks"]) > 0


# ---- what holds the rule ---------------------------------------------------------------------------


@dsl.container_component
def defaulted(word: str, artifact: dsl.OutputPath(str), other: str = "") -> dsl.ContainerSpec:  # type: ignore[valid-type]
    """A component as KFP 2.16 took it."""
    script = 'mkdir -p "$(dirname "$3")"; printf "%s%s" "$1" "$2" > "$3"'
    return dsl.ContainerSpec(image="none", command=["sh", "-c", script], args=["x", word, other, artifact])


def pipeline(**more: str) -> Any:
    @dsl.pipeline(name="words")
    def words(word: str = "hello") -> None:
        defaulted(word=word, other="given").set_display_name("first")
        defaulted(word=word, **more).set_display_name("second")

    return words


REFUSED = "task 'second' does not give input 'other', which its arguments hold: from 2.17 on KFP starts no such task"


def test_compiling_refuses_an_input_that_is_left_to_its_default(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=REFUSED):
        write_package(pipeline(), tmp_path / "package.yaml")
    assert not list(tmp_path.iterdir())
    write_package(pipeline(other=""), tmp_path / "package.yaml")


def test_the_local_runner_refuses_it_before_anything_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "package.yaml"
    compiler.Compiler().compile(pipeline(), str(package))
    with pytest.raises(InputError, match=REFUSED):
        run_package(package, {}, "r")
    assert not capfd.readouterr().out
    compiler.Compiler().compile(pipeline(other=""), str(package))
    assert run_package(package, {}, "r") == {"first": "hellogiven", "second": "hello"}


NOWHERE = "{{$.inputs.parameters['nowhere']}}"


ELSEWHERE: dict[str, dict[str, Any]] = {
    "image": {"image": NOWHERE},
    "memory": {"resources": {"resourceMemoryLimit": NOWHERE}},
    "gpus": {"resources": {"accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": NOWHERE}}},
    "environment": {"env": [{"name": "A", "value": NOWHERE}]},  # where KFP resolves nothing
}


@pytest.mark.parametrize("asked", ELSEWHERE.values(), ids=list(ELSEWHERE))
def test_what_else_of_a_pod_holds_a_placeholder_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    package = write_package(pipeline(other=""), tmp_path / "package.yaml")
    ir = yaml.safe_load(package.read_text())
    (executor, _) = ir["deploymentSpec"]["executors"].values()
    executor["container"] |= asked
    package.write_text(yaml.safe_dump(ir))
    with pytest.raises(InputError, match="task 'first' does not give input 'nowhere'"):
        refuse_unresolved(load_package(package)[0])


def test_a_condition_in_an_argv_and_a_parameter_that_may_be_null_are_refused(tmp_path: Path) -> None:
    @dsl.container_component
    def conditional(artifact: dsl.OutputPath(str), word: str = "") -> dsl.ContainerSpec:  # type: ignore[valid-type]
        return dsl.ContainerSpec("none", ["sh"], [dsl.IfPresentPlaceholder("word", ["a"], ["b"])])

    @dsl.pipeline(name="words")
    def conditions() -> None:
        conditional(word="x").set_display_name("second")

    @dsl.pipeline(name="words")
    def nulls(word: Optional[str] = None) -> None:  # noqa: UP045 - KFP reads this spelling alone
        defaulted(word=word, other="").set_display_name("second")

    with pytest.raises(InputError, match="task 'second': a part of its argv depends on a condition"):
        write_package(conditions, tmp_path / "package.yaml")
    with pytest.raises(InputError, match="the pipeline's parameter 'word' has no value, and task 'second' reads it"):
        write_package(nulls, tmp_path / "package.yaml")


def test_a_parameter_without_a_value_is_named(tmp_path: Path) -> None:
    @dsl.pipeline(name="words")
    def words(word: str) -> None:
        defaulted(word=word, other="").set_display_name("second")

    package = write_package(words, tmp_path / "package.yaml")
    with pytest.raises(InputError, match="the pipeline's parameter 'word' has no value, and task 'second' reads it"):
        run_package(package, {}, "r")
