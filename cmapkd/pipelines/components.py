"""The Kubeflow container component of every stage: an argv and nothing else.

A row for a stage. Its component has the strings of a Request, which all stages are given, and what the task gives
(tasks.py), no more: KFP 2.17 resolves an argv with what a task gives, and refuses a placeholder of an input
that it leaves to the component's default (backend/src/v2/driver/util.go). Each writes the URL of its artifact into an
output file. The image is set by the pipeline; it needs no ENTRYPOINT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from kfp.components import load_component_from_text

from cmapkd_core.request import STRINGS, flag_of

IMAGE = "set-by-the-pipeline"
RANKS = ("processes", "shutdown_timeout", "job", "image")  # how a stage of several ranks is started; no argument of its
ARTIFACT = {"artifact": "String"}
# What the UI shows of a task. Numbers reach it only as metadata in KFP's executor output (kubeflow/pipelines#6116),
# so a stage with these also gets the executor input, which says where that file goes.
SHOWN_IN_KFP = {"html": "HTML", "markdown": "Markdown", "metrics": "Metrics"}

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
    """The command that starts a stage as the TrainJob `job` of `image`, on one pod or more (trainjob.py)."""
    ranks = ["--processes", processes, "--shutdown-timeout", shutdown_timeout]
    return ["python", "-m", "cmapkd.pipelines.trainjob", "--job", job, "--image", image, *ranks, "--", module]


@dataclass(frozen=True)
class Component:
    """The component of a stage.

    stage: module below cmapkd_core.stages. ranks: it can have several. shows: its outputs are SHOWN_IN_KFP too.
    """

    stage: str
    ranks: bool = False
    shows: bool = False

    def made(self, name: str, launch: Launch, arguments: Sequence[str], collects: Iterable[str] = ()) -> Any:
        """KFP's component of a task.

        Each collected artifact is an input of its own, and a whole element of the argv. In a longer string KFP finds a
        placeholder by chance alone: up to 2.16 the launcher replaces each once and in random order
        (kubeflow/pipelines#13977).

        Args:
            name: the task's: KFP makes the task's key of it, which kubectl, logs and the API show.
            launch: how its ranks are started.
            arguments: names of the stage's arguments beside the request.
            collects: keys of its argument `artifacts`, which holds an artifact for each of them.
        """
        return _loaded(json.dumps(self.spec(name, launch, arguments, collects)))

    def spec(self, name: str, launch: Launch, arguments: Sequence[str], collects: Iterable[str] = ()) -> dict[str, Any]:
        """What a component.yaml says of it; arguments as of `made`."""
        held = {key: collected_name(key) for key in collects}
        ranks = RANKS if self.ranks else ()
        inputs = [*STRINGS, *arguments, *held.values(), *ranks]
        outputs = ARTIFACT | (SHOWN_IN_KFP if self.shows else {})
        given = {one: {"inputValue": one} for one in inputs} | {one: {"outputPath": one} for one in outputs}
        parts: dict[str, list[Any]] = {one: [given[one]] for one in (*STRINGS, *arguments)}
        parts |= {"artifacts": [part for key, one in held.items() for part in (key, given[one])]} if held else {}
        parts |= {one: [given[one]] for one in outputs}
        if self.shows:
            parts["executor_input"] = [{"executorInput": None}]
        container = {
            "image": IMAGE,
            "command": launch(f"cmapkd_core.stages.{self.stage}", **{one: given[one] for one in ranks}),
            "args": [part for one, of in parts.items() for part in (flag_of(one), *of)],
        }
        return {
            "name": name,
            "inputs": [{"name": one, "type": "String"} for one in inputs],
            "outputs": [{"name": one, "type": kind} for one, kind in outputs.items()],
            "implementation": {"container": container},
        }


@cache
def _loaded(text: str) -> Any:
    """KFP's component of a component.yaml; KFP parses one in some 15 ms, and packages share most of them."""
    return load_component_from_text(text)


def collected_name(key: str) -> str:
    """Name of the input that is `key` of the artifacts: evaluation_no_alsn_0."""
    return re.sub(r"\W", "_", key)  # and no more: a suite's report has hundreds, and a package may not grow for ever


GATE = Component("gate")
PREPARE = Component("prepare")
PREPARE_PART = Component("prepare_part")
TEACHER = Component("teacher", ranks=True)
TRAIN = Component("train", ranks=True)
EVALUATE = Component("evaluate")
LEVELS = Component("levels")
EXPORT = Component("export")
REPORT = Component("report", shows=True)
