"""The Kubeflow container component of every stage: an argv and nothing else.

A row for a stage. Its component has REQUEST, which all stages are told, and what the task gives (pipelines/tasks.py),
no more: KFP 2.17 resolves an argv with what a task gives, and refuses a placeholder of an input that it leaves to the
component's default (backend/src/v2/driver/util.go). Each writes the URL of its artifact into an output file. The image
is set by the pipeline; it needs no ENTRYPOINT.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kfp import dsl

IMAGE = "set-by-the-pipeline"
REQUEST = (  # the fields of stages.common.Request
    *("recipe", "ablation", "overrides", "seed", "data", "root", "run", "tracking_uri"),
    *("redo", "own_overrides", "check"),
)
RANKS = ("processes", "shutdown_timeout", "job", "image")  # how a stage of several ranks is started; it is not told
ARTIFACT = {"artifact": dsl.OutputPath(str)}
# What the UI shows of a task. Numbers reach it only as metadata in KFP's executor output (kubeflow/pipelines#6116),
# so a stage with these is also told the executor input, which says where that file goes.
PAGES = {"html": dsl.Output[dsl.HTML], "markdown": dsl.Output[dsl.Markdown], "metrics": dsl.Output[dsl.Metrics]}

Launch = Callable[..., list[Any]]


def torchrun(module: str, processes: Any, shutdown_timeout: Any, job: Any, image: Any) -> list[Any]:
    """The command that starts `processes` ranks of a stage.

    torchrun kills its ranks `shutdown_timeout` seconds after SIGTERM, which serves local runs: in a pod of Kubeflow
    Pipelines all are gone after about a second, and the stage goes on from its last checkpoint (runtime.checkpoint_*).
    """
    launcher = ["torchrun", "--standalone", "--nproc-per-node", processes, "--shutdown-timeout", shutdown_timeout]
    return [*launcher, "-m", "--", module]  # without -- torchrun takes the stage's --run for its own --run-path


def alone(module: str, **ranks: Any) -> list[Any]:
    """The command of a stage with a single rank: no launcher between the stage and its exit code."""
    return ["python", "-m", module]


def spread(module: str, processes: Any, shutdown_timeout: Any, job: Any, image: Any) -> list[Any]:
    """The command that starts a stage as the TrainJob `job` of `image`, on one pod or more (pipelines/trainjob.py)."""
    ranks = ["--processes", processes, "--shutdown-timeout", shutdown_timeout]
    return ["python", "-m", "pipelines.trainjob", "--job", job, "--image", image, *ranks, "--", module]


@dataclass(frozen=True)
class Component:
    """The component of a stage.

    stage: module below cmapkd_core.stages. ranks: it can have several. shows: its outputs are PAGES too.
    """

    stage: str
    ranks: bool = False
    shows: bool = False

    def made(self, name: str, launch: Launch, told: Sequence[str], collects: Mapping[str, Iterable[str]]) -> Any:
        """KFP's component of a task.

        Each collected artifact is an input of its own, and a whole element of the argv. In a longer string KFP finds a
        placeholder by chance alone: up to 2.16 the launcher replaces each once and in random order
        (kubeflow/pipelines#13977).

        Args:
            name: the task's: KFP makes the task's key of it, which kubectl, logs and the API show.
            launch: how its ranks are started.
            told: names of the stage's arguments beside REQUEST.
            collects: keys of the arguments that hold an artifact for each of their keys.
        """
        held = {argument: {key: collected_name(argument, key) for key in keys} for argument, keys in collects.items()}
        ranks = RANKS if self.ranks else ()
        inputs = [*REQUEST, *told, *(name for names in held.values() for name in names.values()), *ranks]
        outputs = ARTIFACT | (PAGES if self.shows else {})

        def argv(*values: Any) -> dsl.ContainerSpec:
            given = dict(zip([*inputs, *outputs], values, strict=True))
            parts: dict[str, Any] = {name: [given[name]] for name in (*REQUEST, *told)}
            parts |= {
                name: [part for key, of in one.items() for part in (key, given[of])] for name, one in held.items()
            }
            parts |= {name: [getattr(given[name], "path", given[name])] for name in outputs}
            if self.shows:
                parts["executor_input"] = [dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
            return dsl.ContainerSpec(
                image=IMAGE,
                command=launch(f"cmapkd_core.stages.{self.stage}", **{name: given[name] for name in ranks}),
                args=[part for name, one in parts.items() for part in (f"--{name.replace('_', '-')}", *one)],
            )

        return dsl.container_component(_signed(argv, name, dict.fromkeys(inputs, str) | outputs))


def _signed(function: Callable[..., Any], name: str, parameters: Mapping[str, Any]) -> Any:
    """The function under a name and with parameters, from which KFP reads a component's interface."""
    function.__name__ = name
    one = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(parameter, one, annotation=kind) for parameter, kind in parameters.items()]
    function.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    return function


def collected_name(argument: str, key: str) -> str:
    """Name of the input that is `key` of an argument: evaluations_no_alsn_0."""
    return re.sub(r"\W", "_", f"{argument}_{key}")


GATE = Component("gate")
PREPARE = Component("prepare")
TEACHER = Component("teacher", ranks=True)
TRAIN = Component("train", ranks=True)
EVALUATE = Component("evaluate")
LEVELS = Component("levels")
EXPORT = Component("export")
REPORT = Component("report", shows=True)
SUITE_REPORT = Component("suite_report", shows=True)
