"""The compiled package as Kubeflow Pipelines reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from pipelines.distill import PARAMETERS, compile_package, defaults, output_urls, tasks_of
from pipelines.graph import Plan, select
from pipelines.ir import load_package, steps
from pipelines.site import COMPONENT, PART_OF, Pod, Secret, Site, Toleration

GPU_POD = Pod(
    gpus=4,
    cpu="32",
    memory="128Gi",
    shm="16Gi",
    hours=1.5,
    node_selector={"pool": "gpu"},
    tolerations=(Toleration(key="gpu", effect="NoSchedule"),),
)
# every kind of evaluation of its own, on the run's data and on another set
SETS = "evaluate.sets=vqa=scenes_vqa,captioning,efficiency"
TASKS = tasks_of(resolve("tiny", overrides=SETS))
SITE = Site(
    root="s3://bucket/x",
    image="registry.test/cmapkd@sha256:1",
    image_pull_secrets=("pull",),
    env={"AWS_REGION": "here"},
    secrets=(Secret("s3-keys", {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}),),
    pods=dataclasses.replace(Site().pods, train=GPU_POD),
)
TRAINING = ("teacher", "warmup", "alsn", "joint", "reference-warmup", "reference-joint")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_package(SITE, tmp_path_factory.mktemp("ir") / "pipeline.yaml", Plan(TASKS), defaults(SITE))


@pytest.fixture(scope="module")
def tasks(package: Path) -> dict:
    """Per display name: the step and its Kubernetes configuration. The protos refuse fields they do not have."""
    spec, configs = load_package(package)
    return {step.name: (step, configs[step.component.executor_label]) for step in steps(spec)}


def test_the_run_form_has_the_eight_parameters_with_defaults_and_descriptions(package: Path) -> None:
    form = load_package(package)[0].root.input_definitions.parameters
    assert sorted(form) == sorted(PARAMETERS)
    for name, value in defaults(SITE).items():
        assert form[name].default_value.string_value == value
        assert form[name].is_optional
        assert len(form[name].description) > 20


@pytest.mark.parametrize(("sets", "splits"), [("retrieval=scenes_vqa", "data.splits=test"), ("vqa=scenes_vqa", "")])
def test_of_a_set_that_is_only_asked_the_split_of_the_questions_is_prepared(sets: str, splits: str) -> None:
    """A probe trains, and then all of its splits are."""
    tasks = tasks_of(resolve("tiny", overrides=f"evaluate.sets={sets},zeroshot=scenes_vqa"))
    (prepared,) = (task for task in tasks if task.name == "prepare-scenes_vqa")
    assert prepared.overrides == splits
    urls = output_urls(tasks, lambda task: resolve("tiny"), "root", "run")
    wanted = resolve("tiny", overrides=splits, data="scenes_vqa")
    assert urls[prepared.name] == stage_url("root", "prepare", wanted)


def test_tasks_and_what_they_wait_for(tasks: dict) -> None:
    key_to_name = {step.key: name for name, (step, _) in tasks.items()}
    waits = {name: {key_to_name[key] for key in step.needs} for name, (step, _) in tasks.items()}
    assert waits == {task.name: task.sources() for task in TASKS}
    assert waits["joint"] == {"prepare", "teacher", "alsn"}
    assert waits["evaluate-reference"] == {"prepare", "reference-joint"}


def test_no_task_depends_on_the_value_of_the_ablation(tasks: dict) -> None:
    for name, (step, _) in tasks.items():
        ablation = step.task.inputs.parameters["ablation"]
        if name.startswith("reference-"):
            assert ablation.runtime_value.constant.string_value == "finetune"
        else:
            assert ablation.component_input_parameter == "ablation"


def test_training_tasks_start_one_rank_per_gpu(tasks: dict) -> None:
    for name, (step, _) in tasks.items():
        command = list(step.container.command)
        if name in TRAINING:
            assert command[:3] == ["torchrun", "--standalone", "--nproc-per-node"]
            assert step.task.inputs.parameters["processes"].runtime_value.constant.string_value == "4"
            resources = step.container.resources
            assert (resources.accelerator.resource_type, resources.accelerator.resource_count) == (
                "nvidia.com/gpu",
                "4",
            )
        else:
            assert command[:2] == ["python", "-m"]


def test_every_pod_has_its_image_resources_retry_timeout_and_secrets(tasks: dict) -> None:
    for name, (step, config) in tasks.items():
        assert config.security_context.run_as_non_root
        assert dict(config.pod_metadata.labels) == {**PART_OF, COMPONENT: name}
        assert step.container.image == "{{$.inputs.parameters['pipelinechannel--image']}}"
        assert step.task.inputs.parameters["pipelinechannel--image"].component_input_parameter == "image"
        assert step.container.resources.resource_memory_limit
        assert step.container.resources.resource_cpu_limit
        assert {v.name: v.value for v in step.container.env} == {"AWS_REGION": "here"}
        assert not step.task.caching_options.enable_cache
        assert step.task.retry_policy.max_retry_count == 3
        assert step.task.retry_policy.backoff_duration.seconds == 60
        assert config.active_deadline_seconds > 0
        assert config.image_pull_policy == "IfNotPresent"
        assert [secret.secret_name for secret in config.image_pull_secret] == ["pull"]
        assert {e.env_var: e.secret_key for s in config.secret_as_env for e in s.key_to_env} == SITE.secrets[0].env
        assert {s.secret_name for s in config.secret_as_env} == {"s3-keys"}


def test_gpu_pods_are_placed_as_the_site_says(tasks: dict) -> None:
    config = tasks["joint"][1]
    assert config.active_deadline_seconds == 5400
    assert dict(config.node_selector.labels) == {"pool": "gpu"}
    assert [(t.key, t.operator, t.effect) for t in config.tolerations] == [("gpu", "Exists", "NoSchedule")]
    mount = config.empty_dir_mounts[0]
    assert (mount.mount_path, mount.medium, mount.size_limit) == ("/dev/shm", "Memory", "16Gi")
    assert not tasks["prepare"][1].tolerations


def test_the_report_shows_html_markdown_and_metrics(tasks: dict) -> None:
    step = tasks["report"][0]
    kinds = {name: a.artifact_type.schema_title for name, a in step.component.output_definitions.artifacts.items()}
    assert kinds == {"html": "system.HTML", "markdown": "system.Markdown", "metrics": "system.Metrics"}


def test_one_stage_alone_takes_the_others_from_their_urls(tmp_path: Path) -> None:
    done = {task.name: f"s3://bucket/{task.name}" for task in TASKS if task.name != "joint"}
    plan = Plan(select(TASKS, only="joint"), done, "old-run", redo="yes")
    spec, _ = load_package(compile_package(SITE, tmp_path / "one.yaml", plan, defaults(SITE)))
    (step,) = steps(spec)
    given = {name: p.runtime_value.constant.string_value for name, p in step.task.inputs.parameters.items()}
    assert step.name == "joint"
    assert not step.needs
    assert (given["init"], given["teacher"], given["run"], given["redo"]) == (
        "s3://bucket/alsn",
        "s3://bucket/teacher",
        "old-run",
        "yes",
    )


def test_a_stage_and_what_follows_from_it() -> None:
    own = [f"{task}-student" for task in ("vqa-scenes_vqa", "captioning", "efficiency")]
    follow = ["joint", "evaluate-student", "levels", "export", *own, "report"]
    assert [task.name for task in select(TASKS, start="joint")] == follow
    assert [task.name for task in select(TASKS, start="reference-joint")] == [
        "reference-joint",
        "evaluate-reference",
        "vqa-scenes_vqa-reference",
        "captioning-reference",
        "report",
    ]
    assert {task.name for task in TASKS} - {task.name for task in select(TASKS, start="prepare")} == {
        "prepare-scenes_vqa"
    }


def test_an_evaluation_on_other_data_prepares_them_once_and_reads_them(tasks: dict) -> None:
    step = tasks["prepare-scenes_vqa"][0]
    assert step.task.inputs.parameters["data"].runtime_value.constant.string_value == "scenes_vqa"
    for role in ("student", "reference", "teacher"):
        vqa = tasks[f"vqa-scenes_vqa-{role}"][0]
        assert step.key in vqa.needs
        assert vqa.task.inputs.parameters["task"].runtime_value.constant.string_value == "vqa"
    report = next(task for task in TASKS if task.name == "report")
    assert report.collects["evaluations"]["vqa-scenes_vqa/teacher"] == "vqa-scenes_vqa-teacher"
    assert report.collects["evaluations"]["efficiency/student"] == "efficiency-student"
