"""The laptop mode on a small pipeline of shell commands."""

# No `from __future__ import annotations` here: KFP reads the types of a component's parameters.
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import compiler, dsl

from cmapkd_core.errors import InputError
from pipelines.local import StageError, run_package


@dsl.container_component
def say(word: str, run: str, artifact: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    script = 'echo "on stdout: $1"; mkdir -p "$(dirname "$3")"; printf "%s@%s" "$1" "$2" > "$3"'
    return dsl.ContainerSpec(image="none", command=["sh", "-c", script], args=["say", word, run, artifact])


@dsl.container_component
def add(word: str, before: str, html: dsl.Output[dsl.HTML], artifact: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    script = 'set -e; echo "<p>" > "$3"; test -f "$3"; printf "%s+%s" "$2" "$1" > "$4"; exit "${CODE:-0}"'
    return dsl.ContainerSpec(
        image="none", command=["sh", "-c", script], args=["add", word, before, html.path, artifact]
    )


@dsl.container_component
def hang(folder: str, artifact: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    script = (
        "import pathlib, signal, sys, time; folder = pathlib.Path(sys.argv[1])\n"
        "def stop(*_): (folder / 'saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); (folder / 'started').touch(); time.sleep(60)"
    )
    return dsl.ContainerSpec(image="none", command=["python", "-c", script], args=[folder])


@dsl.pipeline(name="words")
def words(word: str = "hello") -> None:
    last = add(word=word, before="none").set_display_name("aside").set_env_variable("CODE", "0")
    first = say(word=word, run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER).set_display_name("zeroth")
    end = add(word="end", before=first.outputs["artifact"]).set_display_name("end").after(last)
    end.set_env_variable("CODE", "0")


@dsl.pipeline(name="failing")
def failing(word: str = "hello") -> None:
    first = say(word=word, run="r").set_display_name("first")
    middle = add(word="x", before=first.outputs["artifact"]).set_display_name("middle").set_env_variable("CODE", "7")
    add(word="x", before=middle.outputs["artifact"]).set_display_name("never")


@dsl.pipeline(name="hanging")
def hanging(folder: str) -> None:
    hang(folder=folder).set_display_name("sleeper")


def compiled(pipeline: object, folder: Path) -> Path:
    compiler.Compiler().compile(pipeline, str(folder / "pipeline.yaml"))
    return folder / "pipeline.yaml"


def test_outputs_travel_and_the_stages_output_streams(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outputs = run_package(compiled(words, tmp_path), {"word": "good day"}, "run-1", ["zeroth", "aside", "end"])
    assert outputs == {"zeroth": "good day@run-1", "aside": "none+good day", "end": "good day@run-1+end"}
    text = capfd.readouterr().out
    assert "on stdout: good day" in text
    labels = [line for line in text.splitlines() if line.endswith("...")]
    assert labels == ["[1/3] zeroth ...", "[2/3] aside ...", "[3/3] end ..."]


def test_defaults_hold_and_the_order_given_decides_among_ready_tasks(tmp_path: Path) -> None:
    outputs = run_package(compiled(words, tmp_path), {}, "r", ["aside", "zeroth"])
    assert list(outputs) == ["aside", "zeroth", "end"]
    assert outputs["aside"] == "none+hello"


def test_a_failing_stage_stops_the_run_with_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageError, match="stage middle ended with exit code 7") as error:
        run_package(compiled(failing, tmp_path), {}, "r")
    assert (error.value.name, error.value.code) == ("middle", 7)
    assert "never" not in capfd.readouterr().out


def test_a_loop_runs_on_a_cluster_only(tmp_path: Path) -> None:
    @dsl.pipeline(name="loop")
    def loop() -> None:
        with dsl.ParallelFor(["a", "b"]) as word:
            say(word=word, run="r")

    with pytest.raises(InputError, match="runs on a cluster only"):
        run_package(compiled(loop, tmp_path), {}, "r")


def started(folder: Path) -> subprocess.Popen[bytes]:
    """A runner in its own process, once its stage sleeps."""
    package = compiled(hanging, folder)
    code = (
        "import sys; from pathlib import Path; from pipelines.local import StageError, run_package\n"
        f"try: run_package(Path({str(package)!r}), {{'folder': {str(folder)!r}}}, 'r')\n"
        "except StageError as error: sys.exit(error.code)"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for(folder / "started")
    return runner


def wait_for(file: Path) -> None:
    end = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} did not appear"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_reach_the_stage_which_saves_before_the_runner_ends(tmp_path: Path, number: int, code: int) -> None:
    runner = started(tmp_path)
    os.kill(runner.pid, number)
    assert runner.wait(20) == code
    assert (tmp_path / "saved").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent death signal of Linux")
def test_a_killed_runner_leaves_no_stage_behind(tmp_path: Path) -> None:
    runner = started(tmp_path)
    runner.kill()
    runner.wait(20)
    wait_for(tmp_path / "saved")
