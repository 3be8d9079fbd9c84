"""One Kubeflow container component per stage: an argv and nothing else.

Every stage takes the same request (which recipe, where the artifacts lie, under what run name), the URLs of
the artifacts that it reads, and writes the URL of its own artifact into an output file. The image is set by
the pipeline; it needs no ENTRYPOINT.
"""

from collections.abc import Mapping
from typing import Any

IMAGE = "set-by-the-pipeline"


LAUNCH = ("launch", "processes", "shutdown_timeout", "job")  # how a stage is started, which the stage is not told


def stage_argv(given: Mapping[str, Any], **more: Any) -> list[Any]:
    """`--name value` for every parameter of a component, in order; `given` is its `locals()`, KFP placeholders.

    Of an output artifact the stage is told the local path.
    """
    told = {name: getattr(value, "path", value) for name, value in given.items() if name not in LAUNCH} | more
    return [part for name, value in told.items() for part in (f"--{name.replace('_', '-')}", value)]


def torchrun(module: str, processes: Any, shutdown_timeout: Any, job: Any) -> list[Any]:
    """The command that starts `processes` ranks of a stage.

    torchrun kills its ranks `shutdown_timeout` seconds after SIGTERM; it must be below the pod's grace period,
    or a preempted pod loses the steps since its last checkpoint.
    """
    launcher = ["torchrun", "--standalone", "--nproc-per-node", processes, "--shutdown-timeout", shutdown_timeout]
    return [*launcher, "-m", "--", module]  # without -- torchrun takes the stage's --run for its own --run-path


def alone(module: str, processes: Any, shutdown_timeout: Any, job: Any) -> list[Any]:
    """The command of a stage with a single rank: no launcher between the stage and its exit code."""
    return ["python", "-m", module]


def spread(module: str, processes: Any, shutdown_timeout: Any, job: Any) -> list[Any]:
    """The command that starts a stage on several pods, as the TrainJob `job` (pipelines/trainjob.py), and waits."""
    ranks = ["--processes", processes, "--shutdown-timeout", shutdown_timeout]
    return ["python", "-m", "pipelines.trainjob", "--job", job, *ranks, "--", module]
