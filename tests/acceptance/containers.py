"""The pipeline through kfp.local's DockerRunner, and single commands in the image."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import services
import yaml
from kfp import components, local

from cmapkd.pipelines.submission import Submission

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


def command_line(env: Mapping[str, str], command: Sequence[str], *options: str) -> list[str]:
    """What runs a command in a container of the image, closed as a restricted pod is."""
    variables = [part for item in env.items() for part in ("--env", "=".join(item))]
    return ["docker", "run", "--rm", "--network", "host", *services.CLOSED, *variables, *options, IMAGE, *command]


def output(env: Mapping[str, str], *command: str) -> str:
    """What a command prints in a container; it must end well."""
    found = subprocess.run(command_line(env, command), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def killed(env: Mapping[str, str], *command: str, when: Callable[[], bool]) -> int:
    """The exit code of a command whose container is killed without a warning, once `when` says so."""
    name = f"cmapkd-killed-{os.getpid()}"
    argv = command_line(env, command, "--name", name)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not when() and process.poll() is None:
            time.sleep(0.1)
        subprocess.run(["docker", "kill", name], capture_output=True, check=False)
        return process.wait()


def commit() -> str:
    """The commit that the image says it was built from."""
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    command = ["docker", "image", "inspect", "--format", label, IMAGE]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
