"""`submit.py --check`: is a site ready? Each line says ok, or failed and what to do, or unknown and how to find out.

First from here: endpoint, namespace, service account, secrets, root, MLflow. Then a run in the cluster (check_run.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cmapkd.pipelines import endpoint
from cmapkd.pipelines.check_retries import known_of
from cmapkd.pipelines.check_run import CheckRun
from cmapkd.pipelines.cluster import Cluster, Unreadable
from cmapkd.pipelines.placeholders import refuse_placeholders
from cmapkd.pipelines.site import CHECK_MINUTES, Site
from cmapkd_core import storage, tracking
from cmapkd_core.errors import InputError
from cmapkd_core.folders import check_data
from cmapkd_core.recipes import resolve


class Lines:
    """What is printed, and whether a line failed."""

    def __init__(self) -> None:
        self.failed = False

    def say(self, state: str, name: str, text: str) -> None:
        """Print a line: `state` is ok, failed or unknown."""
        self.failed |= state == "failed"
        print(f"{state:9}{name:20}{text}", flush=True)

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


def check(site: Site, minutes: float = CHECK_MINUTES, interval: float = 5.0) -> int:
    """Print every line; the exit code: 1 where one failed."""
    lines = Lines()
    connected: list[endpoint.Client] = []
    filled = lines.ask("site file", lambda: _filled(site))
    reached = lines.ask("endpoint", lambda: _endpoint(site, connected))
    if connected:
        lines.say(*known_of(connected[0].version))
    reached = reached and lines.ask("namespace", lambda: _namespace(connected[0], site))
    cluster = Cluster.find(site)
    _kubernetes(lines, site, cluster)
    if site.root:
        lines.ask("root, from here", lambda: _root(site.root), otherwise="unknown")
    if site.tracking_uri:
        asked = partial(tracking.check_reachable, site.tracking_uri, site.env)
        lines.ask("MLflow, from here", lambda: f"{asked()} answers and can be written", otherwise="unknown")
    if filled and reached:
        lines.ask("run", lambda: CheckRun(lines.say, connected[0], site, cluster, interval).whole(minutes))
    else:
        lines.say("unknown", "run", "image, identity, network and GPUs: not tried before the lines above are ok")
    return int(lines.failed)


def _filled(site: Site) -> str:
    refuse_placeholders(site)
    if not site.root.startswith("s3://"):
        raise InputError(f"root '{site.root}' is no place that pods can reach: write s3://bucket/prefix")
    if not site.image:
        raise InputError("no image: `make images` prints the line for the site file")
    by_digest = "" if "@sha256:" in site.image else " (a tag can move: `make images` prints the digest)"
    return f"root {site.root}, image {site.image}{by_digest}{_data(site)}"


def _data(site: Site) -> str:
    """A note where each run has to name its data."""
    try:
        check_data(resolve(site.recipe, data=site.data))
    except InputError as error:
        return f"; give --data with each run, or fill in `data`: {error}"
    return ""


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
