"""The task of stage `prepare`."""

from kfp import dsl

from components import IMAGE, stage_argv


@dsl.container_component
def prepare(
    recipe: str,
    ablation: str,
    overrides: str,
    seed: str,
    data: str,
    root: str,
    run: str,
    tracking_uri: str,
    redo: str,
    artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    own_overrides: str = "",
) -> dsl.ContainerSpec:
    """Source pictures and captions -> validated, split shards with a manifest."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.prepare"],
        args=stage_argv(locals()),
    )
