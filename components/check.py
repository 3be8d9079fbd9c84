"""The task of stage `check`, which `submit.py --check` runs once for each kind of pod."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components import IMAGE, alone, spread, stage_argv, torchrun


def made(launch: Callable[..., list[Any]]) -> Any:
    """The component with one of the three ways to start a stage."""

    @dsl.container_component
    def check(
        recipe: str,
        ablation: str,
        overrides: str,
        seed: str,
        data: str,
        root: str,
        run: str,
        tracking_uri: str,
        redo: str,
        kind: str,
        gpus: str,
        processes: str,
        shutdown_timeout: str,
        job: str,
        image: str,
        artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    ) -> dsl.ContainerSpec:
        """Root, MLflow, GPUs and ranks as a stage meets them in this kind of pod."""
        return dsl.ContainerSpec(
            image=IMAGE,
            command=launch("cmapkd_core.stages.check", processes, shutdown_timeout, job, image),
            args=stage_argv(locals()),
        )

    return check


check, check_alone, check_spread = made(torchrun), made(alone), made(spread)
