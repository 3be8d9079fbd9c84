"""A canary in every place that holds a secret: it shows in no output, file, parameter or package."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.stages import check, prepare
from cmapkd_core.stages.common import Request
from pipelines.site import load_site
from pipelines.submit import main

CANARY = "canary-7f3a"


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KF_PIPELINES_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, CANARY)


def files(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_nothing_secret_leaves_a_submission(
    api: Any, canaries: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    api.token = CANARY
    assert main(["--dry-run"]) == 0
    assert main(["--compile-only", "out.yaml"]) == 0
    assert main(["--run", "canaries", "--wait"]) == 0
    printed = capfd.readouterr()
    servers = json.dumps([api.runs, api.versions, api.experiments])
    assert CANARY not in printed.out + printed.err + servers + files(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"tracking_uri = 'http://me:{CANARY}@mlflow'", "tracking_uri has a user and password in its URL"),
        (f"endpoint = 'https://me:{CANARY}@kfp'", r"name a Kubernetes secret in \[\[secrets\]\]"),
        (f"[env]\nAWS_ENDPOINT_URL = 'http://a:{CANARY}@s3'", "AWS_ENDPOINT_URL has a user"),
        (f"[env]\nAWS_SECRET_ACCESS_KEY = '{CANARY}'", "env.AWS_SECRET_ACCESS_KEY would be readable"),
        (f"[env]\nHF_TOKEN = '{CANARY}'", "env.HF_TOKEN would be readable"),
    ],
)
def test_a_site_file_takes_names_of_secrets_only(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        load_site(str(tmp_path / "site.toml"))
    assert CANARY not in str(raised.value)


def test_harmless_variables_stay_allowed(tmp_path: Path) -> None:
    text = "[env]\nTOKENIZERS_PARALLELISM = 'false'\nAWS_WEB_IDENTITY_TOKEN_FILE = '/var/run/token'\n"
    (tmp_path / "site.toml").write_text(text)
    assert len(load_site(str(tmp_path / "site.toml")).env) == 2


def test_a_stage_keeps_a_login_in_its_tracking_uri_to_itself(
    canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://me:{CANARY}@127.0.0.1:9"
    prepare.run(Request("tiny", str(tmp_path / "root"), run="r", tracking_uri=uri))
    with pytest.raises(InputError, match="MLflow"):
        check.run(Request("tiny", str(tmp_path / "root"), run="c", tracking_uri=uri))
    printed = capfd.readouterr()
    assert "http://127.0.0.1:9" in printed.out + printed.err + caplog.text
    assert CANARY not in printed.out + printed.err + caplog.text + files(tmp_path)


@pytest.fixture
def silence() -> Iterator[str]:
    """host:port of a server that takes every call and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("service", ["S3", "MLflow"])
def test_a_silent_service_is_named_within_a_minute(service: str, silence: str, tmp_path: Path, canaries: None) -> None:
    root, uri = ("s3://box/x", "") if service == "S3" else (str(tmp_path), f"http://me:{CANARY}@{silence}")
    command = [sys.executable, "-m", "cmapkd_core.stages.prepare", "--recipe", "tiny", "--root", root, "--run", "r"]
    env = {**os.environ, "AWS_ENDPOINT_URL": f"http://{silence}", "AWS_ACCESS_KEY_ID": "id", "AWS_REGION": "here"}
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--tracking-uri", uri], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert time.monotonic() - started < 60
    assert done.returncode == (2 if service == "S3" else 0)
    assert f"http://{silence}" in done.stderr
    assert "answer" in done.stderr
    assert CANARY not in done.stdout + done.stderr
