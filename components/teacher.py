"""The task of stage `teacher`."""

from kfp import dsl

from components import IMAGE, request_argv, torchrun


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
        command=torchrun("cmapkd_core.stages.teacher", processes, shutdown_timeout),
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
