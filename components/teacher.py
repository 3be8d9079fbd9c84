"""The task of stage `teacher`."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components import IMAGE, alone, spread, stage_argv, torchrun


def made(launch: Callable[..., list[Any]]) -> Any:
    """The component with one of the three ways to start a stage."""

    @dsl.container_component
    def teacher(
        recipe: str,
        ablation: str,
        overrides: str,
        seed: str,
        data: str,
        root: str,
        run: str,
        tracking_uri: str,
        redo: str,
        shards: str,
        processes: str,
        shutdown_timeout: str,
        job: str,
        image: str,
        artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    ) -> dsl.ContainerSpec:
        """Frozen teacher -> its fitted pyramid, bridges and joint space."""
        return dsl.ContainerSpec(
            image=IMAGE,
            command=launch("cmapkd_core.stages.teacher", processes, shutdown_timeout, job, image),
            args=stage_argv(locals()),
        )

    return teacher


teacher, teacher_alone, teacher_spread = made(torchrun), made(alone), made(spread)
