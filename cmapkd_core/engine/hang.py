"""What ends a training that hangs: a thread in each rank sees where it stands, and how long nothing has moved.

A rank that hangs leaves the others in a collective, so soon none of them moves. When none has for the bound, each says
which one is behind, prints the stacks of its threads and ends its process: who started it tries again, from the last
checkpoint. As long as one rank moves, or says that what it does takes long (`busy`), nobody is ended.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import TracebackType

from cmapkd_core import parallel
from cmapkd_core.exits import ENDS

HUNG = ENDS["hung"].code
FIRST = 4.0  # times the bound for the first step of a phase: compilers, first reads of shards and caches
LOOKS = 8  # in a bound, and at least one in LONGEST seconds
LONGEST = 15.0


@dataclass(frozen=True)
class Mark:
    """Where a rank stands. order: how far it is; two of equal order stand at the same place."""

    where: str = "before its first step"
    order: tuple[int, ...] = ()
    allowed: float = 1.0  # times the bound; 0: as long as it takes


@dataclass
class RankState:
    """What a rank has last written of itself, as seen here. still: seconds without a move, silent: without a word."""

    where: str = ""
    order: tuple[int, ...] = ()
    allowed: float = 0.0
    waits: bool = False  # in a collective
    still: float = 0.0
    beat: int = -1
    silent: float = 0.0

    def progress(self) -> tuple[tuple[int, ...], bool]:
        """How far it is: of two that stand in the same part of a step the one that waits in a collective is ahead."""
        return self.order, self.waits

    def hangs(self, bound: float) -> bool:
        """Whether it has neither moved nor excused itself, or its process says nothing at all any more."""
        return self.silent > bound * max(self.allowed, 1.0) or (self.allowed > 0 and self.still > bound * self.allowed)


class Watchdog:
    """The thread of a rank; a context. Does nothing where `minutes` is 0.

    Args:
        end: how this process ends, given its exit code.
    """

    def __init__(self, stage: str, minutes: float, end: Callable[[int], None] = os._exit) -> None:
        self.stage, self.minutes, self._end = stage, minutes, end
        self._bound = 60 * minutes
        self._look = min(self._bound / LOOKS, LONGEST)
        self._mark, self._still = Mark(allowed=0.0), 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._ranks = [RankState() for _ in range(parallel.world())]
        self._board: parallel.Board | None = None
        self._beat = 0

    def __enter__(self) -> Watchdog:
        if self._bound:
            self._board = parallel.board(f"hang-{parallel.broadcast(uuid.uuid4().hex)}") if self._several else None
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    @property
    def _several(self) -> bool:
        return len(self._ranks) > 1

    def at(self, where: str, *order: int, first: bool = False) -> None:
        """This rank has come so far; from here on it has the bound, FIRST times that in the first step of a phase."""
        self._mark = Mark(where, order, FIRST if first else 1.0)

    def rest(self) -> None:
        """No steps from here on: what is done between two phases takes as long as it takes."""
        self._mark = Mark("between two phases", (*self._mark.order[:1], sys.maxsize), 0.0)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """What is done inside takes as long as it takes, and has bounds of its own where it needs any."""
        before = self._mark
        self._mark = Mark(what, before.order, 0.0)
        try:
            yield
        finally:  # another object, so that time is counted anew
            self._mark = Mark(before.where, before.order, before.allowed)

    def _watch(self) -> None:
        last, then = self._mark, time.monotonic()
        while not self._over.wait(self._look):
            now, mark = time.monotonic(), self._mark
            passed = min(now - then, 2 * self._look)  # a process that was stopped has not hung for that long
            self._still = self._still + passed if mark is last else 0.0
            last, then = mark, now
            self._beat += 1
            if self._several:  # of the kernel's clock and without Python, should the main thread let no other one run
                faulthandler.dump_traceback_later((FIRST + 1) * self._bound, exit=True, file=sys.__stderr__ or 2)
            self._exchange(mark, passed)
            if all(rank.hangs(self._bound) for rank in self._ranks) and not self._over.is_set():
                self._give_up()

    def _exchange(self, mark: Mark, passed: float) -> None:
        """Tell the others where we stand, and read how they stand; a board that does not answer is silence of all."""
        own = RankState(mark.where, mark.order, mark.allowed, parallel.waits(), self._still, self._beat)
        states = [asdict(rank) | {"silent": rank.silent + passed} for rank in self._ranks]
        if self._board is not None:
            with suppress(Exception):
                self._board.write(parallel.rank(), json.dumps(asdict(own)))
                for rank, text in enumerate(self._board.read()):
                    report = json.loads(text) if text else {}
                    if report and report["beat"] != states[rank]["beat"]:
                        states[rank] = report | {"order": tuple(report["order"]), "silent": 0.0}
        self._ranks = [RankState(**rank) for rank in states]
        self._ranks[parallel.rank()] = own

    def _give_up(self) -> None:
        with suppress(Exception):  # whoever reads it may be gone
            print(f"\n{self.text()}\nThe stacks of rank {parallel.rank()}:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            sys.stdout.flush()
        if self._several:  # the others look too, and shall find this; the board is rank 0's and ends with it
            time.sleep((3 if parallel.rank() else 5) * self._look)
        self._end(parallel.leave_exit(HUNG))

    def text(self) -> str:
        """Who hangs, where each rank stands, and what brings the stage on."""
        silent = [n for n, rank in enumerate(self._ranks) if rank.silent > self._bound]
        behind = min(self._ranks, key=RankState.progress).progress()
        who = silent or [n for n, rank in enumerate(self._ranks) if rank.progress() == behind]
        notes = [", silent" if n in silent else ", waits" * rank.waits for n, rank in enumerate(self._ranks)]
        places = "; ".join(f"rank {n}: {rank.where}{notes[n]}" for n, rank in enumerate(self._ranks))
        names = f"rank{'s' * (len(who) > 1)} {', '.join(map(str, who))}"
        return (
            f"{self.stage}: {names} of {len(self._ranks)} hang{'s' * (len(who) == 1)}: nothing has moved for "
            f"{self._still:.0f} s (runtime.hang_minutes={self.minutes:g}); {places}. The same command goes on from the "
            "last checkpoint; where steps take that long, raise runtime.hang_minutes (0: no bound)"
        )
