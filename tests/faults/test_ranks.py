"""Two ranks: one is asked to stop or is lost, or the next attempt has another number of them."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forked import Forked
from safetensors.torch import load_file

from cmapkd_core import storage
from cmapkd_core.stages.artifact import Artifact

from .conftest import OVERRIDES, World, ended

pytestmark = pytest.mark.heavy

GRACE = 5.0  # seconds from SIGTERM to the end of a pod
LOST = 30.0  # seconds in which a rank has to notice that another one is gone
STAGE = "joint"
LONG = f"{OVERRIDES} schedule.fine.epochs=4"  # 20 updates, so that a signal falls into training
# ALSN's dropout draws a mask for each rank; a warm-up has none, so that it does not depend on their number.
ALIKE = f"{OVERRIDES} schedule.coarse.epochs=5"


def saved(root: str) -> list[int]:
    """Steps of the complete checkpoints below a root, the newest last."""
    names = [n for n in storage.list_files(root) if "/work/checkpoints/" in n and n.endswith("/manifest.json")]
    return sorted(int(name.split("/")[-2].split("-")[1]) for name in names)


def trained(root: str, ranks: list[Forked], after: int) -> None:
    """Wait until a checkpoint of that step or a later one is there."""
    give_up = time.monotonic() + 120
    while not any(step >= after for step in saved(root)):
        assert time.monotonic() < give_up, [rank.said() for rank in ranks]
        assert all(rank.poll() is None for rank in ranks), [rank.said() for rank in ranks]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(world: World, made: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What two ranks make without a fault."""
    url, _ = world.finished(world.ranks(STAGE, str(tmp_path_factory.mktemp("straight")), 2, LONG))
    return made(url)


def test_sigterm_leaves_a_checkpoint_of_the_step_it_met(
    world: World, root: Callable[..., str], made: Any, straight: Any, count: Any, draw: random.Random, tally: Any
) -> None:
    tried, held, slowest = count(1, 20), 0, 0.0
    for number in range(tried):
        place = root("here", f"stop{number}")
        with ended(*world.ranks(STAGE, place, 2, LONG)) as ranks:
            trained(place, list(ranks), draw.randrange(1, 12))
            begun = time.monotonic()
            for rank in ranks if number % 2 else ranks[1:]:  # a pod has all of them stopped; a node may have one
                rank.send_signal(signal.SIGTERM)
            said = [rank.communicate(timeout=60)[0] for rank in ranks]
            took = time.monotonic() - begun
            codes = [rank.returncode for rank in ranks]
        met = re.search(r"was asked to stop; saved at phase fine, step (\d+)", said[0])
        stopped = took < GRACE and codes == [143, 143] and met and saved(place)[-1] == int(met[1])
        url, again = world.finished(world.ranks(STAGE, place, 2, LONG))
        gone_on = met and f"going on from the checkpoint at phase fine, step {met[1]}" in again
        held += bool(stopped and gone_on and made(url) == straight)
        slowest = max(slowest, took)
    wanted = f"a checkpoint of that step within {GRACE:.0f} s, then bit for bit"
    tally("SIGTERM at one or both of two ranks", wanted, tried, held, f"{slowest:.1f} s at most")


def test_a_lost_rank_ends_the_other_and_nothing_is_lost(
    world: World, root: Callable[..., str], made: Any, straight: Any, count: Any, draw: random.Random, tally: Any
) -> None:
    tried, held, slowest = count(1, 10), 0, 0.0
    for number in range(tried):
        place = root("here", f"lost{number}")
        with ended(*world.ranks(STAGE, place, 2, LONG)) as ranks:
            trained(place, list(ranks), draw.randrange(1, 12))
            begun = time.monotonic()
            ranks[number % 2].kill()
            said, _ = ranks[1 - number % 2].communicate(timeout=4 * LOST)
            took, code = time.monotonic() - begun, ranks[1 - number % 2].returncode
        url, _ = world.finished(world.ranks(STAGE, place, 2, LONG))
        held += bool(took < LOST and code not in (0, None) and made(url) == straight)
        slowest = max(slowest, took)
        assert held == number + 1, said
    wanted = f"the other is gone within {LOST:.0f} s, then bit for bit"
    tally("kill -9 of one of two ranks", wanted, tried, held, f"{slowest:.1f} s at most")


def weights(url: str) -> dict[str, torch.Tensor]:
    return load_file(Artifact.open(url).fetch("model/model.safetensors"))


def test_another_number_of_ranks_goes_on_with_the_same_samples(
    world: World, root: Callable[..., str], count: Any, draw: random.Random, tally: Any
) -> None:
    tried, held, apart = count(1, 10), 0, 0.0
    straight = weights(world.finish("warmup", root("here", "straight"), ALIKE)[0])
    for number in range(tried):
        place = root("here", f"worlds{number}")
        for size in (2, 1, 4):
            before = saved(place)[-1] if size != 2 else 0
            with ended(*world.ranks("warmup", place, size, ALIKE)) as ranks:
                trained(place, list(ranks), before + draw.randrange(1, 6))
                for rank in ranks:
                    rank.send_signal(signal.SIGTERM)
                said = [rank.communicate(timeout=60)[0] for rank in ranks]
                assert [rank.returncode for rank in ranks] == [143] * size, said
        ours = weights(world.finished(world.ranks("warmup", place, 2, ALIKE))[0])
        worst = max(float((x - ours[name]).abs().max()) for name, x in straight.items())
        apart, held = max(apart, worst), held + (worst < 1e-5)
    wanted = "weights within 1e-5 of one rank without a cut"
    tally("2, 1, 4 and 2 ranks one after another", wanted, tried, held, f"{apart:.1e} apart at most")
