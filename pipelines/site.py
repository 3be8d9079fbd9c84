"""Where a pipeline runs, as data: endpoint, image, root, pods. `site.example.toml` explains every field."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.logins import refuse_login
from pipelines.mirror import check_weights
from pipelines.retries import GONE, Retry, refuse_gone, refuse_retry

PART_OF = {"app.kubernetes.io/part-of": "cmapkd"}  # label of every pod; the network policies in k8s/ know ours by it
COMPONENT = "app.kubernetes.io/component"  # label of a task's pods: its name
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
YEAR = 365 * 24 * 3600  # seconds
GRACE = 30  # seconds from SIGTERM until Kubernetes kills a TrainJob's pod; what KFP starts itself is killed after one
GANGS = {"coscheduling": "scheduler-plugins-scheduler", "volcano": "volcano"}  # podGroupPolicy: its scheduler's name
CPU, MEMORY = re.compile(r"[0-9]*\.?[0-9]+m?"), re.compile(r"[0-9]+([EPTGMK]i?)?")
# Names of variables that hold a secret, not those that say in which file one is.
SECRET = re.compile(
    r"(?!.*_(FILE|PATH|DIR)$|GOOGLE_APPLICATION_CREDENTIALS$)(.*(SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|_PWD$)"
    r"|(.*_)?((TOKEN|PASS|PAT|(ACCESS|API|PRIVATE)_KEY|CREDENTIALS?|CREDS)(_|$)|KEY$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Toleration:
    """A taint that a pod accepts."""

    key: str = ""
    operator: str = "Exists"
    value: str = ""
    effect: str = ""


@dataclass(frozen=True)
class Secret:
    """Environment variables (`env`: variable = key in the secret) from a Kubernetes secret; names, never values."""

    name: str = ""
    env: dict[str, str] = field(default_factory=dict)


TABLES = {  # an entry of each list of tables, as the site file writes it
    Toleration: "[{ key = 'nvidia.com/gpu' }]",
    Secret: "[{ name = 'secret', env = { VARIABLE = 'key' } }]",
}


@dataclass(frozen=True)
class Pod:
    """What one kind of task asks of the cluster."""

    gpus: int = 0
    cpu: str = "4"
    memory: str = "16Gi"
    shm: str = ""  # size of /dev/shm in memory; "" leaves the container's own 64 MB
    scratch: str = ""  # size of the disk at /tmp; "" leaves the node's, without a bound
    hours: float = 24.0  # a pod that runs longer is ended: a failure like another, which `retry` may start again
    processes: int = 0  # ranks of a training task in a pod; 0: one per GPU
    nodes: int = 1  # pods of a training task; above 1 they are a Kubeflow Trainer TrainJob
    trainjob: bool = False  # a TrainJob for one node too: its pod has GRACE to save in, KFP's own have a second
    gang: str = ""  # of GANGS: all pods of a TrainJob are placed at once, or none
    scheduler: str = ""  # of a TrainJob's pods; "": the gang's usual one, without a gang the cluster's
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()

    @property
    def as_trainjob(self) -> bool:
        """Whether training tasks are TrainJobs."""
        return self.trainjob or self.nodes > 1

    @property
    def ranks(self) -> int:
        """Processes of a training task in each of its pods."""
        return self.processes or max(self.gpus, 1)


@dataclass(frozen=True)
class Pods:
    """One pod per kind of task."""

    prepare: Pod = Pod(cpu="8", memory="32Gi")
    train: Pod = Pod(gpus=8, cpu="64", memory="256Gi", shm="64Gi", hours=72.0)
    evaluate: Pod = Pod(gpus=1, cpu="8", memory="64Gi", shm="8Gi")
    report: Pod = Pod(hours=2.0)
    gate: Pod = Pod(cpu="250m", memory="2Gi", hours=1440.0)  # of a suite's run: it waits for others, and does no more


@dataclass(frozen=True)
class Local:
    """`submit.py --local`: the same tasks as processes of this machine."""

    root: str = "runs/local"
    tracking_uri: str = ""  # "": SQLite below the root
    processes: int = 1  # ranks of a training task


@dataclass(frozen=True)
class Site:
    """All that a submission takes from the place it runs in."""

    endpoint: str = ""
    namespace: str = ""
    experiment: str = "cmapkd"
    service_account: str = ""
    ca_file: str = ""
    recipe: str = "calibrated"
    data: str = ""
    root: str = ""
    tracking_uri: str = ""
    image: str = ""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    accelerator: str = "nvidia.com/gpu"
    parallel: int = 4  # tasks of a suite that run at a time
    shutdown_timeout: int = 25  # seconds that a TrainJob's or local ranks have after SIGTERM, below GRACE
    env: dict[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)  # "MODEL TAG" -> a file in place of the hub's
    retry: Retry = Retry()
    pods: Pods = Pods()
    local: Local = Local()


def load_site(path: str, required: bool = False) -> Site:
    """The site of a TOML file; an absent one gives the defaults unless it is `required`.

    Raises:
        InputError: no such file, not TOML, an unknown key (names the nearest), or a value that cannot be.
    """
    file = Path(path)
    if not file.exists() and not required:
        return Site()
    try:
        table = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"no site file '{path}': copy site.example.toml to it and fill it in") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"site file '{path}' cannot be read: {error}") from None
    if isinstance(table.get("retry"), dict) and GONE in table["retry"]:
        refuse_gone(path)
    site: Site = _merge(Site(), table, "", path)
    _check(site, path)
    return site


def on_this_machine(site: Site, root: str = "", parallel: int = 1) -> Site:
    """The site of a local run: `site.local` in place of the cluster's root, tracking and ranks; tasks at a time."""
    root = root or site.local.root
    beside = f"sqlite:///{Path(root).resolve() / 'mlflow.db'}" if "://" not in root else site.tracking_uri
    train = dataclasses.replace(site.pods.train, processes=site.local.processes, nodes=1, trainjob=False)
    return dataclasses.replace(
        site,
        root=root,
        tracking_uri=site.local.tracking_uri or beside,
        parallel=parallel,
        pods=dataclasses.replace(site.pods, train=train),
    )


def _merge(config: Any, table: dict[str, Any], where: str, path: str) -> Any:
    hints = get_type_hints(type(config))
    changes = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in hints:
            raise InputError(f"{path}: unknown key '{name}': {nearest(key, tuple(hints))}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            changes[key] = _merge(current, value, f"{name}.", path)
        else:
            changes[key] = _value(value, current, hints[key], name, path)
    return dataclasses.replace(config, **changes)


def _value(value: Any, current: Any, hint: Any, name: str, path: str) -> Any:
    if isinstance(current, tuple) and isinstance(value, list):
        item = get_args(hint)[0]
        if item is not str and all(isinstance(part, dict) for part in value):
            return tuple(_merge(item(), part, f"{name}.", path) for part in value)
        if item is str and all(isinstance(part, str) for part in value):
            return tuple(value)
    elif isinstance(current, dict) and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        return dict(value)
    elif type(value) is type(current) or (isinstance(current, float) and type(value) is int):
        return type(current)(value)
    given = "a table" if isinstance(value, dict) else repr(value)  # a table under a wrong name may hold secrets
    raise InputError(f"{path}: {name} = {given}: expected {_like(current, hint, name)} (see site.example.toml)")


def _like(current: Any, hint: Any, name: str) -> str:
    """The default of a field in TOML's words, where it shows how another value is written."""
    if isinstance(current, tuple):
        item = get_args(hint)[0]
        return (
            'a list of texts like ["a"]' if item is str else f"a list of tables, such as {TABLES[item]} or [[{name}]]"
        )
    if isinstance(current, dict):
        return f"a table of texts like {{ name = 'text' }} or [{name}]"
    if dataclasses.is_dataclass(current):
        return f"a table [{name}]"
    return f"a value like {str(current).lower() if isinstance(current, bool) else repr(current)}"


def _check(site: Site, path: str) -> None:
    if site.image_pull_policy not in PULL_POLICIES:
        raise InputError(f"{path}: image_pull_policy = '{site.image_pull_policy}': one of {', '.join(PULL_POLICIES)}")
    if site.parallel < 1:
        raise InputError(f"{path}: parallel = {site.parallel}: at least one task at a time")
    if not 1 <= site.shutdown_timeout < GRACE:
        raise InputError(
            f"{path}: shutdown_timeout = {site.shutdown_timeout}: 1 to {GRACE - 1} seconds, as Kubernetes kills a "
            f"TrainJob's pod {GRACE} s after SIGTERM and torchrun must have ended its ranks before"
        )
    refuse_retry(site.retry, path)
    _check_secrets(site, path)
    check_weights(site.weights, path)
    for kind in dataclasses.fields(site.pods):
        _check_pod(getattr(site.pods, kind.name), kind.name, path)


def _check_pod(pod: Pod, kind: str, path: str) -> None:
    if min(pod.gpus, pod.processes) < 0:
        raise InputError(f"{path}: pods.{kind}: gpus and processes cannot be below 0")
    if not 1 <= pod.hours * 3600 <= YEAR:
        raise InputError(
            f"{path}: pods.{kind}.hours = {pod.hours:g}: after how long a pod is ended: a second to a year"
        )
    if pod.nodes < 1 or (pod.nodes > 1 and kind != "train"):
        raise InputError(f"{path}: pods.{kind}.nodes = {pod.nodes}: 1, or more for pods.train alone")
    _check_trainjob(pod, kind, path)
    if not CPU.fullmatch(pod.cpu):
        raise InputError(f"{path}: pods.{kind}.cpu = '{pod.cpu}': write cores ('8') or millicores ('500m')")
    for name, size in (("memory", pod.memory), ("shm", pod.shm or "1"), ("scratch", pod.scratch or "1")):
        if not MEMORY.fullmatch(size):
            raise InputError(f"{path}: pods.{kind}.{name} = '{size}': write a size like '16Gi'")


def _check_trainjob(pod: Pod, kind: str, path: str) -> None:
    if pod.trainjob and kind != "train":
        raise InputError(f"{path}: pods.{kind}.trainjob = true: for pods.train alone")
    if pod.gang and pod.gang not in GANGS:
        raise InputError(f"{path}: pods.{kind}.gang = '{pod.gang}': '' or one of {', '.join(GANGS)}")
    if (pod.gang or pod.scheduler) and not pod.as_trainjob:
        name = "gang" if pod.gang else "scheduler"
        raise InputError(
            f"{path}: pods.{kind}.{name} is for a TrainJob: pods.train with nodes above 1 or trainjob = true"
        )


def _check_secrets(site: Site, path: str) -> None:
    """Values of this file show in the KFP UI and in compiled packages: nothing secret may be one."""
    way_out = "name a Kubernetes secret in [[secrets]] instead"
    urls = {name: getattr(site, name) for name in ("endpoint", "root", "data", "tracking_uri")} | site.env
    urls |= {f'weights."{name}"': value for name, value in site.weights.items()}
    for name, value in urls.items():
        refuse_login(f"{path}: {name}", value, way_out)
    for name in ("root", "tracking_uri"):
        refuse_login(f"{path}: local.{name}", getattr(site.local, name), "set them as environment variables")
    for name in site.env:
        if SECRET.match(name):
            raise InputError(f"{path}: env.{name} would be readable by everyone who sees the run: {way_out}")
    for secret in site.secrets:
        if not (secret.name and secret.env):
            raise InputError(f"{path}: a [[secrets]] entry needs name and env, such as env = {{ VARIABLE = 'key' }}")
