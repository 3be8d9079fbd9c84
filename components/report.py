"""The task of stage `report`."""

from collections.abc import Mapping

from kfp import dsl

from components import IMAGE, stage_argv


def report(
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
    warmup: str,
    alsn: str,
    joint: str,
    reference: str,
    teacher_eval: str,
    before_eval: str,
    student_eval: str,
    reference_eval: str,
    evaluations: Mapping[str, str],
    artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    html: dsl.Output[dsl.HTML],
    markdown: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    levels: str = "",
) -> dsl.ContainerSpec:
    """The run's table, figures and page, and the same as artifacts that the KFP UI shows.

    HTML and Markdown are files. The numbers of `metrics` reach the UI only as metadata in KFP's executor output
    (kubeflow/pipelines#6116), so the stage also gets the executor input, which says where that file goes.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.report"],
        args=stage_argv(locals(), executor_input=dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER),
    )
