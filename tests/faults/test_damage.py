"""Stored files that are not what was written: found by whoever reads them, and by `submit.py --verify`."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines.submit import main

from .conftest import CHAIN, OVERRIDES, World, ended

pytestmark = pytest.mark.heavy

ATTEMPTS = 5  # to kill a stage before it is done


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a flipped bit": flipped,
    "cut off": lambda data, draw: data[: draw.randrange(len(data))],
    "emptied": lambda data, draw: b"",
    "zeros at its end": lambda data, draw: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "gone": lambda data, draw: None,
}


def damage(path: Path, kind: str, draw: random.Random) -> None:
    data = DAMAGES[kind](before := path.read_bytes(), draw)
    path.unlink()  # another inode: what was linked elsewhere stays
    if data is not None:
        assert data != before
        path.write_bytes(data)


def stored(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)


def test_every_damage_of_an_artifact_is_found(
    world: World, count: Any, draw: random.Random, tally: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried, held, missed = count(10, 200), 0, list[str]()
    for stage in CHAIN[: count(5, len(CHAIN))]:
        world.straight(stage)
    root = Path(shutil.copytree(world.folder / "straight", tmp_path / "root"))
    files = [path for path in stored(root) if "/runs/" not in str(path) or "/report/" in str(path)]
    for _ in range(tried):
        path, kind = draw.choice(files), draw.choice(list(DAMAGES))
        if kind == "zeros at its end" and not any(path.read_bytes()[path.stat().st_size // 2 :]):
            kind = "emptied"
        whole = path.read_bytes()
        damage(path, kind, draw)
        capsys.readouterr()
        code, said = main(["--verify", "--root", str(root)]), capsys.readouterr().out
        gone = kind == "gone" and path.name == "manifest.json"  # then it is no artifact, and its stage runs
        found = code == 1 and f"        {path.name if path.name == 'manifest.json' else ''}" in said
        held += gone or found
        if not (gone or found):
            missed.append(f"{path.relative_to(root)}: {kind}")
        path.write_bytes(whole)
    tally("damaged files of artifacts", "found by --verify", tried, held, "; ".join(missed))


# Each leaves something to go on from before it is done: shards, parts of the teacher's store, checkpoints.
LEAVING = {
    "prepare": f"{OVERRIDES} data.size=600 data.samples_per_shard=10",
    "teacher": f"{OVERRIDES} teacher_fit.store=levels",
    "joint": OVERRIDES,
}


def left_in_work(root: Path) -> list[Path]:
    """Whole files that the next attempt may take up; those that are hidden were being written."""
    found = sorted({*root.glob("*/*/work/*/**/*"), *root.glob("*/*/*/stored/*")})
    return [path for path in found if path.is_file() and not any(part.startswith(".") for part in path.parts[-3:])]


def killed_after_it_left_something(world: World, stage: str, root: Path, wait: float) -> list[Path]:
    """Kill it soon after its first file to go on from; all of these files, [] where it was done before."""
    with ended(world.start(stage, str(root), LEAVING[stage])) as (process,):
        while process.poll() is None and not left_in_work(root):
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return left_in_work(root)


@pytest.mark.parametrize("stage", LEAVING)
def test_what_a_killed_stage_has_left_is_looked_at(
    world: World, made: Any, count: Any, draw: random.Random, tally: Any, tmp_path: Path, stage: str
) -> None:
    """One of the files that are there when it goes on is not what was written."""
    tried, held, found = count(int(stage == "teacher"), 20), 0, 0
    if not tried:
        pytest.skip("with --faults all")
    world.straight(stage)
    straight = made(world.finish(stage, str(tmp_path / "straight"), LEAVING[stage])[0])
    for number in range(tried):
        for attempt in range(ATTEMPTS):
            root = tmp_path / f"root{number}-{attempt}"
            wait = draw.uniform(0, 0.4) * world.seconds[stage] / 4**attempt  # less where it was done before
            if left := killed_after_it_left_something(world, stage, root, wait):
                break
        else:
            pytest.fail(f"{stage} was done before it left anything, {ATTEMPTS} times")
        damage(draw.choice(left), draw.choice(["a flipped bit", "cut off", "emptied", "gone"]), draw)
        url, said = world.finish(stage, str(root), LEAVING[stage])
        held += made(url) == straight
        found += any(word in said for word in ("made again", "does not match", "is damaged"))
        shutil.rmtree(root)
    tally(
        f"damage of what a killed {stage} left",
        "the same artifact",
        tried,
        held,
        f"{found} of them named, the others gone or not needed",
    )
