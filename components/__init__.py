"""One Kubeflow container component per stage: an argv and nothing else.

Every stage takes the same request (which recipe, where the artifacts lie, under what run name), the URLs of
the artifacts that it reads, and writes the URL of its own artifact into an output file. The image is set by
the pipeline; it needs no ENTRYPOINT.
"""

from typing import Any

IMAGE = "set-by-the-pipeline"


def request_argv(**request: Any) -> list[Any]:
    """`--name value` for every part of a request, in the order given; values are KFP placeholders."""
    return [part for name, value in request.items() for part in (f"--{name.replace('_', '-')}", value)]


def torchrun(module: str, processes: Any, shutdown_timeout: Any) -> list[Any]:
    """The command that starts `processes` ranks of a stage.

    torchrun kills its ranks `shutdown_timeout` seconds after SIGTERM; it must be below the pod's grace period,
    or a preempted pod loses the steps since its last checkpoint.
    """
    launcher = ["torchrun", "--standalone", "--nproc-per-node", processes, "--shutdown-timeout", shutdown_timeout]
    return [*launcher, "-m", "--", module]  # without -- torchrun takes the stage's --run for its own --run-path


def alone(module: str, processes: Any, shutdown_timeout: Any) -> list[Any]:
    """The command of a stage with a single rank: no launcher between the stage and its exit code."""
    return ["python", "-m", module]
