"""The task of stage `train`."""

from kfp import dsl

from components import IMAGE, request_argv, torchrun


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
        command=torchrun("cmapkd_core.stages.train", processes, shutdown_timeout),
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
