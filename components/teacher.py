"""The task of stage `teacher`."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components import IMAGE, alone, request_argv, torchrun


def made(launch: Callable[[str, Any, Any], list[Any]]) -> Any:
    """The component with one of the two ways to start a stage."""

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
        artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    ) -> dsl.ContainerSpec:
        """Frozen teacher -> its fitted pyramid, bridges and joint space."""
        return dsl.ContainerSpec(
            image=IMAGE,
            command=launch("cmapkd_core.stages.teacher", processes, shutdown_timeout),
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
                shards=shards,
                artifact=artifact,
            ),
        )

    return teacher


teacher, teacher_alone = made(torchrun), made(alone)
