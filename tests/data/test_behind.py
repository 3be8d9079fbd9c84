"""Work behind a caller: what the caller waits for, and how a failure and a stop end it."""

import threading
import time
from collections.abc import Callable

import pytest

from cmapkd_core.data.threads import Behind

PATIENCE = 20.0


def test_all_is_done_when_the_block_ends() -> None:
    done: list[int] = []
    with Behind(done.append, threads=3, room=2) as behind:
        for number in range(50):
            behind.put(number)
    assert sorted(done) == list(range(50))
    assert not [thread for thread in threading.enumerate() if thread.name == "behind"]


def test_the_caller_waits_for_room_and_for_nothing_else() -> None:
    begun, free, done = threading.Semaphore(0), threading.Event(), threading.Event()

    def work(number: int) -> None:
        begun.release()
        free.wait(PATIENCE)

    def fill() -> None:
        with Behind(work, threads=1, room=2) as behind:
            for number in range(4):
                behind.put(number)
            done.set()

    caller = threading.Thread(target=fill)
    caller.start()
    assert begun.acquire(timeout=PATIENCE)  # one is under way and two wait, so the fourth has no room
    assert not done.wait(0.05)
    free.set()
    assert done.wait(PATIENCE)
    caller.join(PATIENCE)


def fails(number: int) -> None:
    if number == 3:
        raise KeyError("three")


def test_a_failure_is_raised_where_the_caller_comes_next() -> None:
    put: list[int] = []

    def numbers() -> None:
        with Behind(fails, threads=2, room=1) as behind:
            for number in range(1000):
                behind.put(number)
                put.append(number)

    with pytest.raises(KeyError, match="three"):
        numbers()
    assert len(put) < 10


def test_the_last_failure_is_raised_at_the_end() -> None:
    with pytest.raises(KeyError, match="three"), Behind(fails, threads=1, room=1) as behind:
        behind.put(3)


def stopped(work: Callable[[int], object], count: int, grace: float) -> None:
    with Behind(work, threads=1, room=count, grace=grace) as behind:
        for number in range(count):
            behind.put(number)
        raise InterruptedError


def test_an_exception_waits_for_what_is_quick_and_not_for_what_is_slow() -> None:
    done, free, began = list[int](), threading.Event(), time.monotonic()
    with pytest.raises(InterruptedError):
        stopped(done.append, 10, PATIENCE)
    assert done == list(range(10))
    with pytest.raises(InterruptedError):
        stopped(lambda item: free.wait(PATIENCE), 1, 0.1)
    assert time.monotonic() - began < PATIENCE / 2
    free.set()
