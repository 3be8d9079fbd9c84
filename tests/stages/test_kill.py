"""Real processes, real signals: what a pod that is preempted or lost leaves behind, and the same command after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmapkd_core import storage
from cmapkd_core.stages import train
from cmapkd_core.stages.artifact import find
from cmapkd_core.stages.cli import main

# Three steps an epoch, a checkpoint after each; long enough that a signal always falls into training.
OVERRIDES = "optim.batch=29 schedule.fine.epochs=8 runtime.checkpoint_every=1 selector.every=2"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def inputs(tiny_shards: str, tiny_teacher: str) -> list[str]:
    return ["--stage", "joint", "--shards", tiny_shards, "--teacher", tiny_teacher]


def argv(root: Path, inputs: list[str]) -> list[str]:
    return ["--recipe", "tiny", "--root", str(root), "--overrides", OVERRIDES, *inputs]


def signalled(root: Path, inputs: list[str], which: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Start the stage as a pod would, signal it once it has a checkpoint, and wait for its end."""
    command = [sys.executable, "-m", "cmapkd_core.stages.train", *argv(root, inputs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        give_up = time.monotonic() + PATIENCE
        while not list(root.glob("joint/*/work/checkpoints/*/manifest.json")):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < give_up
            time.sleep(0.01)
        process.send_signal(which)
        said, _ = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(command, process.returncode, said, "")


def finish(root: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The same command again, to its end: URL of the artifact and what it said."""
    capsys.readouterr()
    url_file = root / "url.txt"
    assert main(train.run, [*argv(root, inputs), "--artifact", str(url_file)]) == 0
    return url_file.read_text(), capsys.readouterr().out


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("straight")
    assert main(train.run, [*argv(root, inputs), "--artifact", str(root / "url.txt")]) == 0
    return (root / "url.txt").read_text()


def test_sigterm_saves_exits_143_and_the_same_command_goes_on(tmp_path, inputs, straight, digests, capsys):
    stopped = signalled(tmp_path, inputs, signal.SIGTERM)
    assert stopped.returncode == 143, stopped.stdout
    assert "joint was asked to stop; saved at phase fine, step" in stopped.stdout
    assert "Traceback" not in stopped.stdout
    (work,) = tmp_path.glob("joint/*/work")
    assert find(str(work.parent)) is None
    url, said = finish(tmp_path, inputs, capsys)
    assert "going on from the checkpoint at phase fine" in said
    assert digests(url) == digests(straight)


def test_kill_9_loses_nothing_that_was_saved(tmp_path, inputs, straight, digests, capsys):
    assert signalled(tmp_path, inputs, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("joint/*/manifest.json"))
    url, said = finish(tmp_path, inputs, capsys)
    assert "going on from the checkpoint at phase fine" in said
    assert digests(url) == digests(straight)
    assert not storage.list_files(storage.join(url, "work"))
