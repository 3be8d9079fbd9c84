"""TrainJobs in the cluster: made, found again, owned, followed and removed. What one is made of: trainjob.py.

A job belongs to the pod that started it (`Owner`): Kubernetes deletes it with that pod, and not before. A pod that has
ended is there until its workflow is removed, so a job can outlive the process that follows it: the retry takes it over.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
NODE = "node"  # the Trainer's name for the replicated job and the container of the ranks
COMPLETE, FAILED = "Complete", "Failed"
JOB_OF_POD = "jobset.sigs.k8s.io/jobset-name"  # label of a job's pods
GONE_SECONDS = 120  # for a job and its pods, which have 30 s to save, to vanish
LOOK_SECONDS = 1.0
PATIENCE = 30  # polls in a row that may fail: five minutes without the Kubernetes API
TRIES = 5  # to make a job whose name others take and free meanwhile

WAYS_OUT = {
    403: "its service account may not: apply k8s/components/multi-node and name the account in the site file, or, "
    "where Kubeflow Pipelines has no users, k8s/overlays/standalone",
    404: "this cluster has no Kubeflow Trainer v2: install it, or set nodes = 1 and trainjob = false in the site file",
}


class JobError(Exception):
    """The TrainJob cannot be started or followed; the message says why and what to do."""


class JobGone(JobError):
    """It was deleted while it was followed."""


@dataclass(frozen=True)
class Owner:
    """The pod that a job belongs to: this one."""

    name: str
    uid: str

    @classmethod
    def here(cls) -> Owner | None:
        """What Kubeflow Pipelines tells a container of its pod; None where it does not."""
        name, uid = (os.environ.get(f"KFP_POD_{part}", "") for part in ("NAME", "UID"))
        return cls(name, uid) if name and uid else None

    def reference(self) -> dict[str, str]:
        """Without blockOwnerDeletion, which would need rights on pods/finalizers where Kubernetes enforces them."""
        return {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid}


class Jobs:
    """Those of this namespace, by the connection of the Trainer's client."""

    def __init__(self, client: Any) -> None:
        self._custom, self._core = client.backend.custom_api, client.backend.core_api
        self.namespace: str = client.backend.namespace

    def make(self, kind: str, body: dict[str, Any]) -> bool:
        """Create a "TrainJob" or "TrainingRuntime"; False where its name is taken."""
        made = self._asked(
            f"{kind} {body['metadata']['name']}",
            lambda: self._custom.create_namespaced_custom_object(*self._place(f"{kind.lower()}s"), body),
            but=409,
        )
        return made is not None

    def find(self, name: str) -> dict[str, Any] | None:
        """The job, or None."""
        place = self._place("trainjobs")
        job: dict[str, Any] | None = self._asked(
            f"TrainJob {name}", lambda: self._custom.get_namespaced_custom_object(*place, name), but=404
        )
        return job

    def labelled(self, label: str, value: str) -> list[dict[str, Any]]:
        """The jobs with a label."""
        place, selector = self._place("trainjobs"), f"{label}={value}"
        answer = self._asked(
            "TrainJobs", lambda: self._custom.list_namespaced_custom_object(*place, label_selector=selector)
        )
        return list(answer["items"])

    def holder(self, job: dict[str, Any], owner: Owner | None) -> str:
        """Name of another pod that still runs and that the job belongs to; "" where there is none."""
        for one in job["metadata"].get("ownerReferences", []):
            if one["kind"] != "Pod" or (owner and one["uid"] == owner.uid):
                continue
            read = self._core.read_namespaced_pod
            pod = self._asked(f"pod {one['name']}", lambda: read(one["name"], self.namespace), but=404)  # noqa: B023
            alive = pod is not None and pod.metadata.uid == one["uid"] and not pod.metadata.deletion_timestamp
            if alive and pod.status.phase not in ("Succeeded", "Failed"):
                return str(one["name"])
        return ""

    def adopt(self, job: dict[str, Any], owner: Owner | None) -> bool:
        """Make the job this pod's, or, where the pod is not known, nobody's; False where it is gone meanwhile.

        Before it deletes what belongs to a pod that is gone, Kubernetes looks again whose it is.
        """
        name, place = job["metadata"]["name"], self._place("trainjobs")
        owners = [owner.reference()] if owner else []
        change = {"metadata": {"uid": job["metadata"]["uid"], "ownerReferences": owners}}  # this job, not its namesake
        patch = self._custom.patch_namespaced_custom_object
        return self._asked(f"TrainJob {name}", lambda: patch(*place, name, change), but=(404, 409)) is not None

    def delete(self, name: str, wait: bool = False) -> None:
        """Delete a job if it is there. `wait`: until its name is free and its pods, which save first, are gone.

        Raises:
            JobError: they do not go.
        """
        place, how = self._place("trainjobs"), "Foreground" if wait else "Background"
        delete = self._custom.delete_namespaced_custom_object
        self._asked(f"TrainJob {name}", lambda: delete(*place, name, propagation_policy=how), but=404)
        if wait:
            self.wait_gone(name)

    def wait_gone(self, name: str) -> None:
        """Until neither the job nor a pod of it is left.

        Raises:
            JobError: one stays.
        """
        deadline = time.monotonic() + GONE_SECONDS
        while self.find(name) is not None or self._pods(name):
            if time.monotonic() > deadline:
                raise JobError(
                    f"TrainJob {name} of an earlier attempt does not go away: kubectl -n {self.namespace} delete "
                    f"trainjob {name}, and kubectl -n {self.namespace} get pods -l {JOB_OF_POD}={name} for what "
                    "holds it"
                )
            time.sleep(LOOK_SECONDS)

    def _pods(self, name: str) -> bool:
        """Whether a pod of the job has not ended."""
        selector = f"{JOB_OF_POD}={name}"
        listed = self._core.list_namespaced_pod
        pods = self._asked(f"pods of {name}", lambda: listed(self.namespace, label_selector=selector))
        return any(pod.status.phase not in ("Succeeded", "Failed") for pod in pods.items)

    def _place(self, plural: str) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, plural

    def _asked(self, what: str, call: Callable[[], Any], but: int | tuple[int, ...] = ()) -> Any:
        """The API's answer; None where it says `but`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except (ApiException, HTTPError) as error:
            if status_of(error) in ((but,) if isinstance(but, int) else but):
                return None
            raise refused(what, error) from error


def follow(client: Any, name: str, seconds: float, interval: int) -> bool:
    """Wait for the job's end, with its states and node 0's log on standard output; True for success.

    Raises:
        JobError: it takes longer than `seconds`, or Kubernetes does not answer for minutes.
        JobGone: it is deleted.
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
            if status_of(error) == 404:
                raise JobGone(
                    f"TrainJob {name} was deleted while it ran, by hand or with the pod that it belonged to: started "
                    "again, the stage goes on from its last checkpoint"
                ) from error
            failures += 1
            if failures == PATIENCE:
                raise refused(f"TrainJob {name}", error) from error
            time.sleep(interval)
            continue
        if log.ident:
            log.join(interval)
        return str(ended.status) == COMPLETE
    raise JobError(
        f"TrainJob {name} has not ended after {seconds / 3600:.1f} h: raise pods.train.hours in the site "
        "file and submit again with the same --run; it goes on from its last checkpoint"
    )


def ended(job: dict[str, Any]) -> bool:
    """Whether a job is over, well or not."""
    conditions = job.get("status", {}).get("conditions", [])
    return any(one["type"] in (COMPLETE, FAILED) and one["status"] == "True" for one in conditions)


def status_of(error: BaseException) -> int:
    """HTTP status of what lies behind an error of the SDK."""
    return int(getattr(error, "status", 0) or getattr(error.__cause__, "status", 0) or 0)


def refused(what: str, error: Exception) -> JobError:
    """The error of an API that says no."""
    status = status_of(error)
    return JobError(f"{what}: Kubernetes answers {status or str(error)}: {WAYS_OUT.get(status, str(error))}")


def _print_log(client: Any, name: str) -> None:
    try:
        for line in client.get_job_logs(name, follow=True):
            print(line, flush=True)
    except RuntimeError as error:
        print(f"the log of node 0 ends here ({error}); kubectl logs shows it", flush=True)
