"""Why MLflow cannot be logged to, in our words and with the way out; and a question that waits for its answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmapkd_core.errors import InputError
from cmapkd_core.logins import without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = ("mlflow.experimentKind", "custom_model_development")  # the UI then shows training runs with their metrics
GONE = "must be in the 'active' state"  # what MLflow says of a run or an experiment that was deleted

NO_LOGIN, NO_RIGHT = ("code 401", "UNAUTHENTICATED"), ("code 403", "PERMISSION_DENIED")
_LOGIN = (
    "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, as environment variables, on"
    " a cluster from a Kubernetes secret in [[secrets]] of the site file"
)
_WAYS_OUT = (  # what an answer contains, and what to do
    (
        ("Invalid Host header", "allowed-hosts"),
        "name this host in MLFLOW_SERVER_ALLOWED_HOSTS of the server (k8s/components/mlflow)",
    ),
    (NO_LOGIN, f"the login is missing or wrong: {_LOGIN}"),
    (NO_RIGHT, f"the login is of one who may not write there, or is missing: {_LOGIN}"),
    (
        ("readonly database", "unable to open database", "Read-only file system", "Permission denied"),
        "let this user write its file and its folder (chmod u+w), or give another tracking_uri",
    ),
    (("is full", "No space left"), "free some space there"),
    (("No Experiment with id",), "MLFLOW_EXPERIMENT_ID is of another server: leave it out"),
)
_NETWORK = "check tracking_uri in the site file, the server, and the network policies between"


_NO_ANSWER = re.compile(r"API request to \S+ failed with (timeout )?exception")  # mlflow.utils.rest_utils


class Unusable(Exception):
    """MLflow answers and cannot be logged to; the message says why, and what to do."""


def ask(uri: str, name: str, experiment_id: str) -> None:
    """Ask the server for the experiment that a stage would log to, and write to it what it has already.

    How long that may take is bound by mlflow's settings.

    Raises:
        InputError: it does not answer, or refuses; names the URL, the cause and what to do.
    """
    from mlflow import MlflowClient

    with _silent("urllib3.connectionpool", "mlflow.store.db.utils"):  # the error says it in our words
        try:
            client = MlflowClient(tracking_uri=uri)
            client.set_experiment_tag(experiment(client, uri, name, experiment_id), *KIND)
        except Exception as error:
            raise InputError(
                f"MLflow at {without_login(uri)} cannot be used: {explained(error)}; stages go on without it"
            ) from error


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def experiment(client: MlflowClient, uri: str, name: str, experiment_id: str) -> str:
    """Id of the experiment with this id, or else with this name; made where there is none.

    Raises:
        Unusable: it was deleted; the message has the command that brings it back.
    """
    existing = client.get_experiment(experiment_id) if experiment_id else client.get_experiment_by_name(name)
    if existing is None:
        return _make_experiment(client, uri, name)
    if existing.lifecycle_stage != "active":
        another = "" if experiment_id else ", or give another one's name as MLFLOW_EXPERIMENT_NAME ([env])"
        raise Unusable(
            f"its experiment '{existing.name}' was deleted: bring it back with"
            f" `{_command(uri)} experiments restore --experiment-id {existing.experiment_id}`{another}"
        )
    return str(existing.experiment_id)


def _make_experiment(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, _beside_database(uri), tags=dict([KIND])))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        existing = client.get_experiment_by_name(name)  # another stage made it at the same moment
        if existing is None:
            raise
        return str(existing.experiment_id)


def deleted_run(uri: str, run_id: str) -> Unusable:
    """The error for a run that was deleted while its stage works."""
    return Unusable(
        f"this stage's run was deleted: bring it back in its UI or with"
        f" `{_command(uri)} runs restore --run-id {run_id}`; else the stage's next attempt makes a new one"
    )


def explained(error: Exception) -> str:
    """The cause, shortly and without a login, and the way out."""
    if isinstance(error, Unusable):
        return str(error)
    text = without_login(str(error).strip() or type(error).__name__)
    return f"{_short(text)}; {next((way for marks, way in _WAYS_OUT if any(m in text for m in marks)), _NETWORK)}"


def is_outage(error: Exception) -> bool:
    """Nobody answered, so that the next question would wait in vain too."""
    return isinstance(error, ConnectionError) or bool(_NO_ANSWER.search(str(error)))


def wants_login(error: Exception | None) -> bool:
    """A server that refuses this login refuses it again."""
    return any(mark in str(error) for mark in (*NO_LOGIN, *NO_RIGHT))


def _command(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI={without_login(uri)} mlflow"


def _short(text: str) -> str:
    """`[Errno 111] Connection refused` of `.. (Caused by NewConnectionError(".. connection: [Errno 111] ..")))`."""
    cause = text.splitlines()[0].rpartition("Caused by ")[2].rpartition(": [Errno")
    return "".join(cause[1:]).lstrip(": ").rstrip("'\")")[:200]


def _beside_database(uri: str) -> str | None:
    """MLflow would put a database's artifacts below the current folder, wherever that is."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()
