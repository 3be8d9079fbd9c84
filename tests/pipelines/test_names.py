"""Names of runs: the same command finds the same run, another one is another run, and a name can be given up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from cmapkd.pipelines import start, submit
from cmapkd.pipelines.submission import Submission, decide
from cmapkd_core import storage
from cmapkd_core.records import read_record
from cmapkd_core.stages.manifest import sealed

TINY = ["--recipe", "tiny", "--local"]


def decided(root: Path, *more: str) -> Submission:
    return decide(submit.parser().parse_args([*TINY, "--root", str(root), *more]))


def test_a_name_that_was_not_given_follows_the_recipe(tmp_path: Path) -> None:
    plain = decided(tmp_path).run
    assert plain == "tiny-none-s0"
    assert decided(tmp_path, "--set", "runtime.workers=1").run == plain  # no result depends on it
    smaller = decided(tmp_path, "--set", "optim.batch=8", "--set", "data.size=60").run
    assert smaller == decided(tmp_path, "--set", "data.size=60", "--set", "optim.batch=8").run
    names = {plain, smaller, decided(tmp_path, "--set", "optim.batch=8").run, decided(tmp_path, "--data", "emoji").run}
    assert len(names) == 4
    assert all(name.startswith(plain) for name in names)


def test_so_does_a_suites(tmp_path: Path) -> None:
    suite = ("--suite", "smoke", "--seeds", "1")
    assert decided(tmp_path, *suite).run == "tiny-smoke-1seeds"
    changed = decided(tmp_path, *suite, "--set", "optim.batch=8").run
    assert changed.startswith("tiny-smoke-1seeds-")
    assert len(changed) == len("tiny-smoke-1seeds-123456")


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Starts a run named x, of which no stage is run."""

    def nothing(package: Path, arguments: Mapping[str, str], *rest: object, **more: object) -> dict[str, str]:
        return {}

    def run(*more: str) -> int:
        return submit.main([*TINY, "--root", str(tmp_path), "--run", "x", *more])

    monkeypatch.setattr(start, "run_package", nothing)
    return run


def complete(url: str) -> None:
    none = {key: {} for key in ("fields", "inputs", "metrics", "outputs")}
    storage.create(f"{url}/manifest.json", sealed({"stage": "prepare", "seconds": 1, "folder": "out-1", **none}))


@pytest.mark.parametrize("suite", [(), ("--suite", "smoke", "--seeds", "1")])
def test_a_run_of_which_nothing_stands_gives_its_name_up(
    tmp_path: Path, started: Callable[..., int], capsys: pytest.CaptureFixture[str], suite: Sequence[str]
) -> None:
    assert started(*suite) == 0
    assert started(*suite, "--set", "data.quarantine_bound=0.04") == 0
    told = capsys.readouterr().out
    assert "run x had another recipe, of which no stage was complete; it has this one now:\n" in told
    assert "data.quarantine_bound: 0.001 -> 0.04" in told
    assert read_record(str(tmp_path), "x")["overrides"] == "data.quarantine_bound=0.04"
    assert started(*suite, "--set", "data.quarantine_bound=0.04") == 0
    assert "another recipe" not in capsys.readouterr().out


def test_a_run_of_which_a_stage_stands_keeps_it(
    tmp_path: Path, started: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert started() == 0
    complete(decided(tmp_path).urls["prepare"])
    assert started("--set", "data.quarantine_bound=0.04") == 2
    assert "run 'x' exists with another recipe" in capsys.readouterr().err
    assert read_record(str(tmp_path), "x")["overrides"] == ""


def test_what_stands_of_the_new_recipe_alone_does_not_count(tmp_path: Path, started: Callable[..., int]) -> None:
    """Another run may have made it."""
    assert started() == 0
    other = ("--set", "data.quarantine_bound=0.04")
    complete(decided(tmp_path, *other).urls["prepare"])
    assert started(*other) == 0


def test_a_damaged_record_is_not_given_up(tmp_path: Path, started: Callable[..., int]) -> None:
    assert started() == 0
    path = tmp_path / "runs" / "x" / "run.json"
    path.write_text(json.dumps({"run": "x"}))
    assert started("--set", "optim.batch=8") == 2
    assert json.loads(path.read_text()) == {"run": "x"}
