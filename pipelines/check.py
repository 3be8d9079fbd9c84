"""`submit.py --check`: is a site ready? Each line says ok, or failed and what to do, or unknown and how to find out.

First from here: endpoint, namespace, service account, secrets, root, MLflow. Then in the cluster, by a run with one
task for each kind of pod: image, identity, network and GPUs are then those of a real run (stages/check.py).
"""

# No `from __future__ import annotations` here: KFP reads the types of a pipeline.
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from cmapkd_core import storage, tracking
from cmapkd_core.errors import InputError
from cmapkd_core.places import check_url
from components.check import check as component
from pipelines import client, endpoint
from pipelines.cluster import Cluster, Unreadable
from pipelines.graph import Plan, Task, connect, write_package
from pipelines.site import Retry, Site

MINUTES = 10.0  # that the run in the cluster may take
TASK = "check-"  # before the kind of pod
LINE = re.compile(r"(?P<state>ok|failed) +(?P<name>image|root|MLflow|GPUs|ranks) +(?P<text>\S.*)")  # stages/check.py


class Lines:
    """What is printed, and whether a line failed."""

    def __init__(self) -> None:
        self.failed = False

    def say(self, state: str, name: str, text: str) -> None:
        """Print a line: `state` is ok, failed or unknown."""
        self.failed |= state == "failed"
        print(f"{state:9}{name:18}{text}", flush=True)

    def ask(self, name: str, question: Callable[[], str], *, otherwise: str = "failed") -> bool:
        """Print the answer, or the error with the state `otherwise`; True for an answer."""
        try:
            self.say("ok", name, question())
            return True
        except Unreadable as error:
            self.say("unknown", name, str(error))
        except (InputError, endpoint.EndpointError) as error:
            self.say(otherwise, name, str(error))
        return False


def check(site: Site, minutes: float = MINUTES, interval: float = 5.0) -> int:
    """Print every line; the exit code: 1 where one failed."""
    lines = Lines()
    connected: list[endpoint.Client] = []
    filled = lines.ask("site file", lambda: _filled(site))
    reached = lines.ask("endpoint", lambda: _endpoint(site, connected))
    reached = reached and lines.ask("namespace", lambda: _namespace(connected[0], site))
    cluster = Cluster.find(site)
    _kubernetes(lines, site, cluster)
    if site.root:
        lines.ask("root, from here", lambda: _root(site.root), otherwise="unknown")
    if site.tracking_uri:
        lines.ask("MLflow, from here", lambda: tracking.check_reachable(site.tracking_uri), otherwise="unknown")
    if filled and reached:
        lines.ask("run", lambda: _Run(lines, connected[0], site, cluster, interval).whole(minutes))
    else:
        lines.say("unknown", "run", "image, identity, network and GPUs: not tried before the lines above are ok")
    return int(lines.failed)


def _filled(site: Site) -> str:
    if not site.root.startswith("s3://"):
        raise InputError(f"root '{site.root}' is no place that pods can reach: write s3://bucket/prefix")
    if not site.image:
        raise InputError("no image: `make images` prints the line for the site file")
    by_digest = "" if "@sha256:" in site.image else " (a tag can move: `make images` prints the digest)"
    return f"root {site.root}, image {site.image}{by_digest}"


def _endpoint(site: Site, connected: list[endpoint.Client]) -> str:
    connected.append(endpoint.connect(site))
    return f"{endpoint.address(site)} answers"


def _namespace(api: endpoint.Client, site: Site) -> str:
    with endpoint.speaking_to(endpoint.address(site)):
        users = bool(api.get_kfp_healthz().multi_user)
        if users and not site.namespace:
            raise InputError("this Kubeflow Pipelines has users: fill in `namespace` with your profile's")
        if site.namespace and not users:
            raise InputError(f"this Kubeflow Pipelines has no users: leave `namespace` empty, not '{site.namespace}'")
        api.list_experiments(page_size=1, namespace=site.namespace or None)
    return f"{site.namespace or 'none needed'}: runs may be listed"


def _kubernetes(lines: Lines, site: Site, cluster: Cluster | None) -> None:
    if cluster is None:
        where = site.namespace or "kubeflow"
        lines.say(
            "unknown",
            "service account",
            f"no kubeconfig here: kubectl -n {where} get serviceaccount,secret",
        )
        return
    lines.ask("service account", lambda: cluster.service_account(site.service_account))
    for secret in site.secrets:
        lines.ask("secret", lambda one=secret: cluster.secret(one.name, sorted(one.env.values())))  # type: ignore[misc]
    for name in site.image_pull_secrets:
        lines.ask("secret", lambda one=name: cluster.secret(one, []))  # type: ignore[misc]


def _root(root: str) -> str:
    storage.check_writable(root)
    return f"{root} can be read and written with the credentials here"


def pipeline(site: Site, run: str, minutes: float) -> Any:
    """One task for each kind of pod of the site, without retries; a pod ends after `minutes`."""
    kinds = {field.name: getattr(site.pods, field.name) for field in dataclasses.fields(site.pods)}
    short = {kind: dataclasses.replace(pod, hours=minutes / 60) for kind, pod in kinds.items()}
    brief = dataclasses.replace(site, retry=Retry(count=0), pods=dataclasses.replace(site.pods, **short))
    tasks = tuple(
        Task(TASK + kind, component, kind, values={"kind": kind, "gpus": str(pod.gpus)}) for kind, pod in kinds.items()
    )
    request = {"recipe": site.recipe, "ablation": "none", "overrides": "", "seed": "", "data": ""}

    @dsl.pipeline(name="cmapkd-check", description="Tries the image, identity, network and GPUs of a site.")
    def cmapkd_check() -> None:
        connect(
            Plan(tasks, run=run), brief, request | {"root": site.root, "tracking_uri": site.tracking_uri}, site.image
        )

    return cmapkd_check


class _Run:
    """The run in the cluster: started, followed to its end, told."""

    def __init__(
        self, lines: Lines, api: endpoint.Client, site: Site, cluster: Cluster | None, interval: float
    ) -> None:
        self.lines, self.api, self.site, self.cluster, self.interval = lines, api, site, cluster, interval
        self.name = time.strftime("check-%Y%m%d-%H%M%S")
        self.id = ""

    def whole(self, minutes: float) -> str:
        """Start it, wait, and print what each kind of pod found; returns how it ended.

        Raises:
            InputError: it did not succeed.
        """
        with tempfile.TemporaryDirectory() as folder:
            package = write_package(pipeline(self.site, self.name, minutes), Path(folder) / "check.yaml")
            self.id = client.start(self.api, self.site, self.name, package, {}, keep=False)
        page = client.link(self.site, self.id)
        print(f"{'':9}{'':18}{self.name}: {page}", flush=True)
        states, ended, reasons = self._follow(minutes)
        for kind in (field.name for field in dataclasses.fields(self.site.pods)):
            self._tell(kind, states.get(TASK + kind, "not started"), reasons)
        if ended != "SUCCEEDED":
            raise InputError(f"{self.name} {ended.lower()}: mend the failed lines; logs at {page}")
        return f"{self.name} succeeded"

    def _follow(self, minutes: float) -> tuple[dict[str, str], str, dict[str, str]]:
        """States of the tasks, of the run, and what keeps pods from running; a run that cannot end is ended."""
        deadline = time.monotonic() + minutes * 60
        while True:
            with endpoint.speaking_to(endpoint.address(self.site)):
                run = self.api.get_run(self.id)
            details = (run.run_details and run.run_details.task_details) or []
            states = {detail.display_name: detail.state or "" for detail in details}
            if run.state in client.FINAL:
                return states, run.state, {}
            reasons, hopeless = self._stuck()
            if hopeless or time.monotonic() > deadline:
                with endpoint.speaking_to(endpoint.address(self.site)):
                    self.api.terminate_run(self.id)
                return states, f"was ended after {minutes:g} minutes" if not hopeless else "was ended", reasons
            time.sleep(self.interval)

    def _stuck(self) -> tuple[dict[str, str], bool]:
        """Task or pod -> what keeps it from running, and whether one of them never will."""
        try:
            found = list(self.cluster.stuck(self.id)) if self.cluster else []
        except Unreadable:
            return {}, False
        return {pod: reason for pod, reason, _ in found}, any(never for *_, never in found)

    def _tell(self, kind: str, state: str, reasons: Mapping[str, str]) -> None:
        """The lines that the stage wrote, else those that it logged, else what is known without them."""
        try:
            found = storage.read_json(check_url(self.site.root, self.name, kind))["lines"]
        except (FileNotFoundError, storage.StorageError):
            found = list(self._logged(kind))
        for line in found:
            self.lines.say("ok" if line["ok"] else "failed", f"pod {kind}", f"{line['name']}: {line['text']}")
        if not found:
            others = [reason for task, reason in reasons.items() if not task.startswith(TASK)]
            reason = reasons.get(TASK + kind) or "; ".join(others) or f"see its log, and: {self._command()}"
            done = state == "SUCCEEDED"
            text = f"task {state.lower()}; {'its lines are in its log' if done else reason}"
            self.lines.say("ok" if done else "failed", f"pod {kind}", text)

    def _logged(self, kind: str) -> Iterator[dict[str, Any]]:
        """The stage's lines from its pod's log, where Kubernetes shows it."""
        try:
            said = self.cluster.said(self.id, TASK + kind) if self.cluster else []
        except Unreadable:
            return
        for line in said:
            if match := LINE.match(line):
                yield {"ok": match["state"] == "ok", "name": match["name"], "text": match["text"]}

    def _command(self) -> str:
        return f"kubectl describe pods -l pipeline/runid={self.id} -n {self.site.namespace or 'kubeflow'}"
