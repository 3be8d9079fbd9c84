"""The laptop mode on small pipelines of shell commands and scripts."""

# No `from __future__ import annotations` here: KFP reads the types of a component's parameters.
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import compiler, dsl

from cmapkd.pipelines.local import StageError, run_package
from cmapkd_core.errors import InputError
from cmapkd_core.exits import ENDS


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
def hang(folder: str, name: str, artifact: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    script = (
        "import pathlib, signal, sys, time; folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "def stop(*_): (folder / f'{name}saved').touch(); name == 'deaf' or sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); (folder / f'{name}started').touch()\n"
        "for _ in range(600): time.sleep(0.1)"
    )
    return dsl.ContainerSpec(image="none", command=["python", "-c", script], args=[folder, name])


@dsl.container_component
def meet(folder: str, me: str, other: str, artifact: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    """Ends well if `other` begins while this one runs; without an `other` it takes a moment. Keeps what it saw.

    Where there is a file `me`.waits it takes until any two have met.
    """
    script = (
        'cd "$1"; touch "$2.began" "$2.was"; i=0; mkdir -p "$(dirname "$4")"; ls *.began > "$4"\n'
        '[ "$(wc -l < "$4")" -lt 2 ] || touch met\n'
        'while [ -e "$2.waits" ] && [ ! -e met ]; do sleep 0.05; i=$((i+1)); [ $i -lt 400 ] || exit 9; done; i=0\n'
        'while [ -n "$3" ] && [ ! -e "$3.was" ]; do sleep 0.05; i=$((i+1)); [ $i -lt 200 ] || exit 9; done\n'
        '[ -n "$3" ] || [ -e "$2.waits" ] || sleep 0.6; sleep "${PAUSE:-0}"\n'
        'echo "threads of $2: $OMP_NUM_THREADS $OMP_WAIT_POLICY"; echo "gone\rseen of $2" >&2\n'
        'rm "$2.began"; exit "${CODE:-0}"'
    )
    return dsl.ContainerSpec(image="none", command=["sh", "-c", script], args=["meet", folder, me, other, artifact])


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
    hang(folder=folder, name="").set_display_name("sleeper")


def two_hanging(second: str) -> object:
    @dsl.pipeline(name="two-hanging")
    def pipeline(folder: str) -> None:
        hang(folder=folder, name="a").set_display_name("one")
        hang(folder=folder, name=second).set_display_name("two")

    return pipeline


def meeting(first: str = "0", second: str = "0") -> object:
    """Tasks a and b, which wait for each other and end with these codes, and a third one."""

    @dsl.pipeline(name="meeting")
    def pipeline(folder: str) -> None:
        for me, other, code in (("a", "b", first), ("b", "a", second)):
            task = meet(folder=folder, me=me, other=other).set_display_name(me).set_env_variable("CODE", code)
            task.set_env_variable("PAUSE", "0" if int(code) else "1")  # a failed one is seen first
        meet(folder=folder, me="late", other="").set_display_name("late")

    return pipeline


@dsl.pipeline(name="apart")
def apart(folder: str) -> None:
    for me in ("a", "b", "c"):
        meet(folder=folder, me=me, other="").set_display_name(me)


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


def started(folder: Path, pipeline: object = hanging, names: tuple[str, ...] = ("",)) -> subprocess.Popen:
    """A runner in its own process, once its stages sleep."""
    package, given = compiled(pipeline, folder), {"folder": str(folder)}
    code = (
        "import sys; from pathlib import Path; from cmapkd.pipelines.local import StageError, run_package\n"
        f"try: run_package(Path({str(package)!r}), {given}, 'r', parallel={len(names)})\n"
        "except StageError as error: print(error); sys.exit(error.code)"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    for name in names:
        wait_for(folder / f"{name}started")
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


# ---- several at a time ----------------------------------------------------------------------------


def test_two_tasks_that_wait_for_each_other_end_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outputs = run_package(compiled(meeting(), tmp_path), {"folder": str(tmp_path)}, "r", ["a", "b", "late"], parallel=2)
    assert list(outputs) == ["a", "b", "late"]
    text = capfd.readouterr()
    assert "a | threads of a: " in text.out
    assert "b | seen of b\n" in text.err  # of a line that was rewritten in place its last state
    assert "gone" not in text.err


def test_each_task_gets_its_share_of_the_cores_unless_that_is_set(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, given = compiled(apart, tmp_path), {"folder": str(tmp_path)}
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    run_package(package, given, "r", parallel=3, alone=["b"])
    text = capfd.readouterr().out
    assert "a | threads of a: 2 PASSIVE\n" in text
    assert "b | threads of b:  PASSIVE\n" in text  # nothing runs beside it
    run_package(package, given, "r")
    assert "\nthreads of a:  PASSIVE\n" in capfd.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_package(package, given, "r", parallel=3)
    assert "a | threads of a: 5 ACTIVE\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("limits", "together"),
    [
        ({"parallel": 1}, set()),
        ({"parallel": 3}, {"ab", "ac", "bc", "abc"}),
        ({"parallel": 3, "places": {"a": "p", "b": "q", "c": "p"}}, {"ab", "bc"}),
        ({"parallel": 3, "alone": ["a"]}, {"bc"}),
    ],
)
def test_who_runs_beside_whom(tmp_path: Path, limits: dict, together: set[str]) -> None:
    for name in {*"".join(together)}:
        (tmp_path / f"{name}.waits").touch()
    outputs = run_package(compiled(apart, tmp_path), {"folder": str(tmp_path)}, "r", ["a", "b", "c"], **limits)
    seen = {"".join(line.removesuffix(".began") for line in text.split()) for text in outputs.values()}
    assert {names for names in seen if len(names) > 1} <= together
    assert bool(together) == any(len(names) > 1 for names in seen)


def test_after_a_failure_the_running_task_comes_to_its_end_and_no_other_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package, given = compiled(meeting("7", "0"), tmp_path), {"folder": str(tmp_path)}
    with pytest.raises(StageError, match="^stage a ended with exit code 7$") as error:
        run_package(package, given, "r", ["a", "b", "late"], parallel=2)
    assert error.value.codes == {"a": 7}
    assert "threads of b" in capfd.readouterr().out
    assert not list(tmp_path.glob("late*"))


def test_all_that_failed_are_named(tmp_path: Path) -> None:
    package, given = compiled(meeting("7", "8"), tmp_path), {"folder": str(tmp_path)}
    with pytest.raises(StageError, match="stage (a|b) ended with exit code [78]\nstage") as error:
        run_package(package, given, "r", ["a", "b", "late"], parallel=2)
    assert error.value.codes == {"a": 7, "b": 8}


def test_sigterm_reaches_all_running_tasks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = started(tmp_path, two_hanging("b"), ("a", "b"))
    os.kill(runner.pid, signal.SIGTERM)
    assert runner.wait(20) == 143
    assert (tmp_path / "asaved").exists()
    assert (tmp_path / "bsaved").exists()
    assert set(capfd.readouterr().out.splitlines()[-2:]) == {"stage one was stopped", "stage two was stopped"}


def test_a_second_signal_kills_what_does_not_end(tmp_path: Path) -> None:
    runner = started(tmp_path, two_hanging("deaf"), ("a", "deaf"))
    os.kill(runner.pid, signal.SIGTERM)
    wait_for(tmp_path / "deafsaved")
    assert runner.poll() is None
    os.kill(runner.pid, signal.SIGINT)
    assert runner.wait(20) == 143


@dsl.container_component
def ranks(script: str, root: str, artifact: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    return dsl.ContainerSpec(image="none", command=[*launcher, "--"], args=[script, root])


@dsl.pipeline(name="of-ranks")
def of_ranks(script: str, root: str) -> None:
    ranks(script=script, root=root).set_display_name("joint")


SCRIPT = """
import sys
from cmapkd_core import parallel
from cmapkd_core.stages.cli import main

def run(request):
    parallel.start()
    if parallel.rank() == 1:
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)
    parallel.barrier()
    return ""

if __name__ == "__main__":
    sys.exit(main(run, ["--recipe", "tiny", "--root", sys.argv[1]]))
"""


@pytest.mark.heavy
def test_a_local_run_ends_with_the_code_of_a_rank_below_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torchrun itself ends with 1, whatever its ranks say."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "script.py").write_text(SCRIPT)
    compiler.Compiler().compile(of_ranks, str(tmp_path / "pipeline.yaml"))
    with pytest.raises(StageError) as failed:
        run_package(tmp_path / "pipeline.yaml", {"script": str(tmp_path / "script.py"), "root": str(tmp_path)}, "r")
    assert failed.value.codes == {"joint": ENDS["full"].code}
    assert "scratch files lie in" in capfd.readouterr().err
