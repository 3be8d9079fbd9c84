import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from cmapkd_core.data.threads import in_groups, in_order


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_groups_keep_the_order_and_everything(threads: int, count: int) -> None:
    assert list(in_groups(range(count), lambda x: 2 * x, threads, 4)) == [2 * x for x in range(count)]


def test_groups_are_worked_on_at_once_and_no_further_ahead_than_they_must() -> None:
    taken, meet = [], threading.Barrier(3, timeout=20)

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        if item in (0, 4, 8):  # the first of three groups: each waits for the others
            meet.wait()
        return item

    assert list(islice(in_groups(items(), work, 3, 4), 4)) == [0, 1, 2, 3]
    assert len(taken) <= 2 * 3 * 4


def test_what_fails_ends_it() -> None:
    def work(item: int) -> int:
        if item == 9:
            raise OSError("gone")
        return item

    found = in_groups(range(20), work, 2, 4)
    assert list(islice(found, 8)) == list(range(8))
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_nothing_runs_any_more_once_a_signal_has_stopped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come while a thread is started, which the pool then does not know of: an upload went on behind a stop."""
    begun, goes_on, ended = threading.Event(), threading.Event(), []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("ThreadPoolExecutor"):
            begun.wait(20)
            raise KeyboardInterrupt

    def work(item: int) -> None:
        begun.set()
        goes_on.wait(20)
        ended.append(item)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    timer = threading.Timer(0.1, goes_on.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(range(3), work, 2))
    assert ended == [0]
