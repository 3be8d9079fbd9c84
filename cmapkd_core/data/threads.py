"""Work of several threads whose results come in the order of what they work on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

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
