"""The policy for TrainJobs, evaluated: it lets in what cmapkd/pipelines/trainjob.py makes, and no more."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmapkd.pipelines.site import Pod, Secret, Site, Toleration
from cmapkd.pipelines.trainjob import describe, in_image, train_job, training_runtime

celpy = pytest.importorskip("celpy", reason="no cel-python, which evaluates the policy")
FILE = Path(__file__).parents[2] / "k8s" / "components" / "multi-node" / "admission.yaml"
POLICY, _, PARAMS = yaml.safe_load_all(FILE.read_text())
IMAGE = "registry.example.org:5000/team/cmapkd"
SITE = Site(
    service_account="cmapkd-runner",
    image_pull_secrets=("registry",),
    env={"A": "b"},
    secrets=(Secret("cmapkd-s3", {"CMAPKD_S3_SECRET_ACCESS_KEY": "secret_key"}),),
)
POD = Pod(
    gpus=8, cpu="8", memory="8Gi", shm="1Gi", scratch="9Gi", nodes=2, gang="volcano", tolerations=(Toleration("a"),)
)
Change = Callable[[dict[str, Any]], Any]

_FUNCTIONS = {  # of Kubernetes' CEL library, beside CEL's own
    "split": lambda text, by: celpy.json_to_cel(str(text).split(str(by))),
    "lastIndexOf": lambda text, part: celpy.celtypes.IntType(str(text).rfind(str(part))),
    "substring": lambda text, start, end: celpy.celtypes.StringType(str(text)[int(start) : int(end)]),
}


def evaluated(expression: str, context: dict[str, Any]) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression), functions=_FUNCTIONS).evaluate(context)


def refused(made: dict[str, Any], account: str = "cmapkd-runner", tag: str = ":cuda") -> list[str]:
    """Messages of what the policy has against an object, which comes by way of the API server."""
    params = copy.deepcopy(PARAMS)
    params["template"]["spec"]["containers"][0]["image"] = f"{IMAGE}{tag}"
    user = {"username": f"system:serviceaccount:cmapkd:{account}"}
    plain = {"object": made, "params": params, "request": {"namespace": "cmapkd", "userInfo": user}}
    context = {name: celpy.json_to_cel(value) for name, value in plain.items()}
    (condition,) = POLICY["spec"]["matchConditions"]
    if not evaluated(condition["expression"], context):
        return []
    known = celpy.celtypes.MapType()
    context["variables"] = known
    for variable in POLICY["spec"]["variables"]:
        known[celpy.celtypes.StringType(variable["name"])] = evaluated(variable["expression"], context)
    return [one["message"] for one in POLICY["spec"]["validations"] if not _holds(one["expression"], context)]


def _holds(expression: str, context: dict[str, Any]) -> bool:
    try:
        return bool(evaluated(expression, context))
    except celpy.CELEvalError:
        return False  # failurePolicy: Fail


def job() -> dict[str, Any]:
    return in_image(json.loads(describe(SITE, POD)), f"{IMAGE}@sha256:{'0' * 64}")


def runtime() -> dict[str, Any]:
    return training_runtime(job())


def trainjob() -> dict[str, Any]:
    made = train_job(job(), "cmapkd-1", "task", ["torchrun", "-m", "--", "cmapkd_core.stages.train"], ["--run", "r"])
    made["spec"] |= {"suspend": False, "managedBy": "trainer.kubeflow.org/trainjob-controller"}  # the CRD's defaults
    return made


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
        "spec"
    ]
    return found


@pytest.mark.parametrize("tag", ["", ":cuda", f"@sha256:{'1' * 64}", f":cuda@sha256:{'1' * 64}"])
def test_what_the_launcher_makes_is_let_in(tag: str) -> None:
    assert POLICY["spec"]["failurePolicy"] == "Fail"
    assert refused(runtime(), tag=tag) == refused(trainjob(), tag=tag) == []


def test_a_job_without_secrets_and_scratch_is_let_in_too() -> None:
    plain = training_runtime(in_image(json.loads(describe(Site(), Pod())), IMAGE))
    assert refused(plain) == []


RUNTIMES: dict[str, Change] = {
    "another image": lambda pod: pod["containers"][0].update(image="evil.example.org/cmapkd"),
    "an image whose name begins so": lambda pod: pod["containers"][0].update(image=f"{IMAGE}-evil"),
    "the node's files": lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "a secret as files": lambda pod: pod["volumes"].append({"name": "s", "secret": {"secretName": "other"}}),
    "a secret as a variable": lambda pod: pod["containers"][0]["env"].append(
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "mlpipeline-minio-artifact", "key": "secretkey"}}}
    ),
    "all of a secret": lambda pod: pod["containers"][0].update(envFrom=[{"secretRef": {"name": "cmapkd-mlflow"}}]),
    "another account": lambda pod: pod.update(serviceAccountName="default-editor"),
    "a token": lambda pod: pod.update(automountServiceAccountToken=True),
    "the node's network": lambda pod: pod.update(hostNetwork=True),
    "a container before": lambda pod: pod.update(initContainers=[{"name": "i", "image": IMAGE}]),
    "a container beside": lambda pod: pod["containers"].append({"name": "b", "image": "evil"}),
    "root": lambda pod: pod["securityContext"].update(runAsNonRoot=False),
    "no word on root": lambda pod: pod.pop("securityContext"),
    "privileges": lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
    "capabilities": lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
    "a root that is written": lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
    "a hook": lambda pod: pod["containers"][0].update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}),
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_pods_that_go_further_are_not(name: str) -> None:
    made = runtime()
    RUNTIMES[name](pod_of(made))
    assert refused(made)
    assert refused(made, account="somebody-else") == []  # whose rights are not ours to bound


JOBS: dict[str, Change] = {
    "another image": lambda spec: spec["trainer"].update(image="evil.example.org/cmapkd"),
    "patches": lambda spec: spec.update(runtimePatches=[{"manager": "m"}]),
    "patches of older Trainers": lambda spec: spec.update(podTemplateOverrides=[{"targetJobs": [{"name": "node"}]}]),
    "an initializer": lambda spec: spec.update(initializer={"dataset": {"storageUri": "hf://x"}}),
    "a runtime of the cluster": lambda spec: spec["runtimeRef"].update(kind="ClusterTrainingRuntime"),
    "a runtime of somebody": lambda spec: spec["runtimeRef"].update(name="torch-distributed"),
    "variables": lambda spec: spec["trainer"].update(env=[{"name": "A", "value": "b"}]),
    "another program": lambda spec: spec["trainer"].update(command=["sh", "-c"]),
}


@pytest.mark.parametrize("name", JOBS)
def test_jobs_that_go_further_are_not(name: str) -> None:
    made = trainjob()
    JOBS[name](made["spec"])
    assert len(refused(made)) == 1


def test_a_second_kind_of_pods_is_not() -> None:
    made = runtime()
    jobs = made["spec"]["template"]["spec"]["replicatedJobs"]
    jobs.append(copy.deepcopy(jobs[0]))
    assert refused(made)
