"""Every pod of every compiled package (a run, a suite, a site's check), read back and held against the site file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines import check_run, runs, suite, trainjob
from cmapkd.pipelines.ir import PLACEHOLDER, Step, command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.package import Plan, build, defaults, write_package
from cmapkd.pipelines.retries import TEMPLATE
from cmapkd.pipelines.site import (
    CHECK_MINUTES,
    COMPONENT,
    PART_OF,
    Pod,
    Pods,
    Retry,
    Secret,
    Site,
    Toleration,
    load_site,
)
from cmapkd.pipelines.tasks import tasks_of
from cmapkd_core.recipes import resolve

DIGEST = "registry.example.org/team/cmapkd@sha256:" + 64 * "7"
GPU_NODES: dict[str, Any] = {"node_selector": {"pool": "gpu"}, "tolerations": (Toleration("gpu", effect="NoSchedule"),)}
# What site.example.toml says, in its words, so that a default that changes is seen here.
DEFAULTS = {
    "prepare": Pod(gpus=0, cpu="8", memory="32Gi", shm="", scratch="", hours=24),
    "train": Pod(gpus=8, cpu="64", memory="256Gi", shm="64Gi", scratch="", hours=72),
    "evaluate": Pod(gpus=1, cpu="8", memory="64Gi", shm="8Gi", scratch="", hours=24),
    "report": Pod(gpus=0, cpu="4", memory="16Gi", shm="", scratch="", hours=2),
    "gate": Pod(gpus=0, cpu="250m", memory="2Gi", shm="", scratch="", hours=1440),
}
OTHERS = {
    "prepare": Pod(cpu="16", memory="48Gi", scratch="500Gi", hours=12, node_selector={"disk": "fast"}),
    "train": Pod(gpus=4, cpu="32", memory="128Gi", shm="16Gi", scratch="60Gi", hours=1.5, **GPU_NODES),
    "evaluate": Pod(gpus=2, cpu="12", memory="96Gi", shm="4Gi", scratch="70Gi", hours=5, **GPU_NODES),
    "report": Pod(cpu="500m", memory="2Gi", hours=0.5, tolerations=(Toleration("spot", "Equal", "yes", "NoExecute"),)),
    "gate": Pod(cpu="100m", memory="1Gi", hours=100, node_selector={"pool": "small"}),
}
LAUNCHER = Pod(gpus=0, cpu="1", memory="4Gi")  # the pod that starts a TrainJob and waits
SITES = {
    "example": replace(load_site(str(Path(__file__).parents[2] / "site.example.toml"), required=True), image=DIGEST),
    "filled": Site(
        root="s3://bucket/x",
        image=DIGEST,
        image_pull_policy="Always",
        image_pull_secrets=("pull",),
        accelerator="amd.com/gpu",
        shutdown_timeout=20,
        env={"AWS_REGION": "here"},
        secrets=(
            Secret("s3-keys", {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}),
            Secret("mlflow", {"MLFLOW_TRACKING_PASSWORD": "password"}),
        ),
        retry=Retry(count=5, wait="2m", factor=3.0),
        pods=Pods(**OTHERS),
    ),
}
ASKED = {"example": DEFAULTS, "filled": OTHERS}
# How the names of tasks begin -> the kind of their pods.
KINDS = {
    r"prepare|check-prepare": "prepare",
    r"teacher|warmup|alsn|joint|reference-|check-teacher|check-train": "train",
    r"evaluate-|levels|vqa-|captioning-|efficiency-|check-evaluate|check-levels": "evaluate",
    r"export|report|suite-report|check-export|check-report": "report",
    r"gate|check-gate": "gate",
}
CANARY = "canary-91c2"  # the value of every secret where a package is compiled
HELD = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "KF_PIPELINES_TOKEN")
SETS = "evaluate.sets=vqa=scenes_vqa,captioning,efficiency"  # every kind of evaluation of its own


def run_package(site: Site) -> Any:
    return build(site, Plan(tasks_of(resolve("tiny", overrides=SETS))), defaults(site))


def suite_package(site: Site) -> Any:
    request = {"recipe": "tiny", "overrides": SETS, "data": ""}
    laid = suite.lay_out("smoke", request, range(2), site.root, "a-run")
    tasks = (runs.GATES, *suite.in_lanes(laid.shared, site.parallel))
    return build(site, Plan(tasks, run="a-run"), defaults(site), {"ablation": "none", "seed": "", **request})


def check_package(site: Site) -> Any:
    return check_run.pipeline(site, CHECK_MINUTES)


PACKAGES = {"run": run_package, "suite": suite_package, "check": check_package}


def kind_of(task: str) -> str:
    (kind,) = {kind for names, kind in KINDS.items() if re.match(names, task)}
    return kind


@dataclass(frozen=True)
class Compiled:
    """A package, the site it is for, and what each kind of pod shall have."""

    package: str
    site: Site
    asked: dict[str, Pod]
    path: Path

    @cached_property
    def loaded(self) -> tuple[Any, dict[str, Any]]:
        """The pipeline and the Kubernetes configuration per executor, as protos that refuse unknown fields."""
        return load_package(self.path)

    @cached_property
    def pods(self) -> list[tuple[str, Step, Any]]:
        """(kind, step, Kubernetes configuration) of every task."""
        spec, configs = self.loaded
        return [(kind_of(step.name), step, configs[step.component.executor_label]) for step in steps(spec)]

    def spreads(self, kind: str) -> bool:
        """Whether the task's own pod is a launcher."""
        return kind == "train" and self.site.pods.train.nodes > 1

    @property
    def form(self) -> dict[str, str]:
        """The package's parameters with their defaults."""
        parameters = self.loaded[0].root.input_definitions.parameters
        return {name: parameter.default_value.string_value for name, parameter in parameters.items()}

    def inputs(self, step: Step) -> dict[str, str]:
        """What the task is told."""
        return resolve_inputs(step, self.form, {key: {"artifact": f"s3://box/{key}"} for key in step.needs}, "a-run")

    def argv(self, step: Step) -> list[str]:
        """What the pod runs."""
        return command_line(step, executor_input(step, self.inputs(step), Path("/outputs")))


def placeholders(step: Step) -> list[str]:
    """Every string of a task that holds a placeholder: constants among its inputs, and elements of its argv."""
    constants = [value.runtime_value.constant.string_value for value in step.task.inputs.parameters.values()]
    return [text for text in (*constants, *step.container.command, *step.container.args) if "{{$" in text]


CASES = [
    *((package, site, 1) for package in ("run", "suite", "check") for site in SITES),
    *((package, site, 2) for package in ("run", "check") for site in SITES),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    package, name, nodes = request.param
    site, asked = SITES[name], ASKED[name]
    site = replace(site, pods=replace(site.pods, train=replace(site.pods.train, nodes=nodes)))
    if package == "check":
        asked = {kind: replace(pod, hours=CHECK_MINUTES / 60) for kind, pod in asked.items()}
    with pytest.MonkeyPatch.context() as patch:
        for variable in HELD:
            patch.setenv(variable, CANARY)
        path = write_package(PACKAGES[package](site), tmp_path_factory.mktemp("package") / "package.yaml")
    return Compiled(package, site, asked, path)


def read_back(step: Step, config: Any) -> Pod:
    """What a task's pod asks for, as the site file would say it."""
    has = step.container.resources
    assert has.resource_cpu_request == has.resource_cpu_limit
    assert has.resource_memory_request == has.resource_memory_limit
    mounts = {mount.mount_path: (mount.medium, mount.size_limit) for mount in config.empty_dir_mounts}
    assert all(medium == ("Memory" if path == "/dev/shm" else "") for path, (medium, _) in mounts.items())
    return Pod(
        gpus=int(has.accelerator.resource_count or 0),
        cpu=has.resource_cpu_limit,
        memory=has.resource_memory_limit,
        shm=mounts.pop("/dev/shm", ("", ""))[1],
        scratch=mounts.pop("/tmp", ("", ""))[1],
        hours=config.active_deadline_seconds / 3600,
        node_selector=dict(config.node_selector.labels),
        tolerations=tuple(Toleration(t.key, t.operator, t.value, t.effect) for t in config.tolerations),
    )


def read_back_job(job: dict[str, Any], accelerator: str) -> Pod:
    """The same of a TrainJob's pods."""
    spec, asks = job["pod"], job["resources"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}
    assert all(mount.get("medium", "") == ("Memory" if path == "/dev/shm" else "") for path, mount in mounts.items())
    return Pod(
        gpus=int(asks.get(accelerator, 0)),
        cpu=asks["cpu"],
        memory=asks["memory"],
        shm=mounts.get("/dev/shm", {}).get("sizeLimit", ""),
        scratch=mounts["/tmp"].get("sizeLimit", ""),
        hours=job["seconds"] / 3600,
        node_selector=spec.get("nodeSelector", {}),
        tolerations=tuple(Toleration(**taint) for taint in spec.get("tolerations", [])),
    )


def test_every_kind_of_pod_is_walked(compiled: Compiled) -> None:
    assert {kind for kind, *_ in compiled.pods} == set(DEFAULTS) - ({"gate"} if compiled.package == "run" else set())
    if compiled.package == "run":
        training = {step.name for kind, step, _ in compiled.pods if kind == "train"}
        assert training == {"teacher", "warmup", "alsn", "joint", "reference-warmup", "reference-joint"}


def test_a_pod_has_the_resources_time_and_place_of_its_kind(compiled: Compiled) -> None:
    for kind, step, config in compiled.pods:
        asked = compiled.asked[kind]
        here = replace(LAUNCHER, hours=asked.hours) if compiled.spreads(kind) else asked
        assert read_back(step, config) == here, step.name
        if here.gpus:
            assert step.container.resources.accelerator.resource_type == compiled.site.accelerator


WEEK = 604800  # seconds that each attempt may wait for its node
# Retries, the first wait, what the next is longer by, all waits: of a check and of each site.
RETRIES = {"check": (0, 60, 2.0, 0), "example": (3, 60, 2.0, 60 + 120 + 240), "filled": (5, 120, 3.0, 120 * 121)}


def test_a_failed_pod_starts_again_as_the_site_says(compiled: Compiled) -> None:
    """And Argo's total of all its attempts, from the start of the first, cuts none of them."""
    name = next(name for name in SITES if SITES[name].retry == compiled.site.retry)
    count, wait, factor, waits = RETRIES["check" if compiled.package == "check" else name]
    for kind, step, config in compiled.pods:
        policy = step.task.retry_policy
        told = policy.max_retry_count, policy.backoff_duration.seconds, policy.backoff_factor
        assert told == (count, wait, factor), step.name
        assert config.active_deadline_seconds == compiled.asked[kind].hours * 3600
        whole = (count + 1) * (config.active_deadline_seconds + WEEK) + waits
        assert policy.backoff_max_duration.seconds == whole, step.name
        assert not step.task.caching_options.enable_cache


def test_a_pod_has_the_image_by_its_digest_and_is_not_root(compiled: Compiled) -> None:
    for _, step, config in compiled.pods:
        parameter = compiled.inputs(step).get("pipelinechannel--image", "")  # with what the run form has by itself
        image = step.container.image.replace("{{$.inputs.parameters['pipelinechannel--image']}}", parameter)
        assert image == DIGEST, step.name
        assert config.security_context.run_as_non_root
        assert config.image_pull_policy == compiled.site.image_pull_policy
        assert [secret.secret_name for secret in config.image_pull_secret] == list(compiled.site.image_pull_secrets)
        assert dict(config.pod_metadata.labels) == {**PART_OF, COMPONENT: step.name}
        assert not config.pod_metadata.annotations
        # KFP's name for the template of its container, which the patch that lets Argo retry it is for.
        assert f"metadata-0-{len(config.pod_metadata.labels)}-retry-system-container-impl" == TEMPLATE


def test_a_package_names_secrets_and_has_no_value_of_one(compiled: Compiled) -> None:
    wanted = {(one.name, name, key) for one in compiled.site.secrets for name, key in one.env.items()}
    for _, step, config in compiled.pods:
        named = {(s.secret_name, e.env_var, e.secret_key) for s in config.secret_as_env for e in s.key_to_env}
        assert named == wanted, step.name
        assert {variable.name: variable.value for variable in step.container.env} == compiled.site.env
    assert CANARY not in compiled.path.read_text()


def test_training_has_a_rank_for_each_gpu(compiled: Compiled) -> None:
    for kind, step, _ in compiled.pods:
        argv, gpus = compiled.argv(step), compiled.asked[kind].gpus
        ranks = [str(gpus), "--shutdown-timeout", str(compiled.site.shutdown_timeout)]
        if compiled.spreads(kind):
            assert argv[:4] == ["python", "-m", "cmapkd.pipelines.trainjob", "--job"]
            assert argv[5:11] == ["--image", DIGEST, "--processes", *ranks]
        elif kind == "train":
            assert argv[:6] == ["torchrun", "--standalone", "--nproc-per-node", *ranks]
        else:
            assert argv[:2] == ["python", "-m"]
            assert argv[2].startswith("cmapkd_core.stages.")


def test_the_pods_of_a_trainjob_are_those_of_training(compiled: Compiled) -> None:
    site, secrets = compiled.site, [(one.name, *pair) for one in compiled.site.secrets for pair in one.env.items()]
    launchers = [step for kind, step, _ in compiled.pods if compiled.spreads(kind)]
    assert bool(launchers) == (site.pods.train.nodes > 1)
    for step in launchers:
        argv = compiled.argv(step)
        job = trainjob.in_image(json.loads(argv[4]), argv[6])
        assert read_back_job(job, site.accelerator) == compiled.asked["train"], step.name
        assert (job["image"], job["nodes"]) == (DIGEST, 2)
        (container,) = job["pod"]["containers"]
        assert (container["image"], container["imagePullPolicy"]) == (DIGEST, site.image_pull_policy)
        assert job["pod"]["securityContext"]["runAsNonRoot"]
        assert [one["name"] for one in job["pod"].get("imagePullSecrets", [])] == list(site.image_pull_secrets)
        assert {one["name"]: one["value"] for one in container["env"] if "value" in one} == site.env
        named = [(one["name"], one["valueFrom"]["secretKeyRef"]) for one in container["env"] if "valueFrom" in one]
        assert [(ref["name"], variable, ref["key"]) for variable, ref in named] == secrets


def test_a_placeholder_is_a_whole_string(compiled: Compiled) -> None:
    """KFP's launcher fills in one inside a longer constant by chance, its driver takes one for the whole element."""
    found = [text for _, step, _ in compiled.pods for text in placeholders(step)]
    assert len(found) > len(compiled.pods)
    assert [text for text in found if not PLACEHOLDER.fullmatch(text)] == []
