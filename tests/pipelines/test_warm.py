"""Stages that fork from one process: they must not tell it from `python -m`, and end as the others do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmapkd.pipelines import forkserver, processes, warm
from cmapkd.pipelines.processes import Processes
from cmapkd_core.exits import EXIT_FILE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' signal at a parent's death")
REPOSITORY = Path(__file__).parents[2]
PROBE = """
import json, os, pathlib, signal, sys, time
def stop(*_): pathlib.Path("saved").touch(); sys.exit(143)
if __name__ == "__main__":
    what = sys.argv[1]
    if what == "work":
        import cmapkd_core.stages.bodies.report
    if what == "fail":
        raise LookupError("of this stage")
    if what == "hang":
        signal.signal(signal.SIGTERM, stop); pathlib.Path("began").touch()
        time.sleep(60)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    told = {
        "argv": sys.argv, "name": [__name__, __spec__.name, sys.modules["__main__"].__dict__ is globals()],
        "path": sys.path[0], "cwd": os.getcwd(), "leader": os.getsid(0) == os.getpid() == os.getpgrp(),
        "signals": [str(signal.getsignal(one)) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)],
        "wakes": signal.set_wakeup_fd(-1), "env": {name: text for name, text in os.environ.items() if name != "_"},
        "files": len(os.listdir("/proc/self/fd")), "flags": str(sys.flags),
    }
    if what == "loaded":
        told = ["cmapkd_core.stages.bodies.report" in sys.modules, os.getppid()]
    print(json.dumps(told), flush=True)
    print("aside", file=sys.stderr)
    sys.exit(7)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(warm, "STAGES", "probe")
    return tmp_path


@pytest.fixture
def run(place: Path) -> Iterator[Processes]:
    with Processes() as made:
        yield made


def told(run: Processes, what: str, capfd: pytest.CaptureFixture[str], **more: str) -> tuple[int, str, str]:
    """Exit code and what is printed of a task."""
    run.start("task", ["python", "-m", "probe", what, "last word"], {EXIT_FILE: f"of {what}"} | more, prefix="p | ")
    code = run.ended()["task"]
    out, err = capfd.readouterr()
    return code, out, err


def appears(file: Path) -> None:
    end = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} did not appear"
        time.sleep(0.02)


def test_a_stage_finds_all_as_python_m_gives_it(
    run: Processes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts_of() -> dict:
        code, out, err = told(run, "say", capfd, OMP_NUM_THREADS="3")
        assert (code, err) == (7, "p | aside\n")
        return json.loads(out.removeprefix("p | "))

    facts, again = facts_of(), facts_of()
    monkeypatch.setattr(processes, "of_stage", lambda argv: False)
    apart = facts_of()
    assert facts == again == apart | {"files": apart["files"] + 1}  # that of what it has imported
    assert facts["argv"][1:] == ["say", "last word"]
    assert (facts["env"][EXIT_FILE], facts["env"]["OMP_NUM_THREADS"], facts["leader"]) == ("of say", "3", True)


def test_what_a_stage_that_works_has_imported_the_next_one_of_its_environment_has(
    run: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    def loaded(threads: str) -> list:
        return json.loads(told(run, "loaded", capfd, OMP_NUM_THREADS=threads)[1].removeprefix("p | "))

    before, server = loaded("1")
    told(run, "work", capfd, OMP_NUM_THREADS="1")
    assert (before, loaded("1")) == (False, [True, server])
    other = loaded("2")  # which libraries read once
    assert not other[0]
    assert other[1] != server


def test_an_error_and_a_kill_are_told_as_of_any_process(run: Processes, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(run, "fail", capfd)
    assert code == 1
    assert "p | LookupError: of this stage\n" in err
    assert told(run, "die", capfd)[0] == 128 + signal.SIGKILL


def test_sigterm_reaches_a_forked_stage_which_saves(run: Processes, place: Path) -> None:
    run.start("task", ["python", "-m", "probe", "hang"], {})
    appears(place / "began")
    os.kill(os.getpid(), signal.SIGTERM)
    assert run.ended() == {"task": 143}
    assert (place / "saved").exists()


SLOW = """
import pathlib, time
if __name__ != "__main__":
    pathlib.Path("importing").touch(); time.sleep(15); pathlib.Path("imported").touch()
"""


def test_sigterm_does_not_wait_for_what_a_server_still_imports(run: Processes, place: Path) -> None:
    (place / "probe_slow.py").write_text(SLOW)
    run.start("task", ["python", "-m", "probe_slow"], {})
    appears(place / "importing")
    os.kill(os.getpid(), signal.SIGTERM)
    assert run.ended() == {"task": 143}
    assert not (place / "imported").exists()


def test_a_lost_server_takes_its_stages_with_it_and_the_next_is_a_process_of_its_own(
    run: Processes, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run.start("task", ["python", "-m", "probe", "hang"], {})
    appears(place / "began")
    (server,) = run._warm.values()
    server._server.kill()
    assert run.ended() == {"task": 143}
    appears(place / "saved")
    code, out, _ = told(run, "loaded", capfd)
    assert (code, json.loads(out.removeprefix("p | "))[1]) == (7, os.getpid())


def test_a_killed_runner_leaves_no_forked_stage_behind(place: Path) -> None:
    code = (
        "from cmapkd.pipelines import warm; from cmapkd.pipelines.processes import Processes\nwarm.STAGES = 'probe'\n"
        "with Processes() as run: run.start('task', ['python', '-m', 'probe', 'hang'], {}); run.ended()"
    )
    runner = subprocess.Popen([sys.executable, "-c", code])
    appears(place / "began")
    runner.kill()
    runner.wait()
    appears(place / "saved")


FORK = """
import importlib, os, sys, threading
from cmapkd.pipelines import forkserver
for name in (*forkserver.WORK, forkserver.TRACKING):
    forkserver._warm(name)
assert all(name in sys.modules for name in (*forkserver.WORK, forkserver.TRACKING))
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert "onnxruntime" not in sys.modules
for _ in range(3):
    if not (pid := os.fork()):
        import torch
        weights = torch.ones(256, 256, requires_grad=True)
        (weights @ weights).sum().backward()
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
"""


@pytest.mark.heavy
def test_what_tasks_leave_imported_can_be_forked() -> None:
    assert "cmapkd_core.stages.bodies.export" not in forkserver.WORK
    subprocess.run([sys.executable, "-c", FORK], cwd=REPOSITORY, check=True, timeout=120)
