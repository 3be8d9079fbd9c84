"""The task of stage `train`."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components import IMAGE, alone, request_argv, torchrun


def made(launch: Callable[[str, Any, Any], list[Any]]) -> Any:
    """The component with one of the two ways to start a stage."""

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
        artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    ) -> dsl.ContainerSpec:
        """One training stage of a student (warmup, alsn or joint) on the GPUs of one pod."""
        return dsl.ContainerSpec(
            image=IMAGE,
            command=launch("cmapkd_core.stages.train", processes, shutdown_timeout),
            args=request_argv(
                recipe=recipe,
                ablation=ablation,
                overrides=overrides,
                seed=seed,
                data=data,
                root=root,
                run=run,
                tracking_uri=tracking_uri,
                redo=redo,
                stage=stage,
                shards=shards,
                teacher=teacher,
                init=init,
                artifact=artifact,
            ),
        )

    return train


train, train_alone = made(torchrun), made(alone)
