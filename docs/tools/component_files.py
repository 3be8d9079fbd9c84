"""The stages as component files of Kubeflow Pipelines: `python docs/tools/component_files.py` writes components/.

A file has every argument that a task of a run gives its stage; components/README.md says how to use one.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from cmapkd.pipelines.check_run import one_a_component  # noqa: E402
from cmapkd.pipelines.components import alone, torchrun  # noqa: E402
from cmapkd.pipelines.tasks import Task, tasks_of  # noqa: E402
from cmapkd_core.recipes import resolve  # noqa: E402
from cmapkd_core.request import Request  # noqa: E402

FOLDER = REPOSITORY / "components"
IMAGE = "cmapkd:cuda"  # as `make images` calls it here
MADE = "# Written by docs/tools/component_files.py.\n"
SAID = {one.name: one.metadata.get("form") or one.metadata.get("flag") for one in dataclasses.fields(Request)}


def main() -> None:
    """Write every file."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def texts() -> dict[str, str]:
    """Names of the files and what they hold."""
    tasks = one_a_component(tasks_of(resolve("paper", overrides="data.partitions=2")))
    return {
        f"{one.component.stage}.yaml": MADE + yaml.safe_dump(_spec(one), sort_keys=False, width=120) for one in tasks
    }


def _spec(task: Task) -> dict[str, Any]:
    """Its component.yaml, with the image's name, and with inputs that the command uses alone."""
    component = task.component
    launch = torchrun if component.ranks else alone
    arguments = tuple(dict.fromkeys((*task.inputs, *task.values)))  # a model comes from a task, or is named
    spec = component.spec(component.stage, launch, arguments, task.collects)
    container = spec["implementation"]["container"] | {"image": IMAGE}
    used = [part["inputValue"] for part in container["command"] + container["args"] if "inputValue" in part]
    inputs = [one | _description(one["name"]) for one in spec["inputs"] if one["name"] in used]
    return spec | {"inputs": inputs, "implementation": {"container": container}}


def _description(name: str) -> dict[str, str]:
    return {"description": text} if (text := SAID.get(name)) else {}


if __name__ == "__main__":
    main()
