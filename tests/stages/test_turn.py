"""One task at a time on an artifact: who waits, who passes, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from manifests import TORN

from cmapkd_core import storage
from cmapkd_core.request import Request
from cmapkd_core.stages import execute as execution
from cmapkd_core.stages import turn
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.stages.turn import TURN, Turn


def asked(root: Path, run: str, **more: str) -> Request:
    return Request("tiny", str(root), run=run, **more)


def record(url: str) -> dict[str, Any]:
    return dict(storage.read_json(f"{url}/{TURN}"))


def test_one_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "joint")
    with Turn(asked(tmp_path, "first"), "joint", url) as mine, Turn(asked(tmp_path, "second"), "joint", url) as other:
        assert mine.take() == ""
        assert other.take().startswith("run first (on ")
    assert not storage.exists(f"{url}/{TURN}")
    with Turn(asked(tmp_path, "second"), "joint", url) as other:
        assert other.take() == ""


def test_a_retry_passes_its_earlier_attempt_and_nothing_else_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed attempt leaves its record; the reference of a run may be equal to the run itself."""
    monkeypatch.setattr(turn, "SETTLE", 0.0)
    url = str(tmp_path / "warmup")
    killed = Turn(asked(tmp_path, "run", ablation="finetune"), "warmup", url)
    assert killed.take() == ""
    with Turn(asked(tmp_path, "run", ablation="finetune", own_overrides="seed=0"), "warmup", url) as reference:
        assert reference.take() != ""
    with Turn(asked(tmp_path, "run", ablation="finetune"), "warmup", url) as retried:
        assert retried.take() == ""
        killed.__exit__(None, None, None)  # had it lived: it gives back no turn but its own
        assert record(url)["owner"] == retried._record["owner"]


def test_a_process_of_this_machine_that_is_gone_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "SETTLE", 0.0)
    url = str(tmp_path / "joint")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Turn(asked(tmp_path, "first"), "joint", url) as first:
        for pid, waits in ((os.getppid(), True), (gone.pid, False)):
            storage.write_json(f"{url}/{TURN}", first._record | {"pid": pid})
            with Turn(asked(tmp_path, "second"), "joint", url) as second:
                assert bool(second.take()) is waits


def test_a_task_elsewhere_is_passed_when_it_was_silent_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SETTLE", 0.0)
    now = [0.0]
    monkeypatch.setattr(turn.time, "monotonic", lambda: now[0])
    url = str(tmp_path / "joint")
    theirs = Turn(asked(tmp_path, "first"), "joint", url)._record | {"host": "another-pod"}
    with Turn(asked(tmp_path, "second"), "joint", url) as mine:
        for beat, at, waits in (
            (0, 0.0, True),
            (0, 100.0, True),
            (1, 119.0, True),
            (1, 238.0, True),
            (1, 240.0, False),
        ):
            storage.write_json(f"{url}/{TURN}", theirs | {"beat": beat})
            now[0] = at
            assert bool(mine.take()) is waits, at


def test_the_same_command_given_twice_is_no_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in two terminals of a machine, nor as two runs of one name in a cluster."""
    monkeypatch.setattr(turn, "SETTLE", 0.0)
    url, same = str(tmp_path / "joint"), asked(tmp_path, "run")
    with Turn(same, "joint", url) as second:
        storage.write_json(f"{url}/{TURN}", second._record | {"owner": "other", "pid": os.getppid()})
        assert second.take().startswith("run run (on ")
    for pod, waits in (("cmapkd-aaaaa-system-container-impl-2", False), ("cmapkd-bbbbb-system-container-impl-1", True)):
        monkeypatch.setenv("KFP_POD_NAME", "cmapkd-aaaaa-system-container-impl-1")
        killed = Turn(same, "joint", url)._record | {"host": "another-pod"}
        storage.write_json(f"{url}/{TURN}", killed)
        monkeypatch.setenv("KFP_POD_NAME", pod)
        with Turn(same, "joint", url) as attempt:
            assert bool(attempt.take()) is waits, pod


def test_what_is_given_back_while_it_is_asked_for_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent one that lives deletes its record after it was passed, and the place may be cleared by hand."""
    url, same = str(tmp_path / "joint"), asked(tmp_path, "run")
    monkeypatch.setattr(turn, "BEAT", 0.01)
    storage.write_json(f"{url}/{TURN}", Turn(same, "joint", url)._record)
    with Turn(same, "joint", url) as mine:
        with monkeypatch.context() as patched:
            patched.setattr(turn.time, "sleep", lambda seconds: storage.delete(f"{url}/{TURN}"))
            assert mine.take() == "a task that has just ended"
        assert mine.take() == ""
        storage.delete(f"{url}/{TURN}")
        for _ in range(200):
            if storage.exists(f"{url}/{TURN}"):
                break
            threading.Event().wait(0.02)
        assert record(url)["owner"] == mine._record["owner"]
    assert not storage.exists(f"{url}/{TURN}")


def test_a_stop_while_the_turn_is_taken_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(seconds: float) -> None:
        raise KeyboardInterrupt

    url, same = str(tmp_path / "joint"), asked(tmp_path, "run")
    storage.write_json(f"{url}/{TURN}", Turn(same, "joint", url)._record)
    monkeypatch.setattr(turn.time, "sleep", stopped)
    with pytest.raises(KeyboardInterrupt), Turn(same, "joint", url) as mine:
        mine.take()
    assert not storage.exists(f"{url}/{TURN}")


def test_it_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "BEAT", 0.01)
    url = str(tmp_path / "joint")
    with Turn(asked(tmp_path, "first"), "joint", url) as mine:
        assert mine.take() == ""
        beats = threading.Event()
        for _ in range(200):
            if record(url)["beat"] > 2:
                beats.set()
                break
            threading.Event().wait(0.02)
        assert beats.is_set()


def test_of_two_runs_that_want_the_same_one_works_and_the_other_takes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "LOOK", 0.02)
    url, worked = str(tmp_path / "levels" / "1"), []
    inside, go_on = threading.Event(), threading.Event()

    def body(context: Context) -> dict[str, float]:
        worked.append(context.workdir)
        inside.set()
        go_on.wait(20)
        (context.out / "a.txt").write_text("a")
        return {"a": 1.0}

    def stage(run: str) -> None:
        execute(asked(tmp_path, run), "levels", url=url, fields={}, inputs={}, body=body)

    first, second = (threading.Thread(target=stage, args=(run,)) for run in ("first", "second"))
    first.start()
    assert inside.wait(20)
    second.start()
    for _ in range(500):
        if "waits for run first" in capsys.readouterr().out:
            break
        threading.Event().wait(0.02)
    else:
        pytest.fail("the second one does not say that it waits")
    go_on.set()
    first.join(20)
    second.join(20)
    assert len(worked) == 1
    manifest = json.loads((tmp_path / "levels" / "1" / "manifest.json").read_text())
    assert manifest["run"] == "first"
    assert not (tmp_path / "levels" / "1" / TURN).exists()


def test_a_stage_that_fails_gives_its_turn_back(tmp_path: Path) -> None:
    url = str(tmp_path / "levels" / "1")

    def body(context: Context) -> dict[str, float]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        execute(asked(tmp_path, "first"), "levels", url=url, fields={}, inputs={}, body=body)
    assert not storage.exists(f"{url}/{TURN}")


@pytest.mark.parametrize("torn", TORN)
def test_a_damaged_record_holds_the_turn_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str) -> None:
    monkeypatch.setattr(turn, "SETTLE", 0.0)
    monkeypatch.setattr(turn, "BEAT", 0.01)
    url = str(tmp_path / "joint")
    storage.write_bytes(f"{url}/{TURN}", TORN[torn])
    with Turn(asked(tmp_path, "first"), "joint", url) as mine:
        assert mine.take() == ""
        assert record(url)["owner"] == mine._record["owner"]
        storage.write_bytes(f"{url}/{TURN}", TORN[torn])  # while it works: its next beat writes it anew
        deadline = time.monotonic() + 10
        while Path(url, TURN).read_bytes() == TORN[torn] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert record(url)["owner"] == mine._record["owner"]
    assert not storage.exists(f"{url}/{TURN}")


def test_a_link_in_the_records_place_and_the_number_of_no_process_are_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SETTLE", 0.0)
    place = tmp_path / "joint" / TURN
    place.parent.mkdir()
    for target in (TURN, "gone"):
        place.symlink_to(target)
        with Turn(asked(tmp_path, "first"), "joint", str(place.parent)) as mine:
            assert mine.take() == ""
            storage.write_json(str(place), mine._record | {"pid": 1 << 70})
            with Turn(asked(tmp_path, "second"), "joint", str(place.parent)) as second:
                assert second.take() == ""
