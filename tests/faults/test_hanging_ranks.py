"""A rank that hangs and does not die: all are gone within the bound, and the same command goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

from cmapkd_core.engine.hang import HUNG
from cmapkd_core.stages.artifact import find

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).with_name("hanging_ranks.py")


@pytest.fixture(scope="module")
def start(start_ranks, tiny_shards: str, tiny_teacher: str) -> Callable[[str, Path], list[Forked]]:
    return lambda how, root: start_ranks(SCRIPT, how, str(root), tiny_shards, tiny_teacher)


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("straight")
    ends(start("never", root), [0, 0])
    return artifact(root)


def ends(ranks: list[Forked], codes: list[int]) -> list[str]:
    said = [rank.communicate()[0] for rank in ranks]
    print(*said, sep="\n-----\n")
    assert [rank.returncode for rank in ranks] == codes
    return said


def artifact(root: Path) -> str:
    (place,) = (root / "warmup").iterdir()
    assert find(str(place)) is not None
    return str(place)


def test_a_rank_that_hangs_is_named_and_the_same_command_goes_on(
    start, straight: str, tmp_path: Path, made: Any, tally: Any
) -> None:
    began = time.monotonic()
    waiting, hanging = ends(start("sleeps", tmp_path), [HUNG, HUNG])
    assert time.monotonic() - began < 40
    for said in (waiting, hanging):
        assert "warmup: rank 1 of 2 hangs: nothing has moved for " in said
        assert "(runtime.hang_minutes=0.05); rank 0: phase coarse, step 4, in the forward pass, waits; rank 1:" in said
        assert "rank 1: phase coarse, step 4, in the forward pass. The same command goes on from the last" in said
    assert "hanging_ranks.py" in hanging.partition("The stacks of rank 1:")[2]
    assert "in to_device" in hanging
    assert "in gather" in waiting.partition("The stacks of rank 0:")[2]
    said, _ = ends(start("never", tmp_path), [0, 0])
    assert "going on from the checkpoint at phase coarse, step 3" in said
    held = made(artifact(tmp_path)) == made(straight)
    tally("a rank that hangs", "all are gone, it is named, then bit for bit", 1, int(held))


def test_a_rank_that_lets_no_thread_run_is_called_silent(start, tmp_path: Path, count: Any, tally: Any) -> None:
    """The kernel's clock waits for five bounds."""
    if not count(0, 1):
        pytest.skip("with --faults all")
    waiting, holding = start("holds", tmp_path)
    said = waiting.communicate()[0]
    assert waiting.returncode == HUNG, said
    assert "warmup: rank 1 of 2 hangs" in said
    assert re.search(r"rank 1: phase coarse, step \d, [a-z ]+, silent", said), said
    said = holding.communicate()[0]
    assert holding.returncode == 1, said
    assert "in to_device" in said
    tally("a rank that lets no thread run", "it is called silent, and ends by itself", 1, 1)
