"""What `submit.py --check` finds out of retries: by the version of Kubeflow Pipelines, and by a task that fails once.

That task is a run of its own: where it stays failed, the other one goes on. In its first attempt it leaves a mark below
the root and fails; an attempt that finds the mark succeeds (stages/check.py).
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

from cmapkd.pipelines import client, endpoint
from cmapkd.pipelines.cluster import Cluster, Unreadable
from cmapkd.pipelines.package import Plan, build, defaults, write_package
from cmapkd.pipelines.retries import Retry
from cmapkd.pipelines.runs import GATES
from cmapkd.pipelines.site import Site
from cmapkd_core import storage, temporary
from cmapkd_core.commands import submit
from cmapkd_core.places import OF_ITSELF, ON_PURPOSE, check_url, failed_once_url

TASK = "check-retries"
POD = GATES.pod  # the smallest by default, without a GPU
RELEASE = re.compile(r"v?(?P<major>\d+)\.(?P<minor>\d+)")
YES = "failed containers are retried: yes"
NO = (
    "failed containers are retried: no: let an admin of Kubeflow Pipelines do what k8s/README.md says under Retries"
    f" (one variable of its API server); until then write count = 0 under [retry], and use {submit('--retry', 'RUN')}"
)

CheckLine = tuple[str, str, str]  # state, name and text of a line


def known_of(version: str) -> CheckLine:
    """The line of the version that the API says it is."""
    match, name = RELEASE.match(version), f"Kubeflow Pipelines {version}"
    if not match:
        text = f"{name.rstrip()} does not say which release it is; this project is for 2.16, and for 2.17 and later"
        return "unknown", "version", text
    release = int(match["major"]), int(match["minor"])
    if release < (2, 16):
        old = "untested; before 2.16 pods get no security context, and Pod Security restricted refuses them: upgrade"
        return "unknown", "version", f"{name}: {old}"
    if release == (2, 16):
        return "ok", "version", f"{name}: by itself it retries containers that failed, and no pod that vanished"
    newer = "" if release == (2, 17) else "newer than 2.17, the last one that this project knows; as of that, "
    patch = "by itself it retries pods that vanished; containers that failed with k8s/components/retries alone"
    return "ok", "version", f"{name}: {newer}{patch}"


def pipeline(site: Site, minutes: float) -> Any:
    """A run of one task that fails once, and may be started again once."""
    pod = dataclasses.replace(getattr(site.pods, POD), hours=minutes / 60)
    brief = dataclasses.replace(
        site,
        retry=Retry(count=1, wait="0s", factor=1.0),
        pods=dataclasses.replace(site.pods, **{POD: pod}),
    )
    values = {name: OF_ITSELF + name for name in GATES.values}
    task = dataclasses.replace(GATES, name=TASK, values=values, check=f"{TASK}:0:once")
    return build(brief, Plan((task,)), defaults(site))


class Retries:
    """The run of that task, beside the check's own; whatever goes wrong with it is a line and no error."""

    def __init__(self, api: endpoint.Client, site: Site, cluster: Cluster | None, interval: float, beside: str) -> None:
        self.api, self.site, self.cluster, self.interval = api, site, cluster, interval
        self.name = f"{beside}-retries"
        self.id, self.why_not, self.minutes, self.deadline = "", "", 0.0, 0.0

    def start(self, minutes: float) -> None:
        """Start it, if the site file wants retries; it may take `minutes` from now."""
        self.minutes, self.deadline = minutes, time.monotonic() + 60 * minutes
        if not self.site.retry.count:
            return
        try:
            with temporary.folder() as folder:
                package = write_package(pipeline(self.site, minutes), Path(folder) / "retries.yaml")
                self.id = client.start(self.api, self.site, self.name, package, {}, keep=False)
        except endpoint.EndpointError as error:
            self.why_not = str(error)

    def answer(self, wait: bool) -> CheckLine:
        """The line, once the run has ended. Without `wait` it is ended where it has not."""
        if not self.site.retry.count:
            return "ok", "retries", "none are wanted (count = 0 under [retry])"
        try:
            state = self._ended(wait) if self.id else ""
        except endpoint.EndpointError as error:
            state, self.why_not = "", str(error)
        if self.why_not:
            return "unknown", "retries", f"not found out: {self.why_not}"
        return self._meaning(state)

    def _ended(self, wait: bool) -> str:
        """The run's last state; "" where it had to be ended."""
        while True:
            with endpoint.speaking_to(endpoint.address(self.site)):
                run = self.api.get_run(self.id)
                if run.state in client.FINAL:
                    return str(run.state)
                if not wait or time.monotonic() > self.deadline:
                    self.api.terminate_run(self.id)
                    return ""
            time.sleep(self.interval)

    def _meaning(self, state: str) -> CheckLine:
        root = self.site.root
        if state == "SUCCEEDED":
            return "ok", "retries", YES
        try:
            if storage.exists(check_url(root, self.name, TASK)):  # what failed then is the upload of its output
                return "ok", "retries", YES
            failed = storage.exists(failed_once_url(root, self.name, TASK))
        except storage.StorageError:
            failed = self._says_so()
        if failed and state:
            return "failed", "retries", NO
        page = client.link(self.site, self.id)
        if not state:
            return "unknown", "retries", f"not found out: {self.name} was ended before it had an answer: {page}"
        return "unknown", "retries", f"{self.name} {state.lower()}, {page}; where its log says '{ON_PURPOSE}', {NO}"

    def _says_so(self) -> bool:
        """Whether the log of the task's pod says that it failed on purpose, where Kubernetes shows it."""
        try:
            lines = self.cluster.log_lines(self.id, TASK) if self.cluster else []
        except Unreadable:
            return False
        return any(ON_PURPOSE in line for line in lines)
