"""The task of stage `evaluate`."""

from kfp import dsl

from components import IMAGE, stage_argv


@dsl.container_component
def evaluate(
    recipe: str,
    ablation: str,
    overrides: str,
    seed: str,
    data: str,
    root: str,
    run: str,
    tracking_uri: str,
    redo: str,
    model: str,
    shards: str,
    artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    task: str = "",
    own_overrides: str = "",
) -> dsl.ContainerSpec:
    """What a model can do on held-out data and what it costs: one task of the evaluation, or the recipe's."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.evaluate"],
        args=stage_argv(locals()),
    )
