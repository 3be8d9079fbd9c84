"""Work of several threads: results in the order of what they work on, or none that the caller waits for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(items: Iterable[A], work: Callable[[A], B], threads: int) -> Iterator[B]:
    """`map(work, items)` with up to `threads` calls at a time and a few more waiting; 0: one after another.

    However it ends, by a signal too: no call runs any more then.
    """
    if not threads:
        yield from map(work, items)
        return
    waiting: deque[Future[B]] = deque()
    calls = _Calls()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(calls, work, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            calls.close()


class _Calls:
    """Calls of threads. Closed, none begins any more and none runs.

    The pool waits for its threads, but not for one whose start a signal has interrupted: it does not know of that.
    """

    def __init__(self) -> None:
        self._change, self._running, self._closed = threading.Condition(), 0, False

    def __call__(self, work: Callable[[A], B], item: A) -> B:
        with self._change:
            if self._closed:
                raise CancelledError
            self._running += 1
        try:
            return work(item)
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: not self._running)


def in_groups(items: Iterable[A], work: Callable[[A], B], threads: int, each: int) -> Iterator[B]:
    """`in_order` of short work: a thread does `each` of it at a time, since handing one over costs as much.

    What fails takes the results before it in its group along.
    """
    left = iter(items)
    groups = iter(lambda: list(islice(left, each)), [])
    return chain.from_iterable(in_order(groups, lambda group: [work(item) for item in group], threads))


class Behind(Generic[A]):
    """Work that threads do behind the caller, who waits only while too much of it is waiting.

    Leaving the block waits for all of it; by an exception `grace` seconds and no longer, since nobody who is asked to
    stop can wait for a slow server, and what waits then is dropped. What a piece of work fails with ends the others,
    and is raised where the caller comes next.

    Args:
        work: called in a thread with each item.
        threads: how many.
        room: items that may wait beside those under way.
        grace: seconds.
    """

    def __init__(self, work: Callable[[A], object], threads: int, room: int, grace: float = 5.0) -> None:
        self._work, self._threads, self._room, self._grace = work, threads, room, grace
        self._items: deque[A] = deque()
        self._change, self._running, self._over = threading.Condition(), list[threading.Thread](), False
        self._failure: BaseException | None = None

    def __enter__(self) -> Behind[A]:
        return self

    def put(self, item: A) -> None:
        """Have it done; waits for room.

        Raises:
            What earlier work failed with.
        """
        with self._change:
            self._change.wait_for(lambda: self._failure or len(self._items) < self._room)
            self._raise()
            self._items.append(item)
            self._change.notify_all()
        if len(self._running) < self._threads:  # none before there is work: the caller may fork until then
            self._running.append(threading.Thread(target=self._run, name="behind", daemon=True))
            self._running[-1].start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._close()
                for thread in self._running:
                    thread.join()
        except BaseException:
            self._abandon()
            raise
        if error is not None:
            self._abandon()
        else:
            self._raise()

    def _close(self) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()

    def _abandon(self) -> None:
        self._close()
        end = time.monotonic() + self._grace
        for thread in self._running:
            thread.join(max(0.0, end - time.monotonic()))
        with self._change:
            self._items.clear()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._items or self._over or self._failure)
                if not self._items or self._failure:
                    return
                item = self._items.popleft()
                self._change.notify_all()
            try:
                self._work(item)
            except BaseException as failure:  # nobody else sees what a thread dies of
                with self._change:
                    self._failure = self._failure or failure
                    self._change.notify_all()
                return

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
