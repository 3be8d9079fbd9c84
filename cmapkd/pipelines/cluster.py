"""What the Kubernetes API tells about a site, where a kubeconfig or a pod's own account gives access to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes
import urllib3

from cmapkd.pipelines.site import COMPONENT, Site
from cmapkd_core.errors import InputError

SECONDS = 5
SINGLE_USER = "kubeflow"  # where a Kubeflow Pipelines without profiles runs its pods
# The account that Kubeflow Pipelines takes where a run names none: without profiles, and in a profile.
OWN_ACCOUNTS = ("pipeline-runner", "default-editor")
RUN_LABEL = "pipeline/runid"  # of every pod of a run
MAIN = "main"  # Argo's name for a stage's container
# Reasons for which a container never starts, and what to do.
NEVER = {
    "ErrImagePull": "check `image` and `image_pull_secrets` in the site file",
    "ImagePullBackOff": "check `image` and `image_pull_secrets` in the site file",
    "InvalidImageName": "correct `image` in the site file",
    "CreateContainerConfigError": "create the secret, or correct [[secrets]] in the site file",
    "CreateContainerError": "look at the pod's events",
}


class Unreadable(InputError):
    """Kubernetes refuses to tell or does not answer: nothing is known."""


class Cluster:
    """A namespace. Every method raises Unreadable."""

    def __init__(self, core: Any, namespace: str) -> None:
        self.core, self.namespace = core, namespace

    @classmethod
    def find(cls, site: Site) -> Cluster | None:
        """The namespace of the site's runs; None where nothing gives access to Kubernetes."""
        try:
            kubernetes.config.load_kube_config()
        except (kubernetes.config.ConfigException, OSError):
            try:
                kubernetes.config.load_incluster_config()
            except kubernetes.config.ConfigException:
                return None
        configuration = kubernetes.client.Configuration.get_default_copy()
        configuration.retries = False
        api = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))
        return cls(api, site.namespace or SINGLE_USER)

    def service_account(self, name: str) -> str:
        """Where it is; "" stands for Kubeflow's own. Raises InputError where it is not."""
        name = name or OWN_ACCOUNTS[self.namespace != SINGLE_USER]
        own = OWN_ACCOUNTS[self.namespace != SINGLE_USER]
        way_out = "correct `service_account` in the site file" + (
            f", or leave it empty for {own}" if name != own else ""
        )
        if self.namespace != SINGLE_USER:
            way_out += (
                "; cmapkd-runner is made by kubectl apply -k k8s/overlays/profile, for the `namespace` named there"
            )
        self._get(self.core.read_namespaced_service_account, name, "service account", way_out)
        return f"{name} in {self.namespace}"

    def secret(self, name: str, keys: list[str]) -> str:
        """Which keys it has; its values go nowhere. Raises InputError where one is missing."""
        kind, literals = ("generic", keys) if keys else ("docker-registry", ["docker-server", "docker-username", ".."])
        given = " ".join(f"--from-literal={key}=.." if keys else f"--{key}=.." for key in literals if key != "..")
        make = f"kubectl -n {self.namespace} create secret {kind} {name} {given}"
        held = set(self._get(self.core.read_namespaced_secret, name, "secret", make).data or {})
        if missing := [key for key in keys if key not in held]:
            raise InputError(
                f"secret {name} in {self.namespace} has no key {', '.join(missing)}, but {', '.join(sorted(held))}: "
                "correct `env` of its [[secrets]] in the site file, or make it anew: "
                f"kubectl -n {self.namespace} delete secret {name}, then {make}"
            )
        return f"{name} has {', '.join(keys) or 'what an image needs'}"

    def stuck(self, run_id: str) -> Iterator[tuple[str, str, bool]]:
        """(task or pod, what keeps it from running, whether it never will) of a run's pods."""
        pods = self._call(
            self.core.list_namespaced_pod, self.namespace, label_selector=f"{RUN_LABEL}={run_id}", what="pods"
        )
        for pod in pods.items if pods else ():
            name = (pod.metadata.labels or {}).get(COMPONENT, pod.metadata.name)
            for condition in pod.status.conditions or []:
                if condition.type == "PodScheduled" and condition.status == "False":
                    yield name, f"cannot be scheduled: {condition.message}", False
            for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
                waiting = container.state.waiting
                if waiting and waiting.reason in NEVER:
                    text = f"{waiting.reason}: {waiting.message or container.image}; {NEVER[waiting.reason]}"
                    yield name, text, True

    def log_lines(self, run_id: str, task: str) -> list[str]:
        """The last lines that a task of a run has logged; [] where there is no such pod."""
        selector = f"{RUN_LABEL}={run_id},{COMPONENT}={task}"
        pods = self._call(self.core.list_namespaced_pod, self.namespace, label_selector=selector, what="pods")
        if not (pods and pods.items):
            return []
        name = pods.items[-1].metadata.name
        log = self._call(
            self.core.read_namespaced_pod_log,
            name,
            self.namespace,
            container=MAIN,
            tail_lines=100,
            what=f"log of {name}",
        )
        return (log or "").splitlines()

    def _get(self, call: Any, name: str, kind: str, way_out: str) -> Any:
        resource = self._call(call, name, self.namespace, what=f"{kind} {name}")
        if resource is None:
            raise InputError(f"no {kind} '{name}' in {self.namespace}: {way_out}")
        return resource

    def _call(self, call: Any, *given: Any, what: str, **named: Any) -> Any:
        """The answer, None for 404."""
        try:
            return call(*given, **named, _request_timeout=SECONDS)
        except kubernetes.client.ApiException as error:
            if error.status == 404:
                return None
            raise Unreadable(
                f"{what}: Kubernetes answers {error.status} {error.reason}: check your kubeconfig"
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            host = call.__self__.api_client.configuration.host
            raise Unreadable(
                f"{what}: Kubernetes at {host} does not answer ({type(error).__name__}): "
                "check your kubeconfig and the network"
            ) from None
