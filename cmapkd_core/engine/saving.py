"""When checkpoints are made by time, how they are written behind training, and what that takes.

Training waits for a copy in memory and no longer: writing, hashing and uploading are a thread's work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any

from cmapkd_core.engine.checkpoint import Checkpoints, Snapshot


@dataclass
class Costs:
    """What the checkpoints of a stage took, over the attempts that it goes on from.

    stalled: seconds in which training stood still for them (a copy in memory, the one before, the last one of a phase);
    written: seconds of writing, behind training but for what is in `stalled`.
    """

    number: int = 0
    stalled: float = 0.0
    written: float = 0.0

    def metrics(self) -> dict[str, float]:
        """As a stage's metrics."""
        return {f"checkpoints/{name}": round(float(value), 3) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        what = f"{self.number} checkpoint{'s' * (self.number != 1)}"
        return f"{what} held training up for {self.stalled:.1f} s and took {self.written:.1f} s to write"


class Saver:
    """Writes checkpoints while training goes on, one at a time.

    Args:
        minutes: after which the next one is due; 0: never by time.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, checkpoints: Checkpoints, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._checkpoints, self._seconds, self._now = checkpoints, 60 * minutes, now
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._last = now()  # what training has to do again is counted from here
        self._snapshot: Snapshot | None = None
        self.costs = Costs()

    def due(self) -> bool:
        """True where the last one was begun so long ago; not while it is written, which would hold training up."""
        written = self._thread is None or not self._thread.is_alive()
        return 0 < self._seconds <= self._now() - self._last and written

    def begin(self, snapshot: Snapshot) -> None:
        """Write it in a thread; whoever begins has waited for the one before.

        The thread is no daemon: a process that ends by itself finishes what it has begun.
        """
        assert self._thread is None, "two at a time would each count the other's as an old one"
        self._snapshot = snapshot
        self._thread = Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def taken(self) -> Snapshot | None:
        """A checkpoint is about to be taken, of what is there now; the one before, whose memory it may have.

        The memory of a snapshot is kept from one to the next.
        """
        assert self._thread is None, "the one before is still being written"
        self._last = self._now()
        self.costs.number += 1
        return self._snapshot

    def _write(self, snapshot: Snapshot) -> None:
        began = self._now()
        try:
            self._checkpoints.write(snapshot)
        except BaseException as error:  # nobody else sees what a thread dies of
            self._failure = error
        self.costs.written += self._now() - began

    def wait(self) -> BaseException | None:
        """Until what was begun is complete; what it failed with, once."""
        if self._thread is not None:
            self._thread.join()
        failure = self._failure
        self._thread = self._failure = None
        return failure

    def end(self) -> None:
        """Nothing is saved any more: the memory of the last snapshot is free once it is written."""
        self._snapshot = None

    @contextmanager
    def holding_up(self) -> Iterator[None]:
        """What is done inside holds training up."""
        began = self._now()
        try:
            yield
        finally:
            self.costs.stalled += self._now() - began

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Count on from what `state` of an earlier attempt says."""
        self.costs = Costs(**state)

    def state(self) -> dict[str, Any]:
        """For `go_on_from`."""
        return asdict(self.costs)
