"""How large a compiled package becomes in a cluster: its Argo Workflow, and the status that Argo keeps in it.

Kubeflow Pipelines makes of every task two templates' worth of arguments and five nodes of status, which hold the task,
its component and its pod's patch again (backend/src/v2/compiler/argocompiler, driver/driver.go). This computes what
they come to, for a run that has finished every task: within some hundredths of what KFP 2.17 writes.

    Argo keeps the workflow, its status compressed, below 1 MiB, or ends it         LIMIT
    the API's retry writes the status as it is, and etcd takes objects of 1.5 MiB   RETRY_LIMIT
"""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmapkd_core.errors import InputError

LIMIT, RETRY_LIMIT = 1 << 20, 3 << 19  # bytes
SYSTEM = 9000  # KFP's own templates in every workflow, in its golden file
LABEL_PAIR = ("pod-metadata-label-key-{}", "pod-metadata-label-val-{}")
RETRY = ("maxRetryCount", "backoffDuration", "backoffFactor", "backoffMaxDuration")
NODE = {  # of Argo's status, beside what is a task's own
    "templateScope": "local/",
    "phase": "Succeeded",
    "boundaryID": "cmapkd-abcde-3344556677",
    "startedAt": "2026-01-01T22:22:31Z",
    "finishedAt": "2026-01-01T22:24:31Z",
    "children": ["cmapkd-abcde-3344556688"],
    "outboundNodes": ["cmapkd-abcde-3344556688"],
    "estimatedDuration": 100,
    "progress": "1/1",
    "resourcesDuration": {"cpu": 12, "memory": 300},
    "nodeFlag": {"retried": True},
}


@dataclass(frozen=True)
class Size:
    """tasks: of the package. spec: bytes of the Workflow. status, compressed: bytes of its status at the end."""

    tasks: int
    spec: int
    status: int
    compressed: int

    @property
    def fits(self) -> bool:
        """Whether the run can come to its end, and be retried after it."""
        return self.spec + self.compressed <= LIMIT and self.spec + self.status <= RETRY_LIMIT

    def __str__(self) -> str:
        kib = [f"{value / 1024:.0f}" for value in (self.spec, self.status, self.compressed)]
        return "{} tasks, Workflow {} KiB, its status {} KiB ({} compressed)".format(self.tasks, *kib)


def refuse_too_large(package: Path, way_out: str) -> Size:
    """The size of a package.

    Raises:
        InputError: too large for a run that ends and can be retried.
    """
    size = measure(package)
    if not size.fits:
        raise InputError(
            f"{size}: too large for one run. Argo ends a workflow above {LIMIT >> 10} KiB with its compressed status, "
            f"and a retry needs both within {RETRY_LIMIT >> 10} KiB uncompressed. {way_out}"
        )
    return size


def measure(package: Path) -> Size:
    """The size of a compiled package."""
    documents = list(yaml.load_all(package.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if len(documents) > 1 else {}
    ir = _with_implied_edges(documents[0])
    tasks = [_Task(ir, platform, name) for name in sorted(ir["root"]["dag"]["tasks"])]
    status = _json({node["id"]: node for task in tasks for node in task.nodes()})  # in the order of the ids: any
    packed = base64.b64encode(gzip.compress(status.encode(), 6))
    return Size(len(tasks), _spec_bytes(ir, tasks), len(status), len(packed))


def _with_implied_edges(ir: dict[str, Any]) -> dict[str, Any]:
    """KFP adds the producers of a task's inputs to what it depends on."""
    ir = copy.deepcopy(ir)
    for task in ir["root"]["dag"]["tasks"].values():
        sources = task.get("inputs", {}).get("parameters", {}).values()
        made = [one["taskOutputParameter"]["producerTask"] for one in sources if "taskOutputParameter" in one]
        needs = list(dict.fromkeys([*task.get("dependentTasks", []), *made]))
        if needs:
            task["dependentTasks"] = needs
    return ir


def _spec_bytes(ir: Mapping[str, Any], tasks: list[_Task]) -> int:
    parameters = {}
    for task in tasks:
        parameters[f"kubernetes-{task.component_name}"] = _json(task.platform)
        parameters[f"components-{task.digest}"] = _json(task.component)
        parameters[f"implementations-{task.digest}"] = _json(task.container)
    parameters["components-root"] = _json(ir["root"])
    defaults = ir["root"].get("inputDefinitions", {}).get("parameters", {})
    form = {name: one.get("defaultValue", "") for name, one in defaults.items()}
    workflow = {
        "arguments": {"parameters": _listed(parameters)},
        "dag": {"tasks": [entry for task in tasks for entry in task.entries()]},
        "entry": _json({"parameterValues": form}),
    }
    return len(_json(workflow)) + SYSTEM


class _Task:
    """A task of the IR with all that KFP repeats of it."""

    def __init__(self, ir: Mapping[str, Any], platform: Mapping[str, Any], name: str) -> None:
        self.name, self.task = name, ir["root"]["dag"]["tasks"][name]
        self.component_name = self.task["componentRef"]["name"]
        self.component = ir["components"][self.component_name]
        label = self.component["executorLabel"]
        self.container = ir["deploymentSpec"]["executors"][label]["container"]
        self.platform = platform.get(label, {})
        self.digest = hashlib.sha256(_json(self.container).encode()).hexdigest()
        form = ir["root"].get("inputDefinitions", {}).get("parameters", {})
        self.form = {key: one.get("defaultValue", "") for key, one in form.items()}

    def entries(self) -> Iterator[dict[str, Any]]:
        """Its driver and its container in the workflow's DAG."""
        given = {
            "component": f"{{{{workflow.parameters.components-{self.digest}}}}}",
            "task": _json(self.task),
            "container": f"{{{{workflow.parameters.implementations-{self.digest}}}}}",
            "task-name": self.name,
            "parent-dag-id": "{{inputs.parameters.parent-dag-id}}",
            "kubernetes-config": f"{{{{workflow.parameters.kubernetes-{self.component_name}}}}}",
        }
        driver = {"name": f"{self.name}-driver", "template": "system-container-driver", **_arguments(given)}
        needs = " && ".join(f"{name}.Succeeded" for name in self.task.get("dependentTasks", []))
        yield driver | ({"depends": needs} if needs else {})
        output = f"{{{{tasks.{self.name}-driver.outputs.parameters."
        outputs = {"pod-spec-patch": output + "pod-spec-patch}}", "cached-decision": output + "cached-decision}}"}
        yield {
            "name": self.name,
            "template": "metadata-0-2-retry-system-container-executor",
            "depends": f"{self.name}-driver.Succeeded",
            **_arguments(outputs | self._metadata()),
        }

    def _metadata(self) -> dict[str, str]:
        """Labels and retries, which go to the container's template as parameters."""
        parameters: dict[str, str] = {}
        labels = sorted(self.platform.get("podMetadata", {}).get("labels", {}).items())
        for number, pair in enumerate(labels, 1):
            parameters |= {key.format(number): value for key, value in zip(LABEL_PAIR, pair, strict=True)}
        retry = self.task.get("retryPolicy", {})
        return parameters | {f"retry-{name}": str(retry[name]) for name in RETRY if name in retry}

    def _patch(self) -> str:
        """The pod's patch that the driver writes: launcher with the executor's input, arguments, resources."""
        folder = f"minio://mlpipeline/v2/artifacts/cmapkd/{_noise(36, 'run')}/{self.name}/{_noise(36, self.name)}"
        values = {name: self._value(one) for name, one in self.task.get("inputs", {}).get("parameters", {}).items()}
        outputs = self.component.get("outputDefinitions", {})
        executor_input: dict[str, Any] = {
            "inputs": {"parameterValues": values},
            "outputs": {
                "parameters": {n: {"outputFile": f"/tmp/kfp/outputs/{n}"} for n in outputs.get("parameters", {})},
                "artifacts": {
                    n: {"artifacts": [{"name": n, "uri": f"{folder}/{n}", "type": one["artifactType"]}]}
                    for n, one in outputs.get("artifacts", {}).items()
                },
                "outputFile": f"/minio/{folder[8:]}/output_metadata.json",
            },
        }
        launcher = [
            "/kfp-launcher/launch",
            "--executor_input",
            _json(executor_input),
            "--component_spec",
            _json(self.component),
        ]
        rest = "x" * 420  # the launcher's other flags
        argv = [self._filled(text, values) for text in self.container.get("command", []) + self.container["args"]]
        secrets = self.platform.get("secretAsEnv", [])
        env = [*self.container.get("env", []), *({"name": one, "valueFrom": {"optional": False}} for one in secrets)]
        mounts = self.platform.get("emptyDirMounts", [])
        volumes = [{"name": one["volumeName"], "mountPath": one["mountPath"]} for one in mounts]
        main: dict[str, Any] = {
            "name": "main",
            "command": [*launcher, rest],
            "args": argv,
            "env": env,
            "volumeMounts": volumes,
        }
        asked = self.container.get("resources", {})
        resources = {name: value for name, value in asked.items() if name.startswith("resource")}
        image = self._filled(self.container["image"], values)
        main |= {"resources": {"limits": resources, "requests": resources}, "image": image}
        return _json({"containers": [main], "activeDeadlineSeconds": 86400, "volumes": volumes})

    def _value(self, source: Mapping[str, Any]) -> Any:
        if "componentInputParameter" in source:
            return self.form.get(source["componentInputParameter"], "")
        if "taskOutputParameter" in source:
            return f"s3://cmapkd/runs/artifacts/evaluate/{_noise(16, source['taskOutputParameter']['producerTask'])}"
        return source["runtimeValue"]["constant"]

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        name = text.removeprefix("{{$.inputs.parameters['").removesuffix("']}}")
        return str(values[name]) if name in values and name != text else text

    def nodes(self) -> Iterator[dict[str, Any]]:
        """What Argo's status holds of it: driver, executor and container, each with its retry's node."""
        patch, metadata = self._patch(), self._metadata()
        given = {"component": _json(self.component), "task": _json(self.task), "container": _json(self.container)}
        given |= {"task-name": self.name, "parent-dag-id": "2", "kubernetes-config": _json(self.platform)}
        decided = {"pod-spec-patch": patch, "cached-decision": "false"}
        answered = {"outputs": {"parameters": _listed(decided | {"condition": "true"}), **_log(self.name)}}
        yield self._node("-driver", given, answered)
        yield self._node("-driver(0)", given, answered)
        yield self._node("", decided | metadata, {})
        yield self._node("(0)", decided | metadata, {})
        for name in ("(0).executor", "(0).executor(0)"):
            yield self._node(name, {"pod-spec-patch": patch, **metadata}, {"outputs": _log(self.name + name)})

    def _node(self, suffix: str, inputs: Mapping[str, str], more: Mapping[str, Any]) -> dict[str, Any]:
        name = f"cmapkd-abcde(0).root(0).{self.name}{suffix}"
        known = {
            "id": f"cmapkd-abcde-{_noise(10, name)}",
            "name": name,
            "displayName": self.name + suffix,
            "type": "Retry",
        }
        known |= {"templateName": "metadata-0-2-retry-system-container-executor"}
        return NODE | known | {"inputs": {"parameters": _listed(inputs)}} | dict(more)


def _log(name: str) -> dict[str, Any]:
    key = f"private-artifacts/kubeflow/cmapkd-abcde/2026/01/01/cmapkd-abcde-container-impl-{_noise(9, name)}/main.log"
    return {"artifacts": [{"name": "main-logs", "s3": {"key": key}}], "exitCode": "0"}


def _noise(characters: int, of: str) -> str:
    """As ids and fingerprints, which do not compress; equal for the same thing, so that a package has one size."""
    return hashlib.shake_256(of.encode()).hexdigest(characters)[:characters]


def _arguments(values: Mapping[str, str]) -> dict[str, Any]:
    return {"arguments": {"parameters": _listed(values)}}


def _listed(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
