"""Versions of a registered model on SQLite: one for each artifact, and an error that can be told."""

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.tracking import RegistryError, register_model


@pytest.fixture(autouse=True)
def _no_server_of_kfps(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def register(uri, digest, source="s3://bucket/export/0123/out-1", name="cmapkd-demo"):
    return register_model(uri, name=name, source=source, digest=digest, tags={"cmapkd.run": "r"})


def test_every_artifact_is_one_version(mlflow_database, tmp_path):
    from mlflow import MlflowClient

    assert [
        register(mlflow_database, "a"),
        register(mlflow_database, "b", str(tmp_path)),
        register(mlflow_database, "a"),
    ] == ["1", "2", "1"]
    client = MlflowClient(tracking_uri=mlflow_database)
    sources = {
        v.version: (v.source, v.tags["cmapkd.digest"]) for v in client.search_model_versions("name = 'cmapkd-demo'")
    }
    assert {str(n): found for n, found in sources.items()} == {
        "1": ("s3://bucket/export/0123/out-1", "a"),
        "2": (str(tmp_path), "b"),
    }


def test_no_mlflow_is_no_error():
    assert register("", "a") == ""


def test_a_server_that_is_away_is_told_without_its_login(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError) as caught:
        register("http://user:secret@127.0.0.1:9", "a")
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_the_registry_refuses_is_told(mlflow_database):
    with pytest.raises(RegistryError, match="(?i)name"):
        register(mlflow_database, "a", name="a/b:c")


def test_a_uri_of_an_unknown_kind():
    with pytest.raises(InputError, match="is of no known kind"):
        register("mlruns", "a")


def test_kfps_own_server_comes_first(mlflow_database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert register("http://127.0.0.1:9", "a", name="cmapkd-kfp") == "1"
