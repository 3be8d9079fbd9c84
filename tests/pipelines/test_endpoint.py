"""Endpoints that refuse, fail, answer with pages or are not there: each a message with a way out, never a traceback."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines.submit import main

TOKEN = "secret-word"
SITE = 'image = "i@sha256:1"\nroot = "s3://box/root"\nrecipe = "tiny"\n'
FAILING = "it is up but failing"
WAYS_OUT = {401: "KF_PIPELINES_TOKEN", 403: "check `namespace`", 404: "version 2", 500: FAILING, 502: FAILING}
COMMANDS = [[], ["--retry", "first"], ["--schedule", "0 2 * * 1"], ["--check"]]

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(autouse=True)
def no_cluster_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))


def told(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that fails for its endpoint: --check in a line and with 1, the others with 3."""
    started = time.monotonic()
    assert main(command) == (1 if command == ["--check"] else 3)
    assert time.monotonic() - started < 60
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return printed.out if command == ["--check"] else printed.err


@pytest.mark.parametrize(
    ("where", "token"),
    [("experiments", ""), *((where, TOKEN) for where in ("healthz", "experiments", "upload", "runs"))],
    ids=lambda value: "token" if value == TOKEN else value or "open",
)
@pytest.mark.parametrize("status", [401, 403, 404, 500, 502])
def test_refusals_are_messages(
    api: Any, status: int, where: str, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", token)
    api.token, api.fail_with, api.fail_path, api.fail_page = token, status, where, status == 502
    error = told(["--run", "refused"], capsys)
    assert f"{api.url} answers {status}: " in error
    no_api = status == 404 and where == "healthz"
    assert ("no Pipelines API at this address" if no_api else WAYS_OUT[status]) in error
    assert no_api or "no Pipelines API" not in error
    assert TOKEN not in error
    assert not api.runs


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
@pytest.mark.parametrize("status", WAYS_OUT)
def test_every_command_tells_them(
    api: Any, status: int, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    api.fail_with, api.fail_path = status, "experiments" if command != ["--retry", "first"] else "runs"
    error = told(command, capsys)
    assert f"{api.url} answers {status}: " in error
    assert WAYS_OUT[status] in error
    assert "(it says: the database is away)" in error


@pytest.mark.parametrize("token", ["", "an-old-one"])
def test_a_login_page_is_no_api_and_a_token_leads_past_it(
    api: Any, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.login_page, api.token = True, TOKEN
    monkeypatch.setenv("KF_PIPELINES_TOKEN", token)
    error = told([], capsys)
    assert "is it a login page?" in error
    assert "KF_PIPELINES_TOKEN" in error
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    assert main([]) == 0


@pytest.mark.parametrize("where", ["experiments", "upload", "upload_version", "runs"])
def test_a_page_in_the_middle_of_a_submission_is_no_answer(
    api: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api.pipelines += [{"pipeline_id": "p1", "display_name": "cmapkd"}] if where == "upload_version" else []
    api.fail_with, api.fail_path, api.fail_page = 200, where, True
    assert f"{api.url} answers with a page" in told([], capsys)
    if not where.startswith("upload"):  # which a check does not do
        assert f"{api.url} answers with a page" in told(["--check"], capsys)


def test_an_answer_of_another_shape_is_told(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.fail_with, api.fail_path = 200, "upload"
    assert "not as the Pipelines API v2beta1 does" in told([], capsys)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_unreachable_endpoint_is_named_within_seconds(
    endpoint: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", endpoint)
    Path("site.toml").write_text(SITE if command != ["--check"] else 'image = "i@sha256:1"\n')
    error = told(command, capsys)
    assert f"{endpoint} does not answer" in error
    assert "port-forward" in error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "empty"])
def test_a_ca_file_that_is_none_is_bad_input(
    content: str | None, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("ca.pem").write_text(content)
    site = SITE if command != ["--check"] else 'image = "i@sha256:1"\n'
    Path("site.toml").write_text(f"endpoint = 'https://127.0.0.1:9'\nca_file = 'ca.pem'\n{site}")
    assert main(command) == (1 if command == ["--check"] else 2)
    printed = capsys.readouterr()
    assert "ca_file 'ca.pem' of the site file cannot be used" in printed.out + printed.err


def test_certificates_of_the_environment_that_cannot_be_read_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "none.pem")
    Path("site.toml").write_text(SITE)
    error = told([], capsys)
    assert "none.pem" in error
    assert "REQUESTS_CA_BUNDLE" in error
