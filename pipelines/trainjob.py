"""A training task on several pods: a Kubeflow Trainer TrainJob, started and waited for by a small pod of its own.

    python -m pipelines.trainjob --job JSON --image IMAGE --processes 8 --shutdown-timeout 25 \\
        -- MODULE --recipe .. --artifact FILE

What the pods have in common is a TrainingRuntime named by its content; the TrainJob adds image, size and command.
The pods run torchrun with the stage's own argv, and the Trainer's PET_* variables tell each who the others are. A
pod that fails ends the job; KFP's retry of this one starts it again, and the stage goes on from its checkpoint.
Untested on a cluster so far.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from pipelines.site import PART_OF, Pod, Site

NODE = "node"  # the Trainer's name for the replicated job and the container of the ranks
COMPLETE, FAILED = "Complete", "Failed"
POLL_SECONDS = 10
PATIENCE = 30  # polls in a row that may fail: five minutes without the Kubernetes API
GONE_SECONDS = 120  # for a finished job to vanish

WAYS_OUT = {
    403: "its service account may not: apply k8s/components/multi-node and name the account in the site file, or, "
    "where Kubeflow Pipelines has no users, k8s/overlays/standalone",
    404: "this cluster has no Kubeflow Trainer v2: install it, or set nodes = 1 in the site file",
}


class JobError(Exception):
    """The TrainJob cannot be started or followed; the message says why and what to do."""


def describe(site: Site, pod: Pod) -> str:
    """What the launcher must know beside the image, as JSON without blanks in it; names of secrets, never values."""
    resources = {"cpu": pod.cpu, "memory": pod.memory, **({site.accelerator: str(pod.gpus)} if pod.gpus else {})}
    job = {"nodes": pod.nodes, "seconds": round(pod.hours * 3600), "resources": resources}
    return json.dumps({**job, "pod": _pod_spec(site, pod)}, separators=(",", ":"))


def _pod_spec(site: Site, pod: Pod) -> dict[str, Any]:
    """The pods of the job; Pod Security "restricted" takes them."""
    plain: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in site.env.items()]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": one.name, "key": key}}}
        for one in site.secrets
        for name, key in one.env.items()
    ]
    bound = {"sizeLimit": pod.scratch} if pod.scratch else {}
    volumes: dict[str, tuple[str, dict[str, str]]] = {"tmp": ("/tmp", bound)}  # always: the root is read-only
    if pod.shm:
        volumes["shm"] = ("/dev/shm", {"medium": "Memory", "sizeLimit": pod.shm})
    container = {
        "name": NODE,
        "imagePullPolicy": site.image_pull_policy,
        "env": plain + secret,
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": name, "emptyDir": source} for name, (_, source) in volumes.items()],
        "containers": [container],
    }
    optional = {
        "serviceAccountName": site.service_account,
        "imagePullSecrets": [{"name": name} for name in site.image_pull_secrets],
        "nodeSelector": pod.node_selector,
        "tolerations": [{name: text for name, text in vars(taint).items() if text} for taint in pod.tolerations],
    }
    return spec | {name: value for name, value in optional.items() if value}


def in_image(job: dict[str, Any], image: str) -> dict[str, Any]:
    """The job, with the image that its pods run."""
    pod = job["pod"]
    return {**job, "image": image, "pod": {**pod, "containers": [{**one, "image": image} for one in pod["containers"]]}}


def training_runtime(job: dict[str, Any]) -> dict[str, Any]:
    """The TrainingRuntime of a job with its image, named by its content."""
    template = {"metadata": {"labels": PART_OF}, "spec": job["pod"]}
    node = {"backoffLimit": 0, "template": template}  # retries are KFP's: a rank alone cannot come back
    step = {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}, "spec": node}
    spec = {
        "mlPolicy": {"numNodes": job["nodes"], "torch": {}},
        "template": {
            "spec": {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [{"name": NODE, "template": step}]}
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {
            "name": f"cmapkd-{_digest(spec)}",
            "labels": {**PART_OF, "trainer.kubeflow.org/framework": "torch"},
        },
        "spec": spec,
    }


def start(client: Any, job: dict[str, Any], command: Sequence[str], args: Sequence[str]) -> str:
    """Create the job, or find the one that an earlier attempt of this very task left running; returns its name.

    Raises:
        JobError: the cluster refuses.
    """
    from kubeflow.trainer.options.common import Name
    from kubeflow.trainer.options.kubernetes import ActiveDeadlineSeconds, Labels, TrainerArgs, TrainerCommand
    from kubeflow.trainer.types.types import CustomTrainerContainer

    runtime, name = _make_runtime(client, job), f"cmapkd-{_digest([*command, *args])}"
    trainer = CustomTrainerContainer(job["image"], num_nodes=job["nodes"], resources_per_node=job["resources"])
    options = [Name(name), Labels(PART_OF), TrainerCommand(list(command)), TrainerArgs(list(args))]
    options.append(ActiveDeadlineSeconds(job["seconds"]))
    try:
        client.train(runtime=runtime, trainer=trainer, options=options)
    except RuntimeError as error:
        if _status(error) != 409:
            raise _refused(f"TrainJob {name}", error) from error
        if client.get_job(name).status not in (COMPLETE, FAILED):
            print(f"TrainJob {name} still runs since an earlier attempt: waiting for it", flush=True)
            return name
        _remove(client, name)
        client.train(runtime=runtime, trainer=trainer, options=options)
    return name


def follow(client: Any, name: str, seconds: float, interval: int) -> bool:
    """Wait for the job's end, with its states and node 0's log on standard output; True for success.

    Raises:
        JobError: it takes longer than `seconds`, or Kubernetes does not answer for minutes.
    """
    log = threading.Thread(target=_print_log, args=(client, name), daemon=True)
    seen: set[str] = set()

    def show(job: Any) -> None:
        states = ", ".join(f"{step.name} {step.status}" for step in job.steps)
        if (line := f"TrainJob {name}: {job.status}" + (f" ({states})" if states else "")) not in seen:
            seen.add(line)
            print(line, flush=True)
        begun = any(step.name == f"{NODE}-0" and step.status not in (None, "Pending") for step in job.steps)
        if begun and not log.ident:
            log.start()

    deadline, failures = time.monotonic() + seconds, 0
    while (left := deadline - time.monotonic()) > interval:
        try:
            ended = client.wait_for_job_status(name, {COMPLETE, FAILED}, round(left), interval, [show])
        except TimeoutError:
            break
        except RuntimeError as error:
            failures += 1
            if failures == PATIENCE:
                raise _refused(f"TrainJob {name}", error) from error
            time.sleep(interval)
            continue
        if log.ident:
            log.join(interval)
        return str(ended.status) == COMPLETE
    raise JobError(f"TrainJob {name} has not ended after {seconds / 3600:.1f} h: see pods.train.hours in the site file")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code is the stage's, 1 where the job failed, 143 after SIGTERM."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--")
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--job", "--image", "--processes", "--shutdown-timeout"):
        cli.add_argument(option, required=True)
    given, (module, *stage) = cli.parse_args(words[:at]), words[at + 1 :]
    job = in_image(json.loads(given.job), given.image)
    artifact = _take(stage, "--artifact")
    ranks = ["torchrun", "--nproc-per-node", given.processes, "--shutdown-timeout", given.shutdown_timeout]
    signal.signal(signal.SIGTERM, _stop)
    name, client = "", _client()
    try:
        name = start(client, job, [*ranks, "-m", "--", module], stage)
        if not follow(client, name, job["seconds"], POLL_SECONDS):
            print(f"TrainJob {name} failed: kubectl describe trainjob {name}", file=sys.stderr)
            return 1
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except _Stopped:
        if name:
            client.delete_job(name)  # its ranks get SIGTERM in turn, and save
        return 143
    client.delete_job(name)
    _take(stage, "--redo")
    # The stage is complete now: started here it answers at once, and writes the output that this pod owes to KFP.
    return subprocess.run([sys.executable, "-m", module, *stage, "--artifact", artifact], check=False).returncode


def _client() -> Any:
    from kubeflow.trainer import TrainerClient

    return TrainerClient()


class _Stopped(BaseException):
    """SIGTERM came."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _take(words: list[str], option: str) -> str:
    """The value of an option, which leaves `words`; "" where it is not there."""
    if option not in words:
        return ""
    at = words.index(option)
    value = words[at + 1]
    del words[at : at + 2]
    return value


def _make_runtime(client: Any, job: dict[str, Any]) -> str:
    from kubernetes.client import ApiException

    body = training_runtime(job)
    backend = client.backend
    place = ("trainer.kubeflow.org", "v1alpha1", backend.namespace, "trainingruntimes")
    try:
        backend.custom_api.create_namespaced_custom_object(*place, body)
    except ApiException as error:
        if error.status != 409:  # the same name means the same content
            raise _refused(f"TrainingRuntime {body['metadata']['name']}", error) from error
    return str(body["metadata"]["name"])


def _remove(client: Any, name: str) -> None:
    """Delete a finished job and wait until its name is free."""
    client.delete_job(name)
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        try:
            client.get_job(name)
        except RuntimeError as error:
            if _status(error) == 404:
                return
        time.sleep(1)
    raise JobError(f"TrainJob {name} of an earlier attempt does not go away: kubectl delete trainjob {name}")


def _print_log(client: Any, name: str) -> None:
    try:
        for line in client.get_job_logs(name, follow=True):
            print(line, flush=True)
    except RuntimeError as error:
        print(f"the log of node 0 ends here ({error}); kubectl logs shows it", flush=True)


def _status(error: BaseException) -> int:
    """HTTP status of what lies behind an error of the SDK."""
    return int(getattr(error, "status", 0) or getattr(error.__cause__, "status", 0) or 0)


def _refused(what: str, error: Exception) -> JobError:
    status = _status(error)
    return JobError(f"{what}: Kubernetes answers {status or str(error)}: {WAYS_OUT.get(status, str(error))}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
