"""The task of stage `evaluate`."""

from kfp import dsl

from components import IMAGE, request_argv


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
) -> dsl.ContainerSpec:
    """A model's retrieval and zero-shot results on the held-out split."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.evaluate"],
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
            model=model,
            shards=shards,
            artifact=artifact,
        ),
    )
