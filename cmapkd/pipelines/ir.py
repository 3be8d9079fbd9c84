"""Reading a compiled pipeline: its tasks in order, their argv with every placeholder resolved."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb2
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from cmapkd_core.errors import InputError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads a suite in a tenth of the time
PLACEHOLDER = re.compile(r"\{\{\$.*?\}\}")
INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+)'\]\}\}")
# The run's name as people gave it, and that of its Workflow: one of the two stands for it (submission.py).
NAMES = ("{{$.pipeline_job_name}}", "{{$.pipeline_job_resource_name}}")


@dataclass(frozen=True)
class Step:
    """One task of the DAG with what its container is given."""

    key: str  # its name in the IR
    name: str  # its display name
    task: pb.PipelineTaskSpec
    component: pb.ComponentSpec
    container: Any

    @property
    def needs(self) -> set[str]:
        """Keys of the tasks that must be done before it."""
        values = self.task.inputs.parameters.values()
        produced = {v.task_output_parameter.producer_task for v in values if v.HasField("task_output_parameter")}
        return produced | set(self.task.dependent_tasks)


def load_package(path: Path) -> tuple[pb.PipelineSpec, dict[str, kubernetes_pb2.KubernetesExecutorConfig]]:
    """A compiled package as protos: the pipeline, and the Kubernetes configuration per executor.

    Raises:
        google.protobuf.json_format.ParseError: a field that KFP's schema does not have.
    """
    documents = list(yaml.load_all(path.read_text(), Loader=LOADER))
    spec = json_format.ParseDict(documents[0], pb.PipelineSpec())
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if len(documents) > 1 else {}
    configs = {k: json_format.ParseDict(v, kubernetes_pb2.KubernetesExecutorConfig()) for k, v in platform.items()}
    return spec, configs


def display_names(package: Path) -> dict[str, str]:
    """Display name of every task of a compiled package, by its key there."""
    return {key: task.task_info.name or key for key, task in load_package(package)[0].root.dag.tasks.items()}


def steps(spec: pb.PipelineSpec, order: Sequence[str] = ()) -> list[Step]:
    """The tasks, each after those that it needs; among several ready ones the first in `order` (display names).

    Raises:
        InputError: a task that is no plain container (a loop, a condition, a nested pipeline, an importer).
    """
    deployment = json_format.ParseDict(json_format.MessageToDict(spec.deployment_spec), pb.PipelineDeploymentConfig())
    waiting = [_step(spec, deployment, key) for key in spec.root.dag.tasks]
    waiting.sort(key=lambda step: (order.index(step.name) if step.name in order else len(order), step.key))
    ready: list[Step] = []
    while waiting:
        done = {step.key for step in ready}
        following = next((step for step in waiting if step.needs <= done), None)
        if following is None:
            raise InputError(f"tasks wait for each other: {', '.join(step.name for step in waiting)}")
        waiting.remove(following)
        ready.append(following)
    return ready


def _step(spec: pb.PipelineSpec, deployment: pb.PipelineDeploymentConfig, key: str) -> Step:
    task = spec.root.dag.tasks[key]
    component = spec.components[task.component_ref.name]
    executor = deployment.executors.get(component.executor_label)
    plain = not (task.HasField("parameter_iterator") or task.HasField("artifact_iterator") or task.inputs.artifacts)
    if executor is None or not executor.HasField("container") or not plain or task.trigger_policy.condition:
        raise InputError(f"task '{key}' is no plain container task: it runs on a cluster only")
    return Step(key, task.task_info.name or key, task, component, executor.container)


def resolve_inputs(
    step: Step, arguments: Mapping[str, str], outputs: Mapping[str, Mapping[str, str]], run: str
) -> dict[str, Any]:
    """The task's input parameters by name, as the driver of KFP 2.17 has them when it resolves the argv.

    Those that the task gives and no others: a component's default comes after that, from the launcher
    (backend/src/v2/driver/resolve.go, resolveInputs).

    Args:
        arguments: the pipeline's parameters.
        outputs: output parameters of the finished tasks, by task key.
        run: stands for the pipeline job's name, and for that of its Workflow.

    Raises:
        InputError: a parameter of the pipeline that has no value, or a constant with a placeholder not known here.
    """
    values: dict[str, Any] = {}
    for name, source in step.task.inputs.parameters.items():
        if source.HasField("component_input_parameter"):
            parameter = source.component_input_parameter
            if parameter not in arguments:
                raise InputError(
                    f"the pipeline's parameter '{parameter}' has no value, and task '{step.name}' reads it"
                )
            values[name] = arguments[parameter]
        elif source.HasField("task_output_parameter"):
            output = source.task_output_parameter
            values[name] = outputs[output.producer_task][output.output_parameter_key]
        else:
            values[name] = json_format.MessageToDict(source.runtime_value.constant)
    known = _inputs(values) | dict.fromkeys(NAMES, run)
    return {name: _fill(step, value, known) if isinstance(value, str) else value for name, value in values.items()}


def executor_input(step: Step, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """KFP's ExecutorInput for a task whose outputs are files below `folder`."""
    definitions = step.component.output_definitions
    artifacts = {
        name: {
            "artifacts": [{"name": name, "uri": str(folder / name), "type": json_format.MessageToDict(a.artifact_type)}]
        }
        for name, a in definitions.artifacts.items()
    }
    return {
        "inputs": {"parameterValues": dict(inputs)},
        "outputs": {
            "parameters": {name: {"outputFile": str(folder / name)} for name in definitions.parameters},
            "artifacts": artifacts,
            "outputFile": str(folder / "executor_output.json"),
        },
    }


def command_line(step: Step, given: Mapping[str, Any]) -> list[str]:
    """The container's argv with the placeholders of an ExecutorInput resolved.

    Raises:
        InputError: a placeholder that KFP would not resolve.
    """
    known = _known(given)
    return [_fill(step, part, known) for part in [*step.container.command, *step.container.args]]


def refuse_unresolved(spec: pb.PipelineSpec) -> None:
    """Resolve every placeholder of every task, with "" for what only a run knows.

    Raises:
        InputError: a task of which KFP could not start the container, or which this project cannot resolve.
    """
    parameters = spec.root.input_definitions.parameters.items()
    form = {name: "" for name, one in parameters if one.HasField("default_value") or not one.is_optional}  # else null
    every = steps(spec)
    outputs = {step.key: dict.fromkeys(step.component.output_definitions.parameters, "") for step in every}
    for step in every:
        inputs = resolve_inputs(step, form, outputs, "")
        command_line(step, executor_input(step, inputs, Path()))
        asked = json_format.MessageToDict(step.container.resources)
        for variable in step.container.env:  # KFP fills in nothing there
            _fill(step, variable.value, {})
        for text in (step.container.image, *asked.pop("accelerator", {}).values(), *asked.values()):
            _fill(step, str(text), _inputs(inputs))


def _known(given: Mapping[str, Any]) -> dict[str, str]:
    """Every placeholder that an argv may hold, with its value."""
    outputs = given["outputs"]
    known = _inputs(given["inputs"]["parameterValues"]) | {"{{$}}": json.dumps(given)}
    known |= {
        f"{{{{$.outputs.parameters['{n}'].output_file}}}}": p["outputFile"] for n, p in outputs["parameters"].items()
    }
    for name, value in outputs["artifacts"].items():
        known |= {
            f"{{{{$.outputs.artifacts['{name}'].{kind}}}}}": value["artifacts"][0]["uri"] for kind in ("path", "uri")
        }
    return known


def _inputs(values: Mapping[str, Any]) -> dict[str, str]:
    return {f"{{{{$.inputs.parameters['{name}']}}}}": str(value) for name, value in values.items()}


def _fill(step: Step, text: str, known: Mapping[str, str]) -> str:
    """The value of a string that is a placeholder; any other string as it is.

    Raises:
        InputError: an input that the task does not give, an unknown placeholder, or one inside a longer string, which
            KFP fills in by chance alone (kubeflow/pipelines#13977).
    """
    if text.startswith(('{"IfPresent"', '{"Concat"')):
        raise InputError(
            f"task '{step.name}': a part of its argv depends on a condition, which is not resolved here: {text}"
        )
    match = PLACEHOLDER.search(text)
    if not match:
        return text
    if match.group() != text:
        raise InputError(
            f"task '{step.name}': placeholder {match.group()} inside a longer string, which KFP may not fill in: {text}"
        )
    if text in known:
        return known[text]
    if of_input := INPUT.fullmatch(text):
        raise InputError(
            f"task '{step.name}' does not give input '{of_input[1]}', which its arguments hold: from 2.17 on KFP "
            "starts no such task, whatever the component's default is; give it, if only an empty constant"
        )
    raise InputError(f"task '{step.name}': placeholder {text} is none that this project resolves")
