"""Real processes, real signals: what a pod that is preempted or lost leaves behind, and the same command after it.

Each attempt has a local disk of its own, as each pod has; the root is what they share, here and on S3.
"""

import contextlib
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import Forked

from cmapkd_core import storage
from cmapkd_core.stages import train
from cmapkd_core.stages.artifact import find
from cmapkd_core.stages.cli import main

# Twelve steps, a checkpoint after each: long enough that a signal always falls into training.
OVERRIDES = "optim.batch=29 schedule.fine.epochs=4 runtime.checkpoint_every=1 selector.every=2"
PATIENCE = 120.0
SAVED = "/manifest.json"  # what makes a checkpoint one


@pytest.fixture(scope="module")
def inputs(tiny_shards: str, tiny_teacher: str) -> dict[str, str]:
    return {"shards": tiny_shards, "teacher": tiny_teacher}


@pytest.fixture(params=["here", pytest.param("on S3", marks=pytest.mark.heavy)])
def root(request, tmp_path) -> str:
    return request.getfixturevalue("s3_root") if request.param == "on S3" else str(tmp_path / "root")


@pytest.fixture
def near(inputs, root) -> dict[str, str]:
    """The inputs below the root, so that a pod has to fetch them from where it is."""
    return {name: copied(url, storage.join(root, *url.rsplit("/", 2)[1:])) for name, url in inputs.items()}


def copied(url: str, target: str) -> str:
    for name in storage.list_files(url):
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(url, name)))
    return target


def argv(root: str, inputs: dict[str, str]) -> list[str]:
    given = [word for name, url in inputs.items() for word in (f"--{name}", url)]
    return ["--stage", "joint", "--recipe", "tiny", "--root", root, "--overrides", OVERRIDES, *given]


def started(arguments: list[str], disk: Path) -> Forked:
    """The stage as a pod starts it, with `disk` as its only local folder."""
    disk.mkdir()
    return Forked("cmapkd_core.stages.train", arguments, {"OMP_NUM_THREADS": "1", "TMPDIR": str(disk)})


def checkpoints(root: str) -> list[str]:
    """Names of the complete ones."""
    return [n for n in storage.list_files(storage.join(root, "joint")) if "/work/checkpoints/" in n and SAVED in n]


def signalled(root: str, inputs: dict[str, str], disk: Path, which: signal.Signals) -> tuple[int, str]:
    """Start the stage, signal it once it has a checkpoint: its exit code, what it said. Its disk goes with it."""
    process = started(argv(root, inputs), disk)
    with contextlib.closing(process):
        give_up = time.monotonic() + PATIENCE
        while not checkpoints(root):
            assert process.poll() is None, process.said()
            assert time.monotonic() < give_up
            time.sleep(0.05)  # on S3 each look costs the server, which is this process, as long
        process.send_signal(which)
        said, _ = process.communicate(timeout=PATIENCE)
        code = process.returncode
    shutil.rmtree(disk)
    return code, said


def finish(root: str, inputs: dict[str, str], disk: Path) -> tuple[str, str]:
    """The same command again with an empty disk, to its end: URL of the artifact and what it said."""
    url_file = disk.with_suffix(".txt")
    with contextlib.closing(started([*argv(root, inputs), "--artifact", str(url_file)], disk)) as process:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    return url_file.read_text(), said


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("straight")
    assert main(train.run, [*argv(str(root), inputs), "--artifact", str(root / "url.txt")]) == 0
    return (root / "url.txt").read_text()


def test_sigterm_saves_exits_143_and_the_same_command_goes_on(tmp_path, root, near, straight, digests):
    code, said = signalled(root, near, tmp_path / "pod1", signal.SIGTERM)
    assert code == 143, said
    assert "joint was asked to stop; saved at phase fine, step" in said
    assert "Traceback" not in said
    place = storage.join(root, "joint", checkpoints(root)[0].split("/")[0])
    assert find(place) is None
    url, said = finish(root, near, tmp_path / "pod2")
    assert "going on from the checkpoint at phase fine" in said
    assert url == place
    assert digests(url) == digests(straight)


def test_kill_9_loses_nothing_that_was_saved(tmp_path, root, near, straight, digests):
    code, _ = signalled(root, near, tmp_path / "pod1", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert find(storage.join(root, "joint", checkpoints(root)[0].split("/")[0])) is None
    url, said = finish(root, near, tmp_path / "pod2")
    assert "going on from the checkpoint at phase fine" in said
    assert digests(url) == digests(straight)
    assert not storage.list_files(storage.join(url, "work"))
