"""The file by which a container tells Kubeflow Pipelines about the artifacts that it wrote.

A container component's numbers reach the UI only as metadata of a metrics artifact in this file
(kubeflow/pipelines#6116); KFP's local Docker runner needs the file for every output artifact. Plain JSON in
the form of KFP's ExecutorInput and ExecutorOutput messages: nothing is imported for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path


def show(pages: Mapping[str, bytes], values: dict[str, float], metrics: str, executor_input: str) -> None:
    """Write what the UI shows of a task: pages by local file, the numbers into the local file `metrics`; "" is none."""
    for target, data in (*pages.items(), (metrics, json.dumps(values, indent=1).encode())):
        if target:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(data)
    write_executor_output(executor_input, values)


def write_executor_output(executor_input: str, metrics: dict[str, float], artifact: str = "metrics") -> None:
    """Name every output artifact of a task, with `metrics` as the metadata of the one called `artifact`.

    Args:
        executor_input: the JSON that KFP puts in place of `{{$}}`; "" where the stage runs without KFP.
        metrics: scalars; those that JSON cannot hold (NaN, infinity) are left out.
    """
    if not executor_input:
        return
    outputs = json.loads(executor_input)["outputs"]
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    artifacts = {}
    for name, value in outputs.get("artifacts", {}).items():
        entries = [{"name": entry.get("name", name), "uri": entry["uri"]} for entry in value["artifacts"]]
        artifacts[name] = {
            "artifacts": [{**entry, "metadata": finite if name == artifact else {}} for entry in entries]
        }
    target = Path(outputs["outputFile"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"artifacts": artifacts}))
