"""One Kubeflow container component per stage: an argv and nothing else.

Every stage takes the same request (which recipe, where the artifacts lie, under what run name), the URLs of
the artifacts that it reads, and writes the URL of its own artifact into an output file. The image is set by
the pipeline; it needs no ENTRYPOINT.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

IMAGE = "set-by-the-pipeline"
# How a stage is started, which the stage is not told.
LAUNCH = ("launch", "processes", "shutdown_timeout", "job", "image")


def stage_argv(given: Mapping[str, Any], **more: Any) -> list[Any]:
    """`--name value` for every parameter of a component, in order; `given` is its `locals()`, KFP placeholders.

    Of an output artifact the stage is told the local path, of several artifacts `--name key URL key URL`.
    """
    told = {name: getattr(value, "path", value) for name, value in given.items() if name not in LAUNCH} | more
    return [part for name, value in told.items() for part in (f"--{name.replace('_', '-')}", *_elements(value))]


def _elements(value: Any) -> list[Any]:
    return [part for pair in value.items() for part in pair] if isinstance(value, Mapping) else [value]


def torchrun(module: str, processes: Any, shutdown_timeout: Any, job: Any, image: Any) -> list[Any]:
    """The command that starts `processes` ranks of a stage.

    torchrun kills its ranks `shutdown_timeout` seconds after SIGTERM; it must be below the pod's grace period,
    or a preempted pod loses the steps since its last checkpoint.
    """
    launcher = ["torchrun", "--standalone", "--nproc-per-node", processes, "--shutdown-timeout", shutdown_timeout]
    return [*launcher, "-m", "--", module]  # without -- torchrun takes the stage's --run for its own --run-path


def alone(module: str, processes: Any, shutdown_timeout: Any, job: Any, image: Any) -> list[Any]:
    """The command of a stage with a single rank: no launcher between the stage and its exit code."""
    return ["python", "-m", module]


def spread(module: str, processes: Any, shutdown_timeout: Any, job: Any, image: Any) -> list[Any]:
    """The command that starts a stage on several pods, as the TrainJob `job` of `image` (pipelines/trainjob.py)."""
    ranks = ["--processes", processes, "--shutdown-timeout", shutdown_timeout]
    return ["python", "-m", "pipelines.trainjob", "--job", job, "--image", image, *ranks, "--", module]


def collecting(function: Callable[..., dsl.ContainerSpec], collects: Mapping[str, Mapping[str, str]]) -> Any:
    """The component of a function of which some arguments hold an artifact for each of their keys.

    Each such artifact is an input of its own, and a whole element of the argv. In a longer string KFP finds a
    placeholder by chance alone: the launcher replaces each once and in random order (kubeflow/pipelines#13977), and
    the driver takes an element that holds one for that one.

    Args:
        collects: argument -> its keys; the input of each is `collected_name`.
    """
    signature = inspect.signature(function)
    plain = [parameter for name, parameter in signature.parameters.items() if name not in collects]
    names = [collected_name(argument, key) for argument, keys in collects.items() for key in keys]
    inputs = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str) for name in names]

    def made(*values: Any) -> dsl.ContainerSpec:
        given = dict(zip([*(parameter.name for parameter in plain), *names], values, strict=True))
        urls = {name: {key: given.pop(collected_name(name, key)) for key in keys} for name, keys in collects.items()}
        return function(**given, **urls)

    made.__name__, made.__doc__ = function.__name__, function.__doc__
    made.__signature__ = signature.replace(parameters=[*plain, *inputs])  # type: ignore[attr-defined]
    return dsl.container_component(made)


def collected_name(argument: str, key: str) -> str:
    """Name of the input that is `key` of an argument: evaluations_no_alsn_0."""
    return re.sub(r"\W", "_", f"{argument}_{key}")
