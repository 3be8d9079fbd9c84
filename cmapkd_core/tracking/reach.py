"""Whether an MLflow server answers: a question that waits, unlike a stage's delivery."""

from __future__ import annotations

import logging

from cmapkd_core.errors import InputError
from cmapkd_core.logins import without_login

_WAYS_OUT = (  # what an answer contains, and what to do
    (
        ("Invalid Host header", "allowed-hosts"),
        "name this host in MLFLOW_SERVER_ALLOWED_HOSTS of the server (k8s/components/mlflow)",
    ),
    (
        ("401", "403", "PERMISSION_DENIED", "UNAUTHENTICATED"),
        "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) into [[secrets]]",
    ),
)
_NETWORK = "check tracking_uri in the site file, the server, and the network policies between"


def ask(uri: str) -> None:
    """Ask the server for an experiment; how long that may take is bound by mlflow's settings.

    Raises:
        InputError: it does not answer, or refuses; names the URL, the cause and what to do.
    """
    from mlflow import MlflowClient

    retries = logging.getLogger("urllib3.connectionpool")
    level = retries.level
    retries.setLevel(logging.ERROR)  # the error says it in our words
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:
        text = without_login(str(error).strip() or type(error).__name__)
        way_out = next((way for marks, way in _WAYS_OUT if any(mark in text for mark in marks)), _NETWORK)
        raise InputError(
            f"MLflow at {without_login(uri)} cannot be used: {_short(text)}; {way_out}; stages go on without it"
        ) from error
    finally:
        retries.setLevel(level)


def _short(text: str) -> str:
    """`[Errno 111] Connection refused` of `.. (Caused by NewConnectionError(".. connection: [Errno 111] ..")))`."""
    cause = text.splitlines()[0].rpartition("Caused by ")[2].rpartition(": [Errno")
    return "".join(cause[1:]).lstrip(": ").rstrip("'\")")[:200]
