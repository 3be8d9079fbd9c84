"""Metrics of a stage: a local journal first, MLflow second.

`Tracker.log` appends to the journal and returns. One background thread delivers to MLflow; its absence,
hanging or errors never stop or slow a stage, and what it missed is delivered when the same journal is
opened again. The only place that reads MLFLOW_* variables.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cmapkd_core.errors import InputError
from cmapkd_core.logins import without_login
from cmapkd_core.tracking.aftermath import end_killed
from cmapkd_core.tracking.delivery import Delivery, Left
from cmapkd_core.tracking.journal import Journal, Point, read_journal
from cmapkd_core.tracking.reach import ask
from cmapkd_core.tracking.registry import RegistryError, register
from cmapkd_core.tracking.stage_run import Target

__all__ = [
    "Left",
    "Point",
    "RegistryError",
    "Tracker",
    "check_reachable",
    "mark_killed",
    "read_journal",
    "register_model",
]

FLUSH_SECONDS = 30.0
STATUSES = ("FINISHED", "FAILED", "KILLED")
EXPERIMENT = "cmapkd"
NONE: Mapping[str, str] = MappingProxyType({})

# Documented settings of mlflow, for a process that must not wait for it; the user's own values win.
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_NAME = "MLFLOW_EXPERIMENT_NAME"
_SCHEMES = re.compile(r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://|databricks")


class Tracker:
    """What a stage logs to; of several ranks only the first has one."""

    def __init__(self, journal: Journal, delivery: Delivery | None) -> None:
        self._journal = journal
        self._delivery = delivery

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        run: str,
        stage: str,
        journal: Path,
        params: dict[str, Any],
        experiment: str = "",
        parent: str = "",
    ) -> Tracker:
        """Open the journal and start delivery; answers at once whether MLflow does or not.

        Args:
            uri: an MLflow tracking URI (http://.., sqlite:///FOLDER/mlflow.db, ..), "" for the journal alone.
                Where KFP injected MLFLOW_TRACKING_URI with MLFLOW_RUN_ID, its server and its run as the
                parent come first; MLFLOW_TRACKING_URI alone counts where `uri` is "".
            run: name of the pipeline run: the parent run, shared by its stages.
            stage: name of the nested run. One that did not finish, or whose journal has points, is gone on with.
            journal: a file; the points that it has and the server lacks are delivered.
            params: logged as they are; the caller chooses what may be seen.
            experiment, parent: where the stage belonged (see `place`), of one that is delivered later.

        The experiment is KFP's MLFLOW_EXPERIMENT_ID, else the one named MLFLOW_EXPERIMENT_NAME, else cmapkd; it is made
        where it does not exist. Into one that was deleted nothing is delivered until it is brought back.

        Raises:
            InputError: a URI of an unknown kind, a name with a quote, or a journal that cannot be written.
        """
        target = _target(uri, run, stage, params, experiment, parent)
        written = Journal(journal)
        if target is None:
            return cls(written, None)
        _settle()
        return cls(written, Delivery(target, written))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics of `step`; in MLflow a name has one value a step, the first."""
        self._journal.append(metrics, step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Queue a file or folder for upload below `folder`; it is read before `close` returns.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not path.exists():
            raise FileNotFoundError(str(path))
        if self._delivery:
            self._delivery.do(f"artifact {path.name}", lambda remote: remote.artifact(path, folder))

    def tag(self, name: str, value: str) -> None:
        """Queue a tag of the stage's run."""
        if self._delivery:
            self._delivery.do(f"tag {name}", lambda remote: remote.tag(name, value))

    def conclude(self, text: str, metrics: Mapping[str, float], page: Path) -> None:
        """Queue the run's outcome for the parent run: Markdown as its description, its main numbers, a page."""
        if self._delivery:
            self._delivery.do("outcome", lambda remote: remote.conclude(text, metrics, page))

    def rewind(self, step: int) -> None:
        """Before a stage goes on at `step`: drop points of `step` and later, so that none counts twice.

        Points that MLflow holds cannot be deleted there; when the stage logs their steps again they are left out.
        """
        self._journal.rewind(step)

    def close(
        self, status: str = "FINISHED", reason: str = "", seconds: float = FLUSH_SECONDS, hurried: bool = True
    ) -> Left:
        """Deliver what is left and end the run; the caller tells what MLflow lacks then.

        A server that does not answer is given up after a few seconds (patience.py), one that refuses the login at once.

        Args:
            seconds: how long it takes at most.
            hurried: False waits for all of it, whether the server answers or not.
            reason: why it failed or was stopped; kept as a tag of the run.

        Raises:
            ValueError: `status` is none of FINISHED, FAILED, KILLED.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status}: one of {', '.join(STATUSES)}")
        self._journal.close()
        if not self._delivery:
            return Left()
        return self._delivery.close(status, without_login(reason), seconds, hurried)

    @property
    def place(self) -> dict[str, str]:
        """Experiment and parent run that the stage's environment gave it: what `open` takes of one delivered later."""
        return self._delivery.place if self._delivery else {}

    @property
    def delivers(self) -> bool:
        """False of a journal alone."""
        return self._delivery is not None

    @property
    def run_id(self) -> str:
        """The stage's run in MLflow; "" until the server has answered."""
        return self._delivery.run_id if self._delivery else ""


def register_model(uri: str, *, name: str, source: str, digest: str, tags: dict[str, str]) -> str:
    """Make a finished artifact a version of the registered model `name`; asked again, the same version answers.

    Args:
        uri: as `Tracker.open` takes it.
        source: URL of the folder that the version points to.
        digest: what tells one artifact from another.

    Returns:
        the version's number; "" where there is no MLflow to register with.

    Raises:
        RegistryError: the server is away, has no registry or refuses.
        InputError: a URI of an unknown kind.
    """
    chosen = chosen_server(uri)
    if not chosen:
        return ""
    _settle()
    return register(chosen, name, source, digest, tags)


def check_reachable(uri: str, env: Mapping[str, str] = NONE) -> str:
    """Ask the MLflow that a stage would log to whether it takes something; its URI without a login, "" for none.

    Args:
        env: variables that stages have and this process has not.

    Raises:
        InputError: it does not answer within 40 s, refuses, or its experiment was deleted; names the URL, the cause
            and what to do.
    """
    chosen = chosen_server(uri)
    if not chosen:
        return ""
    _settle()
    ask(chosen, *_experiment(chosen, env))
    return without_login(chosen)


def mark_killed(uri: str, run: str, env: Mapping[str, str] = NONE) -> list[str]:
    """End as FAILED what still stands as RUNNING of `run` though its process on this machine is gone.

    Args:
        env: as `check_reachable` takes it.

    Returns:
        the names of these stages; none where MLflow cannot be asked: the next attempt goes on in them.
    """
    chosen = chosen_server(uri)
    if not chosen:
        return []
    _settle()
    return end_killed(chosen, *_experiment(chosen, env), run)


def import_client() -> None:
    """MLflow's client, for processes that fork from this one; it takes more than a second."""
    _settle()
    importlib.import_module("mlflow")


def _settle() -> None:
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)


def chosen_server(uri: str) -> str:
    """The MLflow that counts, see `Tracker.open`; "" for none."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    chosen = given if given and os.environ.get("MLFLOW_RUN_ID", "") else uri or given
    if chosen and not _SCHEMES.match(chosen):
        raise InputError(
            f"tracking URI '{without_login(chosen.rpartition('@')[2])}' is of no known kind: write http://HOST:PORT, "
            'sqlite:///FOLDER/mlflow.db, or "" for the journal alone'
        )
    return chosen


def _experiment(chosen: str, env: Mapping[str, str] = NONE) -> tuple[str, str]:
    """Name and id of the experiment of the server `chosen`; the id is "" unless KFP injected one."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    injected = os.environ.get("MLFLOW_EXPERIMENT_ID", "") if chosen == given else ""
    name = env.get(_NAME, "") or os.environ.get(_NAME, "")
    return name or EXPERIMENT, injected


def _target(
    uri: str, run: str, stage: str, params: dict[str, Any], experiment: str = "", parent: str = ""
) -> Target | None:
    """Where to deliver; None: nowhere. A name in the environment wins over `experiment`."""
    chosen = chosen_server(uri)
    if not chosen:
        return None
    for name in (run, stage):
        if not name or "'" in name or "`" in name:
            raise InputError(f"the run or stage name '{name}' is empty or has a quote: use letters, digits, - and _")
    name, experiment_id = _experiment(chosen, {_NAME: os.environ.get(_NAME, "") or experiment})
    injected = os.environ.get("MLFLOW_RUN_ID", "") if os.environ.get("MLFLOW_TRACKING_URI") else ""
    return Target(chosen, name, run, stage, params, experiment_id, parent or injected)
