"""The task of stage `levels`."""

from kfp import dsl

from components import IMAGE, stage_argv


@dsl.container_component
def levels(
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
    teacher: str,
    joint: str,
    artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> dsl.ContainerSpec:
    """Teacher's and student's levels side by side on held-out pairs, for the report's figures."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.levels"],
        args=stage_argv(locals()),
    )
