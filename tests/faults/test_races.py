"""Two real processes of one stage at one local root: one result, nothing of the other one's, and no failure."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

from cmapkd_core.stages.artifact import Artifact, find

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).with_name("racing.py")
TINY = ["--recipe", "tiny"]
STORE = "teacher_fit.views=2 teacher_fit.store=levels"


def left_in(place: Path) -> list[str]:
    """What lies in an artifact's place and is none of it."""
    found = find(str(place))
    assert found is not None
    files = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    own = {Path(found.file_url(name)).relative_to(place).as_posix() for name in found.files()}
    return sorted(files - {"manifest.json"} - own)


def race(tmp_path: Path, number: int, modes: tuple[str, str], module: str, *given: str) -> str:
    """Run it; the artifact's URL, which both have."""
    chance, folder = random.Random(number), tmp_path / str(number)
    go, root = folder / "go", folder / "root"
    (folder / "tmp").mkdir(parents=True)
    argv = [str(go), f"cmapkd_core.stages.{module}", *TINY, "--root", str(root), *given]
    env = {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    with contextlib.ExitStack() as stack:
        both = []
        for i, mode in enumerate(modes):
            argv_of_it = [mode, *argv, "--artifact", str(folder / f"url{i}")]
            both.append(stack.enter_context(contextlib.closing(Forked(str(SCRIPT), argv_of_it, env))))
        time.sleep(chance.random() * 0.2)
        go.write_text("")
        said = [process.communicate()[0] for process in both]
        codes = [process.returncode for process in both]
    print(*said, sep="\n-----\n")  # an assertion's message is cut
    assert codes == [0, 0]
    assert not [text for text in said if "Traceback" in text]
    assert sum(": done in" in text for text in said) == 1
    other = next(text for text in said if ": done in" not in text)
    assert "already complete" in other or "its result stands, ours is dropped" in other, other
    urls = {(folder / f"url{i}").read_text() for i in range(2)}
    assert len(urls) == 1
    url = urls.pop()
    for name in Artifact.open(url).files():
        Artifact.open(url).fetch(name)
    assert left_in(Path(url)) == []
    assert sorted(path.name for path in (folder / "tmp").iterdir()) == []
    shutil.rmtree(folder)
    return url


def races(tally: Callable[..., None], what: str, times: int, one: Callable[[int], object]) -> None:
    """So many of them, told as a row of the table."""
    held, faults = 0, list[str]()
    for number in range(times):
        try:
            one(number)
            held += 1
        except AssertionError as error:
            faults.append(f"{number}: {str(error).splitlines()[0]}")
    tally(f"two processes of {what}", "one winner, both end well, nothing else is left", times, held, "; ".join(faults))


@pytest.mark.parametrize("mode", ["turns", "passed"])
def test_two_processes_of_prepare(tmp_path: Path, count: Any, tally: Any, mode: str) -> None:
    what = "prepare, " + ("in turn" if mode == "turns" else "none waits for the other")
    races(tally, what, count(2, 100), lambda number: race(tmp_path, number, (mode, mode), "prepare"))


def test_a_slow_second_teacher_with_a_store(tmp_path: Path, tiny_shards: str, count: Any, tally: Any) -> None:
    """Both write the same parts to the same place, the second one while the artifact stands."""
    given = ("teacher", "--shards", tiny_shards, "--overrides", STORE)
    what = "teacher with a store, the second one slow"
    races(tally, what, count(1, 50), lambda number: race(tmp_path, number, ("passed", "slow"), *given))


def test_two_trainings_with_checkpoints(
    tmp_path: Path, tiny_shards: str, tiny_teacher: str, count: Any, tally: Any
) -> None:
    given = ["--stage", "warmup", "--shards", tiny_shards, "--teacher", tiny_teacher]
    given += ["--overrides", "runtime.checkpoint_every=1"]
    what = "a training with a checkpoint a step"
    races(tally, what, count(1, 50), lambda number: race(tmp_path, number, ("passed", "passed"), "train", *given))
