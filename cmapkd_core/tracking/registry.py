"""MLflow's model registry: a finished export as a version that points to where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cmapkd_core.logins import without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "cmapkd.digest"


class RegistryError(Exception):
    """The registry is away, refuses, or there is none; the message says what it said."""


def register(uri: str, name: str, source: str, digest: str, tags: Mapping[str, str]) -> str:
    """The number of the version of model `name` that has `digest`; made where there is none yet.

    The registry keeps the place, not the files: an export is immutable where it is. A server that is not on this
    machine takes no local path as a source.

    Raises:
        RegistryError: whatever went wrong.
    """
    from mlflow import MlflowClient

    place = source if "://" in source else str(Path(source).resolve())
    try:
        client = MlflowClient(tracking_uri=uri)
        _make_model(client, name)
        for known in client.search_model_versions(f"name = '{name}'"):
            if known.tags.get(DIGEST_TAG) == digest:
                return str(known.version)
        return str(client.create_model_version(name, source=place, tags={**tags, DIGEST_TAG: digest}).version)
    except Exception as error:  # every layer below has its own family of errors, and none may end the stage
        lines = str(error).strip().splitlines()
        raise RegistryError(without_login(lines[0] if lines else type(error).__name__)) from error


def _make_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
