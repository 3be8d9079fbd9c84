"""What a person sees of work that goes on: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

BAR = 10  # columns of a bar that tells something
Say = Callable[[str], None]  # shows a text in place of the one before; one that ends in a new line stays


class State(str):
    """A progress text that knows which share of the work is done; any sink may take it for the text that it is.

    Attributes:
        share: 0..1.
    """

    share: float

    @classmethod
    def of(cls, text: str, share: float) -> State:
        """`text` at `share`, which is brought into 0..1."""
        made = cls(text)
        made.share = min(1.0, max(0.0, share))
        return made


class ProgressDisplay:
    """One line of progress per stage: a bar on a terminal, a line now and then in a log."""

    def __init__(self, quiet: bool, seconds: float = 10.0) -> None:
        """`quiet` shows nothing, as on all ranks but one; `seconds` lie between two lines of a log."""
        self.quiet, self.seconds = quiet, seconds
        self.pending, self.last = "", -math.inf
        self._bar: _Bar | None = None

    def __call__(self, text: str) -> None:
        """Show `text`, a `State` with its bar; a text that ends in a new line always stays."""
        if self.quiet:
            return
        if text.endswith("\n"):
            self.end()
            sys.stdout.write(text)
        elif sys.stdout.isatty():
            self._bar = self._bar or _Bar()
            self._bar.show(text)
        elif time.monotonic() - self.last >= self.seconds:
            sys.stdout.write(text + "\n")
            self.pending, self.last = "", time.monotonic()
        else:
            self.pending = text
        sys.stdout.flush()

    def end(self) -> None:
        """Leave the newest text where it is, so that a stage's last state is seen."""
        if self._bar is not None:
            self.pending = self._bar.cleared()
        if self.pending:
            sys.stdout.write(self.pending + "\n")
            sys.stdout.flush()
        self.pending, self._bar = "", None


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar, which is given the share and the words."""

    monitor_interval = 0  # no thread of its own beside those of a stage

    def __init__(self) -> None:
        self.text = ""
        columns, lines = shutil.get_terminal_size()  # a container's terminal may have no size, and tqdm no bar for it
        super().__init__(total=1.0, file=sys.stdout, ncols=columns, nrows=lines, bar_format="{desc}")

    def show(self, text: str) -> None:
        """Draw `text`, behind it a bar where it is a `State` and there is room; a long one without its middle."""
        share = getattr(text, "share", None)
        self.text, self.ncols = text, shutil.get_terminal_size().columns - 1  # the last would begin a new line in some
        room = len(text) + BAR <= self.ncols
        self.bar_format = "{desc}" if share is None or not room else "{desc}  |{bar}|"
        self.n = share or 0.0
        self.set_description_str(without_middle(text, self.ncols), refresh=True)

    def cleared(self) -> str:
        """The line is free again; the newest text, whole."""
        self.leave = False
        self.close()
        return self.text


def without_middle(text: str, columns: int) -> str:
    """What has room: its beginning, which names the work, and its end, which has the speed and the rest."""
    if len(text) <= columns:
        return text
    tail = max(0, min(columns // 2, columns - 2))
    return f"{text[: columns - tail - 2]}..{text[len(text) - tail :]}"


class Progress:
    """Says how much is done, how fast, and how long the rest takes where the whole is known.

    `prepare: 50/600 rows  765 rows/s  ETA 1 s`
    """

    def __init__(
        self,
        say: Say,
        name: str,
        total: int,
        unit: str,
        *,
        before: int = 0,
        every: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """The time begins here.

        Args:
            say: where the text goes.
            name: what is going on, before the colon.
            total: of the work, in units; 0 where it is not known.
            before: done by an earlier attempt; it takes no time.
            every: only a multiple of it is said.
        """
        self.say, self.name, self.total, self.unit = say, name, total, unit
        self.before, self.every, self.now = before, every, now
        self.started = now()

    def __call__(self, done: int, state: str = "") -> None:
        """`done` units are done; `state` stands in place of how many."""
        if done % self.every:
            return
        counted = f"{done}/{self.total}" if self.total else str(done)
        text = f"{self.name}: {state or f'{counted} {self.unit}'}"
        if done > self.before:
            speed = (done - self.before) / max(self.now() - self.started, 1e-9)
            text += f"  {per_second(speed)} {self.unit}/s"
            text += f"  ETA {in_words(max(self.total - done, 0) / speed)}" if self.total else ""
        self.say(State.of(text, done / self.total) if self.total else text)


def per_second(speed: float) -> str:
    """A speed without digits that nobody reads; slow work is not `0 pictures/s`."""
    return f"{speed:.0f}" if speed >= 9.95 else f"{speed:.2g}"


def in_words(seconds: float) -> str:
    """`40 s`; from two minutes on as on a clock."""
    return f"{seconds:.0f} s" if seconds < 120 else clock(seconds)


def clock(seconds: float) -> str:
    """`h:mm:ss` or `m:ss`."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
