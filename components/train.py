"""The task of stage `train`."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components import IMAGE, alone, spread, stage_argv, torchrun


def made(launch: Callable[..., list[Any]]) -> Any:
    """The component with one of the three ways to start a stage."""

    @dsl.container_component
    def train(
        recipe: str,
        ablation: str,
        overrides: str,
        seed: str,
        data: str,
        root: str,
        run: str,
        tracking_uri: str,
        redo: str,
        stage: str,
        shards: str,
        teacher: str,
        init: str,
        processes: str,
        shutdown_timeout: str,
        job: str,
        image: str,
        artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
        own_overrides: str = "",
    ) -> dsl.ContainerSpec:
        """One training stage of a student (warmup, alsn or joint) on the GPUs of one pod or of several."""
        return dsl.ContainerSpec(
            image=IMAGE,
            command=launch("cmapkd_core.stages.train", processes, shutdown_timeout, job, image),
            args=stage_argv(locals()),
        )

    return train


train, train_alone, train_spread = made(torchrun), made(alone), made(spread)
