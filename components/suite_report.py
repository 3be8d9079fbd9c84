"""The task of stage `suite_report`."""

from collections.abc import Mapping

from kfp import dsl

from components import IMAGE, stage_argv


def suite_report(
    recipe: str,
    ablation: str,
    overrides: str,
    seed: str,
    data: str,
    root: str,
    run: str,
    tracking_uri: str,
    redo: str,
    suite: str,
    evaluations: Mapping[str, str],
    trainings: Mapping[str, str],
    before: Mapping[str, str],
    more: Mapping[str, str],
    teacher_eval: str,
    executions: str,
    naive: str,
    expectations: str,
    artifact: dsl.OutputPath(str),  # type: ignore[valid-type]
    html: dsl.Output[dsl.HTML],
    markdown: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> dsl.ContainerSpec:
    """A suite's tables over seeds, paired differences and page, and the same as artifacts that the KFP UI shows."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "cmapkd_core.stages.suite_report"],
        args=stage_argv(locals(), executor_input=dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER),
    )
