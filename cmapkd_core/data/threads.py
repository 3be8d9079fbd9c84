"""Work of several threads whose results come in the order of what they work on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(items: Iterable[A], work: Callable[[A], B], threads: int) -> Iterator[B]:
    """`map(work, items)` with up to `threads` calls at a time and a few more waiting; 0: one after another."""
    if not threads:
        yield from map(work, items)
        return
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_groups(items: Iterable[A], work: Callable[[A], B], threads: int, each: int) -> Iterator[B]:
    """`in_order` of short work: a thread does `each` of it at a time, since handing one over costs as much.

    What fails takes the results before it in its group along.
    """
    left = iter(items)
    groups = iter(lambda: list(islice(left, each)), [])
    return chain.from_iterable(in_order(groups, lambda group: [work(item) for item in group], threads))
