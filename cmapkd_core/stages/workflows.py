"""Whether a run of Kubeflow Pipelines still works, asked of Kubernetes from a pod of another run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RUNS, ENDED, UNKNOWN = "runs", "has ended", "cannot be seen"
OF_RUN = "pipeline/runid"  # KFP's label on the Workflow of a run: the run's id


def workflow_state(run_id: str) -> str:
    """RUNS, ENDED or "cannot be seen (why)" of a run, from its Workflow in this pod's namespace.

    A Workflow that is gone has ended: Argo removes it some time after.
    """
    if not run_id:
        return f"{UNKNOWN}: its id was not known when this package was made"
    try:
        phases = list(_phases(run_id))
    except Exception as error:  # no cluster, no right, no answer: the artifacts are still looked for
        return f"{UNKNOWN}: {_reason(error)}"
    return RUNS if any(phase in ("", "Pending", "Running") for phase in phases) else ENDED


def _phases(run_id: str) -> Iterator[str]:
    from kubernetes import client, config

    config.load_incluster_config()
    namespace = (ACCOUNT / "namespace").read_text().strip()
    response = client.CustomObjectsApi().list_namespaced_custom_object(
        "argoproj.io", "v1alpha1", namespace, "workflows", label_selector=f"{OF_RUN}={run_id}"
    )
    for workflow in response["items"]:
        yield workflow.get("status", {}).get("phase", "")


def _reason(error: Exception) -> str:
    if getattr(error, "status", None) == 403:
        return (
            "this pod's service account may not list workflows.argoproj.io: name one that may in the site file "
            "(k8s/base/runner.yaml)"
        )
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def workflow_access() -> str:
    """Whether this pod can tell that a run has ended, in words; a gate that cannot waits all the same."""
    try:
        list(_phases("of-no-run"))
    except Exception as error:
        return f"whether another run goes on {UNKNOWN}, a gate would wait for its artifacts alone: {_reason(error)}"
    return "a gate sees whether the runs that it waits for go on"
