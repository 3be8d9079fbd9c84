"""The pipeline through kfp.local's DockerRunner, and single commands in the image."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import services
import yaml
from kfp import components, local

from pipelines.submission import Submission

IMAGE = os.environ.get("CMAPKD_IMAGE", "cmapkd:cuda")  # what `make images` called its last one


def run_pipeline(job: Submission, env: Mapping[str, str], folder: Path) -> None:
    """Run the compiled package, every task in a container that is closed as a restricted pod is.

    kfp.local 2.17 leaves the placeholder of the image parameter as it is, so the image is put into the package.

    Raises:
        RuntimeError: a task failed.
    """
    package = job.package(folder / "pipeline.yaml")
    spec, platform = yaml.safe_load_all(package.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = IMAGE
    package.write_text(yaml.safe_dump_all([spec, platform]))
    closed: dict[str, Any] = {
        "read_only": True,
        "tmpfs": {"/tmp": "size=8g"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    # What KFP's launcher does in a pod, the container does itself here: its user, who is not ours, writes the outputs.
    with tempfile.TemporaryDirectory(prefix="cmapkd-outputs-", ignore_cleanup_errors=True) as outputs:
        Path(outputs).chmod(0o777)
        local.init(
            runner=local.DockerRunner(network_mode="host", shm_size="1g", environment=dict(env), **closed),
            pipeline_root=outputs,
        )
        components.load_component_from_file(str(package))(**job.arguments | {"image": IMAGE})


def output(env: Mapping[str, str], *command: str) -> str:
    """What a command prints in a container of the image; it must end well."""
    variables = [part for item in env.items() for part in ("--env", "=".join(item))]
    run = ["docker", "run", "--rm", "--network", "host", *services.CLOSED, *variables, IMAGE, *command]
    found = subprocess.run(run, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout
