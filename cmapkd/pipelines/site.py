"""Where a pipeline runs, as data: endpoint, image, root, pods. `site.example.toml` explains every field."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cmapkd.pipelines.mirror import check_weights
from cmapkd.pipelines.retries import GONE, Retry, refuse_gone, refuse_waits
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.logins import refuse_login
from cmapkd_core.values import EXACT, Must, Whole, hints_of, sentence

PART_OF = {"app.kubernetes.io/part-of": "cmapkd"}  # label of every pod; the network policies in k8s/ know ours by it
COMPONENT = "app.kubernetes.io/component"  # label of a task's pods: its name
YEAR = 365 * 24 * 3600  # seconds
GRACE = 30  # seconds from SIGTERM until Kubernetes kills a TrainJob's pod; what KFP starts itself is killed after one
CHECK_MINUTES = 10.0  # that the run in the cluster of `submit.py --check` may take
BELOW_GRACE = (
    f"1 to {GRACE - 1} seconds, as Kubernetes kills a TrainJob's pod {GRACE} s after SIGTERM and torchrun must have "
    "ended its ranks before"
)
GANGS = {"coscheduling": "scheduler-plugins-scheduler", "volcano": "volcano"}  # podGroupPolicy: its scheduler's name
# Names of variables that hold a secret, not those that say in which file one is.
SECRET = re.compile(
    r"(?!.*_(FILE|PATH|DIR)$|GOOGLE_APPLICATION_CREDENTIALS$)(.*(SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|_PWD$)"
    r"|(.*_)?((TOKEN|PASS|PAT|(ACCESS|API|PRIVATE)_KEY|CREDENTIALS?|CREDS)(_|$)|KEY$))",
    re.IGNORECASE,
)

_SIZE, _LIKE_SIZE = "[0-9]+([EPTGMK]i?)?", Must("write a size like '16Gi'")
Size = Annotated[str, Field(pattern=f"^{_SIZE}$"), _LIKE_SIZE]
SizeOrNone = Annotated[str, Field(pattern=f"^({_SIZE})?$"), _LIKE_SIZE]
Gang = Annotated[str, Field(pattern=f"^({'|'.join(GANGS)})?$"), Must(f"'' or one of {', '.join(GANGS)}")]
Policy = Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$"), Must("one of Always, IfNotPresent, Never")]
Cores = Annotated[str, Field(pattern=r"^[0-9]*\.?[0-9]+m?$"), Must("write cores ('8') or millicores ('500m')")]


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

    gpus: Whole = 0
    cpu: Cores = "4"
    memory: Size = "16Gi"
    shm: SizeOrNone = ""  # size of /dev/shm in memory; "" leaves the container's own 64 MB
    scratch: SizeOrNone = ""  # size of the disk at /tmp; "" leaves the node's, without a bound
    hours: Annotated[  # a pod that runs longer is ended: a failure like another, which `retry` may start again
        float, Field(ge=1 / 3600, le=YEAR / 3600), Must("after how long a pod is ended: a second to a year")
    ] = 24.0
    processes: Whole = 0  # ranks of a training task in a pod; 0: one per GPU
    # Pods of a training task; above 1 they are a Kubeflow Trainer TrainJob.
    nodes: Annotated[int, Field(ge=1), Must("1, or more for pods.train alone")] = 1
    trainjob: bool = False  # a TrainJob for one node too: its pod has GRACE to save in, KFP's own have a second
    gang: Gang = ""  # all pods of a TrainJob are placed at once, or none
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
    processes: Whole = 1  # ranks of a training task; 0: as many as `pods.train` has GPUs


@dataclass(frozen=True)
class Site:
    """All that a submission takes from the place it runs in."""

    __pydantic_config__ = ConfigDict(**EXACT, extra="forbid")

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
    image_pull_policy: Policy = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    accelerator: str = "nvidia.com/gpu"
    # Tasks of a suite that run at a time.
    parallel: Annotated[int, Field(ge=1), Must("at least one task at a time")] = 4
    # Seconds that a TrainJob's or local ranks have after SIGTERM.
    shutdown_timeout: Annotated[int, Field(ge=1, lt=GRACE), Must(BELOW_GRACE)] = 25
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
    given = json.dumps(_over(dataclasses.asdict(Site()), table), default=lambda date: None)  # which no field takes
    try:
        site = TypeAdapter(Site).validate_json(given)
    except ValidationError as error:
        raise InputError(f"{path}: {_fault_message(error.errors(include_url=False)[0], table)}") from None
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


def _over(defaults: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`table` with the defaults of what it leaves out; table in table."""
    for key, value in table.items():
        own = defaults.get(key)
        defaults[key] = _over(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return defaults


def _fault_message(fault: Mapping[str, Any], table: Any) -> str:
    """What is wrong with a site file's table, in words. fault: of pydantic's `errors()`, the first."""
    part: Any = Site()
    hint, default, value, names = None, None, table, []
    for step in fault["loc"]:
        if isinstance(step, int):  # an entry of a list, of texts or of tables
            part, table = get_args(hint)[0](), table[step]
        elif dataclasses.is_dataclass(part):
            names.append(step)
            if step not in (known := hints_of(part)):
                return f"unknown key '{'.'.join(names)}': {nearest(step, tuple(known))}"
            hint, table = known[step], table[step]
            part = default = getattr(part, step)
            value = table
    name = ".".join(names)
    given = "a table" if isinstance(value, dict) else repr(value)  # a table under a wrong name may hold secrets
    if fault["type"].endswith("_type"):
        return f"{name} = {given}: expected {_like(default, hint, name)} (see site.example.toml)"
    return f"{name} = {given}: {sentence(fault, hint)}"


def _like(current: Any, hint: Any, name: str) -> str:
    """The default of a field in TOML's words, where it shows how another value is written."""
    if isinstance(current, tuple):
        entry = TABLES.get(get_args(hint)[0])
        return f"a list of tables, such as {entry} or [[{name}]]" if entry else 'a list of texts like ["a"]'
    if isinstance(current, dict):
        return f"a table of texts like {{ name = 'text' }} or [{name}]"
    if dataclasses.is_dataclass(current):
        return f"a table [{name}]"
    return f"a value like {str(current).lower() if isinstance(current, bool) else repr(current)}"


def _check(site: Site, path: str) -> None:
    refuse_waits(site.retry, path)
    _check_secrets(site, path)
    check_weights(site.weights, path)
    for kind in dataclasses.fields(site.pods):
        _check_trainjob(getattr(site.pods, kind.name), kind.name, path)


def _check_trainjob(pod: Pod, kind: str, path: str) -> None:
    if pod.nodes > 1 and kind != "train":
        raise InputError(f"{path}: pods.{kind}.nodes = {pod.nodes}: 1, or more for pods.train alone")
    if pod.trainjob and kind != "train":
        raise InputError(f"{path}: pods.{kind}.trainjob = true: for pods.train alone")
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
