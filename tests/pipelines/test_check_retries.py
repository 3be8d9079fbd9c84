"""What --check finds out of retries: a cluster that retries, one that does not, and those that cannot be seen."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines import endpoint
from cmapkd.pipelines.check_retries import NO, YES, Retries, known_of
from cmapkd.pipelines.ir import command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.site import Site, load_site
from cmapkd_core.stages import cli


@pytest.fixture
def site(api: Any, tmp_path: Path) -> Site:
    return replace(load_site("site.toml"), root=f"s3://box/{tmp_path.name}")  # the S3 is that of all tests


def plays(api: Any, folder: Path, *, retries: bool, ends_as: str = "", pods: bool = True) -> None:
    """Let the cluster run the task with the argv of its pod, again as its package says where it `retries`."""

    def play(run: dict[str, Any]) -> None:
        package = folder / "played.yaml"
        package.write_text(json.dumps(run["pipeline_spec"]["pipeline_spec"]))
        (step,) = steps(load_package(package)[0])
        parameters = load_package(package)[0].root.input_definitions.parameters
        form = {name: parameter.default_value.string_value for name, parameter in parameters.items()}
        argv = command_line(step, executor_input(step, resolve_inputs(step, form, {}, run["display_name"]), folder))
        stage = importlib.import_module(argv[2]).run
        attempts = 1 + retries * step.task.retry_policy.max_retry_count
        codes = [cli.main(stage, argv[3:]) for _ in range(attempts)] if pods else [1]
        run["state"] = ends_as or ("SUCCEEDED" if codes[-1] == 0 else "FAILED")

    api.on_run = play


def answer(site: Site, wait: bool = True, minutes: float = 0.01, cluster: Any = None) -> tuple[str, str, str]:
    tried = Retries(endpoint.connect(site), site, cluster, 0.01, "check-1")
    tried.start(minutes)
    return tried.answer(wait)


def test_a_cluster_that_retries(api: Any, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plays(api, tmp_path, retries=True)
    assert answer(site) == ("ok", "retries", YES)
    assert [run["display_name"] for run in api.runs] == ["check-1-retries"]
    assert capsys.readouterr().err.count("this attempt fails on purpose") == 1


def test_one_that_does_not(api: Any, site: Site, tmp_path: Path) -> None:
    plays(api, tmp_path, retries=False)
    assert answer(site) == ("failed", "retries", NO)
    assert "k8s/README.md" in NO


def test_what_a_site_does_not_want_is_not_tried(api: Any, site: Site) -> None:
    """The way out that a refusal names."""
    Path("site.toml").write_text(Path("site.toml").read_text() + "[retry]\ncount = 0\n")
    assert answer(load_site("site.toml")) == ("ok", "retries", "none are wanted (count = 0 under [retry])")
    assert not api.runs


def test_an_output_that_kfp_did_not_take_is_no_lack_of_retries(api: Any, site: Site, tmp_path: Path) -> None:
    plays(api, tmp_path, retries=True, ends_as="FAILED")
    assert answer(site) == ("ok", "retries", YES)


def test_a_task_that_fails_before_it_could_says_nothing(api: Any, site: Site, tmp_path: Path) -> None:
    plays(api, tmp_path, retries=True, pods=False)
    state, _, text = answer(site)
    assert state == "unknown"
    assert text.startswith(f"check-1-retries failed, {api.url}/#/runs/details/run-0; where its log says 'fails on")


class Logs:
    """A cluster that shows what a task logged."""

    def __init__(self, text: str) -> None:
        self.text = text

    def log_lines(self, run_id: str, task: str) -> list[str]:
        assert (run_id, task) == ("run-0", "check-retries")
        return [self.text]


@pytest.mark.parametrize(
    ("log", "state"), [("error: this attempt fails on purpose: does the", "failed"), ("error: other", "unknown")]
)
def test_a_root_that_cannot_be_read_from_here_leaves_the_log(
    api: Any, site: Site, tmp_path: Path, log: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(api, tmp_path, retries=False, pods=False)
    monkeypatch.setitem(os.environ, "AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert answer(site, cluster=Logs(log))[0] == state


@pytest.mark.parametrize("wait", [True, False])
def test_a_run_that_does_not_end_is_ended(api: Any, site: Site, wait: bool, tmp_path: Path) -> None:
    plays(api, tmp_path, retries=True, pods=False, ends_as="RUNNING")
    state, _, text = answer(site, wait, minutes=0.001)
    assert (state, api.terminated) == ("unknown", ["run-0"])
    assert "not found out: check-1-retries was ended before it had an answer" in text


def test_an_endpoint_that_fails_then_is_a_line(api: Any, site: Site, tmp_path: Path) -> None:
    tried = Retries(endpoint.connect(site), site, None, 0.01, "check-1")
    api.fail_with = 500
    tried.start(0.01)
    state, _, text = tried.answer(True)
    assert state == "unknown"
    assert "answers 500" in text


@pytest.mark.parametrize(
    ("version", "state", "says"),
    [
        (
            "2.17.0",
            "ok",
            "Kubeflow Pipelines 2.17.0: by itself it retries pods that vanished; containers that failed with",
        ),
        ("2.16.1", "ok", "Kubeflow Pipelines 2.16.1: by itself it retries containers that failed, and no pod that"),
        ("2.18.0-rc.1", "ok", "newer than 2.17, the last one that this project knows"),
        ("3.0.0", "ok", "newer than 2.17"),
        ("2.9.0", "unknown", "Kubeflow Pipelines 2.9.0: untested"),
        ("v1.8.5", "unknown", "untested"),
        ("unknown", "unknown", "Kubeflow Pipelines unknown does not say which release it is"),
        ("", "unknown", "Kubeflow Pipelines does not say which release it is"),
    ],
)
def test_what_is_known_of_a_version(
    kfp_server: Any, monkeypatch: pytest.MonkeyPatch, version: str, state: str, says: str
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp_server.url)
    kfp_server.version = version
    told = known_of(endpoint.connect(Site()).version)
    assert told[:2] == (state, "version")
    assert says in told[2]
