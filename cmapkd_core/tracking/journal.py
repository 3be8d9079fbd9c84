"""The local record of a stage's metrics: one JSON line a point, flushed at once, complete without MLflow."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from cmapkd_core.errors import InputError

logger = logging.getLogger(__name__)

MARK = 16  # digits


@dataclass(frozen=True)
class Point:
    """Metrics of one step. `time` is in ms since 1970 and stays with the point wherever it is delivered."""

    step: int
    time: int
    metrics: dict[str, float]

    def line(self) -> str:
        """NaN and Inf have no JSON number: they are written as the strings that float() reads."""
        plain = {name: value if math.isfinite(value) else str(value) for name, value in self.metrics.items()}
        return json.dumps({"step": self.step, "time": self.time, "metrics": plain}) + "\n"


def read_journal(path: Path) -> list[Point]:
    """The points of a journal in the order of logging; [] where there is none.

    Lines that cannot be read (a process was killed while it wrote the last one) are counted and reported.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    points = [point for line in lines if (point := _parse(line)) is not None]
    if len(points) < len(lines):
        logger.warning("%s: %d of %d lines are broken and left out", path, len(lines) - len(points), len(lines))
    return points


def _parse(line: str) -> Point | None:
    try:
        fields = json.loads(line)
        metrics = {str(name): float(value) for name, value in fields["metrics"].items()}
        return Point(int(fields["step"]), int(fields["time"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


@dataclass(frozen=True)
class Waiting:
    """A point that has not been delivered, and where its line ends in the journal of this `edition`."""

    point: Point
    end: int
    edition: int


class Journal:
    """A journal open for appending, and the queue of what is still to be delivered: the lines behind an offset.

    One thread appends, another one may deliver.

    Raises:
        InputError: the file cannot be written (no permission, disk full).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._delivered = self._edition = 0  # an offset in bytes; how often the file was written anew
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._rewrite(read_journal(path))
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, metrics: dict[str, float], step: int) -> None:
        """Write one point and hand it to the operating system, so that it outlives this process."""
        point = Point(int(step), time.time_ns() // 1_000_000, {name: float(v) for name, v in metrics.items()})
        try:
            with self._lock:
                self._file.write(point.line())
                self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def rewind(self, step: int) -> None:
        """Drop the points of `step` and later; the file is the old one or the new one at any moment.

        All that is left waits again: who delivers knows what the server holds, and sends no point twice.
        """
        with self._lock:
            self._file.close()
            self._file = self._rewrite([point for point in read_journal(self.path) if point.step < step])
            self._delivered, self._edition = 0, self._edition + 1

    def waiting(self) -> list[Waiting]:
        """The points that are not delivered, in the order of logging."""
        with self._lock, self.path.open("rb") as file:
            end, edition = self._delivered, self._edition
            file.seek(end)
            lines = file.read().splitlines(keepends=True)
        points = []
        for line in lines:
            end += len(line)
            if point := _parse(line.decode(errors="replace")):
                points.append(Waiting(point, end, edition))
        return points

    def delivered(self, last: Waiting) -> None:
        """This one and those before it wait no more; nothing is changed where a rewind has come between."""
        with self._lock:
            if last.edition == self._edition:
                self._delivered = last.end

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def mark(self) -> str:
        """What tells it from the journals of other executions: its first point, in a few characters; "" without one."""
        with self.path.open("rb") as file:
            line = file.readline()
        return sha256(line).hexdigest()[:MARK] if line else ""

    def _rewrite(self, points: list[Point]) -> IO[str]:
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(point.line() for point in points), encoding="utf-8")
        os.replace(partial, self.path)
        return self.path.open("a", encoding="utf-8")

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write the journal {self.path}: {error.strerror or error}; free some space or choose another folder"
        )
