"""A canary in every place that holds a secret: it shows in no output, file, parameter or package."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines.site import load_site
from cmapkd.pipelines.submit import main
from cmapkd_core import storage, tracking
from cmapkd_core.errors import InputError
from cmapkd_core.logins import without_login
from cmapkd_core.request import Request
from cmapkd_core.stages import check, prepare
from cmapkd_core.stages.cli import main as stage_main
from cmapkd_core.storage import s3

CANARY = "canary-7f3a"
SLASHED = f"{CANARY}/1+b/{CANARY}"  # S3's secret keys have slashes


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
        (f"data = 'folder:https://me:{SLASHED}@host/pictures'", "data has a user"),
        (f"root = 's3://id:{SLASHED}@box/root'", "root has a user"),
        (f"[local]\ntracking_uri = 'http://me:{CANARY}@mlflow'", "local.tracking_uri has a user"),
        (f"tracking_uri = 'postgresql://db/mlflow?user=me&password={CANARY}'", r"a login in its URL \(\?user=..\)"),
        (f"endpoint = 'https://kfp/?token={CANARY}'", r"endpoint has a login in its URL \(\?token=..\)"),
        (f"[env]\nAWS_ENDPOINT_URL = 'http://s3?x=1&X-Amz-Signature={CANARY}'", "AWS_ENDPOINT_URL has a login"),
        (f"data = 'folder:https://host/pictures?sig={CANARY}'", "data has a login"),
        (f"[local]\ntracking_uri = 'http://mlflow?api_key={CANARY}'", "local.tracking_uri has a login"),
        (f"secrets = {{ HF_TOKEN = '{CANARY}' }}", "secrets = a table: expected"),
        *(
            (f"[env]\n{name} = '{CANARY}'", f"env.{name} would be readable")
            for name in ("HF_TOKEN", "PGPASSWORD", "DB_PASS", "DB_PWD", "PRIVATE_KEY", "GITHUB_PAT", "CREDENTIALS")
        ),
    ],
)
def test_a_site_file_takes_names_of_secrets_only(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        load_site(str(tmp_path / "site.toml"))
    assert CANARY not in str(raised.value)


def test_harmless_variables_stay_allowed(tmp_path: Path) -> None:
    names = (
        "TOKENIZERS_PARALLELISM",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",  # the path of a file
        "PYTHONPATH",
        "PWD",
    )
    (tmp_path / "site.toml").write_text("[env]\n" + "".join(f"{name} = 'x'\n" for name in names))
    assert tuple(load_site(str(tmp_path / "site.toml")).env) == names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at http://me:{CANARY}@host:80/a@b now", "at http://host:80/a@b now"),
        (f"https://{CANARY}@host", "https://host"),
        (f"http://me:p@{CANARY}@host/x", "http://host/x"),
        (f"s3://id:{SLASHED}@box/root", "s3://box/root"),
        (f"http://host/a?user={CANARY}&x=1&pass%77ord={CANARY}' no", "http://host/a?user=***&x=1&pass%77ord=*** no"),
        (f"with url: /api?Token={CANARY}/api/2 (Caused", "with url: /api?Token=*** (Caused"),
        ("sqlite:///file:m.db?mode=ro&uri=true&sslkey=a b?c=d", "sqlite:///file:m.db?mode=ro&uri=true&sslkey=a b?c=d"),
        (f"http://host?author=me&authorization={CANARY}", "http://host?author=me&authorization=***"),
        (f"http://host?oauth={CANARY}&auth_x={CANARY}&authority=x", "http://host?oauth=***&auth_x=***&authority=x"),
        ("https://host:5000/image@sha256:1", "https://host:5000/image@sha256:1"),
        ("s3://box/a@b and me@host", "s3://box/a@b and me@host"),
    ],
)
def test_a_login_is_taken_out_of_urls_and_nothing_else(text: str, shown: str) -> None:
    assert without_login(text) == shown


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--data", f"folder:https://me:{SLASHED}@host/x"], "data"),
        (["--root", f"s3://id:{SLASHED}@box/root"], "root"),
        (["--set", f"teacher.weights=https://me:{CANARY}@host/x"], "overrides"),
        (["--set", f"teacher.wieghts=https://me:{CANARY}@host/x"], "overrides"),
        (["--suite", "smoke", "--set", f"teacher.weights=https://me:{CANARY}@host/x"], "overrides"),
        (["--data", f"folder:https://host/x?token={CANARY}"], "data"),
        (["--set", f"teacher.weights=https://host/x?user=me&password={CANARY}"], "overrides"),
        (["--only", "joint", "--run", "r", "--root", f"s3://id:{CANARY}@box/root"], "root"),
    ],
)
@pytest.mark.parametrize("mode", [["--dry-run"], ["--compile-only", "out.yaml"], ["--local"], []])
def test_a_login_becomes_no_parameter(
    api: Any, flags: list[str], name: str, mode: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*mode, *flags]) == 2
    printed = capfd.readouterr()
    assert re.search(f"error: {name} has a (user and password|login) in its URL.*: leave (them|it) out", printed.err)
    assert CANARY not in printed.out + printed.err + files(tmp_path)
    assert not api.runs


@pytest.mark.parametrize("command", [[], ["--check"], ["--retry", "r"], ["--schedule", "0 2 * * 1"]])
@pytest.mark.parametrize("endpoint", [f"http://me:{CANARY}@127.0.0.1:9", f"me:{CANARY}@kfp.test"])
def test_an_endpoint_has_no_login(
    api: Any, endpoint: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", endpoint)
    assert main(command) == (1 if command == ["--check"] else 2)
    printed = capfd.readouterr()
    assert "KF_PIPELINES_ENDPOINT) has a user and password in its URL" in printed.out + printed.err
    assert "put a token into the environment variable KF_PIPELINES_TOKEN" in printed.out + printed.err
    assert CANARY not in printed.out + printed.err


def test_a_token_that_no_header_takes_is_not_repeated(
    api: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", f"{CANARY}\n{CANARY}")
    assert main([]) == 2
    printed = capfd.readouterr()
    assert "KF_PIPELINES_TOKEN is no token" in printed.err
    assert CANARY not in printed.out + printed.err


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/?token={}", "http://me:{}@127.0.0.1:9", "http://me:{}@no-such-host.invalid", "me:{}@s3:9000"],
)
def test_storage_keeps_a_login_in_its_endpoint_to_itself(
    canaries: None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address.format(SLASHED if "127" in address else CANARY))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_REGION", "here")
    with pytest.raises(storage.StorageError, match="AWS_ENDPOINT_URL") as raised:
        storage.check_writable("s3://box/root")
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://id:{SLASHED}@box/root",
        f"https://me:{CANARY}@host/x",
        f"https://host/x?password={CANARY}",
        f"s3://box/x?password={CANARY}",
        f"https://host/x;password={CANARY}",
        f"https://host/x#access_token={CANARY}",
        f"https://host/x?a=1;pwd={CANARY}",
    ],
)
def test_a_place_has_no_login(url: str) -> None:
    """A key may be called like one, as a picture of a data set is: but no parameter, which everyone can read."""
    is_key = url.startswith("s3://box/")
    for verb in (storage.exists, storage.read_bytes, storage.list_files, storage.check_writable)[: 0 if is_key else 4]:
        with pytest.raises(InputError, match="has a (user and password|login) in its URL") as raised:
            verb(url)
        assert CANARY not in str(raised.value)
    for given in ({"root": url}, {"root": "r", "data": f"folder:{url}"}, {"root": "r", "overrides": f"data.url={url}"}):
        with pytest.raises(InputError, match=f"{list(given)[-1]} has a (user|login)") as raised:
            Request("tiny", **given)
        assert CANARY not in str(raised.value)


@pytest.mark.parametrize("login", [f"http://me:{CANARY}@127.0.0.1:9", f"http://127.0.0.1:9?user=me&password={CANARY}"])
def test_a_stage_keeps_a_login_in_its_tracking_uri_to_itself(
    login: str,
    canaries: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: Any,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = login
    prepare.run(Request("tiny", str(tmp_path / "root"), run="r", tracking_uri=uri))
    with pytest.raises(InputError, match="MLflow"):
        check.run(Request("tiny", str(tmp_path / "root"), run="c", tracking_uri=uri, check="here:0"), {})
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


@pytest.mark.parametrize(("silent", "code"), [("S3", 8), ("MLflow", 0)])  # without MLflow a stage goes on
def test_silent_services_are_named_within_a_minute(
    silent: str,
    code: int,
    silence: str,
    tmp_path: Path,
    canaries: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: Any,
) -> None:
    """At a tenth of the limits for one call: another that has none, or S3's usual ones, takes minutes."""
    brief = s3.BRIEF
    assert brief.attempts * (brief.connect + brief.read) + tracking.FLUSH_SECONDS < 60
    monkeypatch.setattr(s3, "BRIEF", s3.Limits(brief.connect / 10, brief.read / 10, brief.attempts))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    for name, value in {"ENDPOINT_URL": f"http://{silence}", "ACCESS_KEY_ID": "id", "REGION": "here"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    root, uri = ("s3://box/x", "") if silent == "S3" else (str(tmp_path), f"http://me:{CANARY}@{silence}")
    started = time.monotonic()
    argv = ["--recipe", "tiny", "--run", "r", "--root", root, "--tracking-uri", uri]
    assert stage_main(prepare.run, argv) == code
    assert time.monotonic() - started < 45
    printed = capfd.readouterr()
    errors = printed.err + caplog.text
    assert f"http://{silence}" in errors
    assert "answer" in errors
    assert CANARY not in printed.out + errors
