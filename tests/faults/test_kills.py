"""kill -9 at random moments of every stage, then the same command: what it makes is what it makes without a fault."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from cmapkd_core import storage
from cmapkd_core.engine.checkpoint import Checkpoints

from .conftest import CHAIN, World, ended

pytestmark = pytest.mark.heavy

KINDS = ("here", "on S3")
FEW = ("teacher", "joint", "evaluate-student")  # where each is tried once without --faults all


def killed(world: World, stage: str, root: str, after: float) -> str:
    """Start the stage, and kill it so many seconds later; what it said."""
    with ended(world.start(stage, root)) as (process,):
        deadline = time.monotonic() + after
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        return process.communicate()[0]


def partial(root: str, tmp_path: Any) -> list[str]:
    """Checkpoints below the root that look complete and cannot be used."""
    works = {name.split("/work/")[0] for name in storage.list_files(root) if "/work/checkpoints/" in name}
    bad = []
    for work in works:
        url = storage.join(root, work, "work")
        names = Checkpoints(url, tmp_path, "").names()
        for identity in {name.split("-")[2] for name in names}:
            found = Checkpoints(url, tmp_path, identity)
            found.latest()
            bad += sorted(found.damaged)
    return bad


@pytest.mark.parametrize("stage", CHAIN)
def test_a_killed_stage_ends_as_if_nothing_had_been(
    world: World,
    root: Callable[..., str],
    made: Any,
    count: Any,
    draw: random.Random,
    tally: Any,
    tmp_path: Any,
    stage: str,
) -> None:
    tried, held, went_on = count(int(stage in FEW), 6), 0, 0
    if not tried:
        pytest.skip("with --faults all")
    straight = made(world.straight(stage))
    for number in range(tried):
        place = root(KINDS[number % 2], f"kill{number}")
        killed(world, stage, place, draw.uniform(0, world.seconds[stage]))
        assert partial(place, tmp_path) == []
        url, said = world.finish(stage, place)
        held += made(url) == straight
        went_on += "going on from" in said
    tally(f"kill -9 in {stage}", "the same artifact by the same command", tried, held, f"{went_on} from a checkpoint")
