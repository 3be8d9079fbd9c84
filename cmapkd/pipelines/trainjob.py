r"""A training task as a Kubeflow Trainer TrainJob, on one pod or several, started and waited for by a small pod.

    python -m cmapkd.pipelines.trainjob --job JSON --image IMAGE --processes 8 --shutdown-timeout 25 \
        -- MODULE --recipe .. --artifact FILE

What the pods have in common is a TrainingRuntime named by its content; the TrainJob adds image, size and command.
The pods run torchrun with the stage's own argv, and the Trainer's PET_* variables tell each who the others are. A
pod that fails ends the job; KFP's retry of this one starts it again, and the stage goes on from its checkpoint.
PID 1 of its pods is torchrun, so one that is preempted has Kubernetes' 30 s to save; KFP's own pods have a second. That
is worth a TrainJob on one node too. The job belongs to this pod and is deleted with it (jobs.py).
Untested on a cluster so far.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cmapkd.pipelines.jobs import GROUP, NODE, TRIES, VERSION, JobError, JobGone, Jobs, Owner, ended, follow
from cmapkd.pipelines.site import GANGS, PART_OF, Pod, Site
from cmapkd_core.command_line import Parser

TASK = "cmapkd-task"  # label of a job: a digest of its stage's argv
API_VERSION = f"{GROUP}/{VERSION}"
POLL_SECONDS = 10
UNOWNED = (
    "KFP_POD_NAME and KFP_POD_UID are not set, so no pod owns it: where this process is killed, it goes on until "
    "pods.train.hours are over or the same task is started again"
)


def describe(site: Site, pod: Pod) -> str:
    """What the launcher must know beside the image, as JSON without blanks in it; names of secrets, never values."""
    resources = {"cpu": pod.cpu, "memory": pod.memory, **({site.accelerator: str(pod.gpus)} if pod.gpus else {})}
    job = {"nodes": pod.nodes, "seconds": round(pod.hours * 3600), "resources": resources, "gang": pod.gang}
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
        "schedulerName": pod.scheduler or GANGS.get(pod.gang, ""),
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
    labels = {**PART_OF, "sidecar.istio.io/inject": "false"}  # in a profile's mesh: no rank would be finished
    template = {"metadata": {"labels": labels}, "spec": job["pod"]}
    node = {"backoffLimit": 0, "template": template}  # retries are KFP's: a rank alone cannot come back
    step = {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}, "spec": node}
    spec = {
        "mlPolicy": {"numNodes": job["nodes"], "torch": {}},
        "template": {
            "spec": {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [{"name": NODE, "template": step}]}
        },
    }
    if gang := job.get("gang"):
        spec["podGroupPolicy"] = {
            gang: {}
        }  # its size is numNodes, and its resources are the pods': the Trainer's doing
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingRuntime",
        "metadata": {
            "name": f"cmapkd-{_digest(spec)}",
            "labels": {**PART_OF, "trainer.kubeflow.org/framework": "torch"},
        },
        "spec": spec,
    }


def train_job(job: dict[str, Any], name: str, task: str, command: Sequence[str], args: Sequence[str]) -> dict[str, Any]:
    """The TrainJob itself; `task` says of which stage, whatever image and pods it has."""
    resources = {"requests": job["resources"], "limits": job["resources"]}
    trainer = {"image": job["image"], "numNodes": job["nodes"], "resourcesPerNode": resources}
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {**PART_OF, TASK: task}},
        "spec": {
            "runtimeRef": {"kind": "TrainingRuntime", "name": training_runtime(job)["metadata"]["name"]},
            "trainer": {**trainer, "command": list(command), "args": list(args)},
            "activeDeadlineSeconds": job["seconds"],
        },
    }


def start(jobs: Jobs, job: dict[str, Any], command: Sequence[str], args: Sequence[str]) -> tuple[str, bool]:
    """Create the job, or find the one that an earlier attempt of this very task left running.

    A job that is left of the same stage with another image or other pods is deleted first: it would hold its GPUs, and
    nobody waits for it.

    Returns:
        its name, and whether it is this pod's: one that another pod follows is waited for and left to it.

    Raises:
        JobError: the cluster refuses, or another pod runs the stage in another image or other pods.
    """
    owner, stage = Owner.here(), list(args)
    _take(stage, "--redo")
    task, name = _digest([command[-1], *stage]), f"cmapkd-{_digest([job, *command, *args])}"
    for old in jobs.labelled(TASK, task):
        if (left := old["metadata"]["name"]) != name:
            _make_way(jobs, old, left, owner)
    jobs.make("TrainingRuntime", training_runtime(job))  # one that is there has the same content: it is in the name
    body = train_job(job, name, task, command, args)
    if owner:
        body["metadata"]["ownerReferences"] = [owner.reference()]
    else:
        print(f"TrainJob {name}: {UNOWNED}", flush=True)
    for _ in range(TRIES):
        claimed = _claim(jobs, name, body, owner)
        if claimed is not None:
            return name, claimed
    raise JobError(
        f"TrainJob {name} comes and goes: something else deletes it; see kubectl -n {jobs.namespace} get events"
    )


def _claim(jobs: Jobs, name: str, body: dict[str, Any], owner: Owner | None) -> bool | None:
    """Whether the job is this pod's now; None where it was in the way, or others were faster: look again."""
    job = jobs.find(name)
    if job is None:
        jobs.wait_gone(name)  # its pods may still be saving
        return jobs.make("TrainJob", body) or None
    if "deletionTimestamp" in job["metadata"]:
        jobs.wait_gone(name)
    elif ended(job):
        jobs.delete(name, wait=True)
    elif holder := jobs.holder(job, owner):
        print(f"TrainJob {name} runs already, for pod {holder}: waiting for it", flush=True)
        return False
    elif jobs.adopt(job, owner):
        print(f"TrainJob {name} still runs since an earlier attempt: waiting for it", flush=True)
        return True
    return None


def _make_way(jobs: Jobs, old: dict[str, Any], left: str, owner: Owner | None) -> None:
    if not ended(old) and (holder := jobs.holder(old, owner)):
        raise JobError(
            f"TrainJob {left} of pod {holder} trains this very stage in another image or other pods: wait for its run, "
            "or end it, then try again"
        )
    print(f"TrainJob {left} of an earlier attempt has another image or other pods: deleted", flush=True)
    jobs.delete(left, wait=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code is the stage's, 1 where the job failed, 143 after SIGTERM."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--")
    cli = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--job", "--image", "--processes", "--shutdown-timeout"):
        cli.add_argument(option, required=True)
    given, (module, *stage) = cli.parse_args(words[:at]), words[at + 1 :]
    job = in_image(json.loads(given.job), given.image)
    artifact = _take(stage, "--artifact")
    ranks = ["torchrun", "--nproc-per-node", given.processes, "--shutdown-timeout", given.shutdown_timeout]
    signal.signal(signal.SIGTERM, _stop)
    name, client, claimed = "", _client(), False
    jobs = Jobs(client)
    try:
        while True:
            name, claimed = start(jobs, job, [*ranks, "-m", "--", module], stage)
            try:
                well = follow(client, name, job["seconds"], POLL_SECONDS)
                break
            except JobGone:
                if claimed:
                    raise  # else its pod is done with it: a job of our own finds the stage complete, or goes on with it
        if not well:
            print(f"TrainJob {name} failed: kubectl -n {jobs.namespace} describe trainjob {name}", file=sys.stderr)
            return 1
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except _Stopped:
        if claimed:
            jobs.delete(name)  # its ranks get SIGTERM in turn, and have 30 s to save; there is a second left here
        return 143
    if claimed:
        jobs.delete(name)
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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
