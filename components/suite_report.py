"""The task of stage `suite_report`."""

from kfp import dsl

from components import IMAGE, request_argv


@dsl.container_component
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
    evaluations: str,
    trainings: str,
    before: str,
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
            suite=suite,
            evaluations=evaluations,
            trainings=trainings,
            before=before,
            teacher_eval=teacher_eval,
            executions=executions,
            naive=naive,
            expectations=expectations,
            artifact=artifact,
            html=html.path,
            markdown=markdown.path,
            metrics=metrics.path,
            executor_input=dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ),
    )
