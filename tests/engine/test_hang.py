"""The watchdog of one process: who stands still for longer than its bound is ended, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from cmapkd_core.engine.hang import FIRST, HUNG, Watchdog

BOUND = 0.4  # seconds


@pytest.fixture
def codes() -> list[int]:
    return []


@pytest.fixture
def dog(codes: list[int]) -> Iterator[Watchdog]:
    with Watchdog("toy", BOUND / 60, end=codes.append) as dog:
        yield dog


def test_who_stands_still_is_ended_with_its_place_and_stack(dog, codes, capfd) -> None:
    dog.at("phase fine, step 7, in the forward pass", 0, 7, 1)
    time.sleep(2 * BOUND)
    assert set(codes) == {HUNG}
    said = capfd.readouterr().err
    assert "toy: rank 0 of 1 hangs: nothing has moved for 0 s (runtime.hang_minutes=0.00666667); rank 0: phase" in said
    assert "rank 0: phase fine, step 7, in the forward pass. The same command goes on from the last checkpoint" in said
    assert "test_who_stands_still" in said.partition("The stacks of rank 0:")[2]


def test_who_moves_or_is_busy_or_between_phases_or_not_training_yet_is_not(dog, codes) -> None:
    time.sleep(1.5 * BOUND)
    for step in range(20):
        dog.at("a step", 0, step)
        time.sleep(BOUND / 8)
    with dog.busy("a large checkpoint"):
        time.sleep(1.5 * BOUND)
    dog.rest()
    time.sleep(1.5 * BOUND)
    assert not codes


def test_the_first_step_of_a_phase_may_take_longer_and_not_for_ever(dog, codes) -> None:
    dog.at("the first step", 0, 1, first=True)
    time.sleep(1.5 * BOUND)
    assert not codes
    time.sleep(FIRST * BOUND)
    assert codes


def test_time_in_which_the_whole_process_was_stopped_does_not_count(dog, codes) -> None:
    dog.at("a step", 0, 1)
    waking = subprocess.Popen(["sh", "-c", f"sleep {2 * BOUND}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    assert not codes
    time.sleep(0.1 * BOUND)
    dog.at("the next step", 0, 2)
    waking.wait()
    assert not codes


def test_without_a_bound_nobody_looks(codes) -> None:
    with Watchdog("toy", 0.0, end=codes.append) as dog:
        dog.at("a step", 0, 1)
        assert dog._thread is None
