"""The task of stage `export`."""

from kfp import dsl

from components import IMAGE, stage_argv


@dsl.container_component
def export(
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
    evaluation: str,
    artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> dsl.ContainerSpec:
    """The student for open_clip, transformers and ONNX Runtime, with its model card."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.export"],
        args=stage_argv(locals()),
    )
