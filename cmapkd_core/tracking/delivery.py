"""The one background thread that talks to MLflow, so that nothing that happens there reaches training."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from cmapkd_core.logins import without_login
from cmapkd_core.tracking.journal import Point
from cmapkd_core.tracking.stage_run import StageRun, Target

logger = logging.getLogger(__name__)

BATCH_SECONDS = 1.0
LONGEST_PAUSE = 60.0  # seconds between two attempts to reach a server that is away
LAST_ATTEMPTS = 3  # failures in a row after which closing gives up before its time is over

THREAD = "mlflow-delivery"

Job = Callable[[StageRun], None]


class Delivery:
    """Takes points and jobs at once, delivers them in batches, connects again for as long as it takes.

    A failure drops the connection. The next one asks the server which points it holds, so a batch whose
    answer got lost is not delivered twice.
    """

    def __init__(self, target: Target, backlog: list[Point]) -> None:
        self._target = target
        self._fresh = not backlog
        self._points = deque(backlog)
        self._jobs: deque[tuple[str, Job]] = deque()
        self._remote: StageRun | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._give_up_at = float("inf")
        self._refused = 0
        self.run_id = ""
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self.do("parameters", StageRun.log_params)
        _quiet()
        self._thread.start()

    def add(self, point: Point) -> None:
        with self._lock:
            self._points.append(point)

    def do(self, name: str, job: Job) -> None:
        """Queue a call; `name` is for the message, should it never be delivered."""
        with self._lock:
            self._jobs.append((name, job))

    def forget(self, step: int) -> None:
        """Drop what is not delivered yet of `step` and later."""
        with self._lock:
            self._points = deque(point for point in self._points if point.step < step)

    def close(self, status: str, seconds: float) -> None:
        """Deliver what is left and end the run, within `seconds`; report what could not be."""
        self.do(f"status {status}", lambda remote: remote.finish(status))
        self._give_up_at = time.monotonic() + seconds
        self._closing.set()
        self._thread.join(seconds)
        with self._lock:
            jobs = [name for name, _ in self._jobs]
            lost = len(self._points)
        if lost or jobs:
            logger.warning(
                "not delivered to MLflow at %s%s: %d points%s; the journal has the points, and opening it again"
                " delivers them",
                without_login(self._target.uri),
                "" if self._remote else ", which has not answered",
                lost,
                "".join(f", {name}" for name in jobs),
            )
        if self._refused:
            logger.warning("MLflow refused %d points; they are in the journal alone", self._refused)

    @property
    def undelivered(self) -> int:
        """Points that wait."""
        with self._lock:
            return len(self._points)

    def _work(self) -> None:
        failures = 0
        while time.monotonic() < self._give_up_at:
            closing = self._closing.is_set()
            try:
                self._deliver()
                failures = 0
                if closing:
                    return
            except Exception as error:  # whatever it is, it is not worth a training run
                self._remote = None
                failures += 1
                if failures == 1:
                    self._tell(error)
                if closing and failures >= LAST_ATTEMPTS:
                    return
            pause = min(BATCH_SECONDS * 2**failures, LONGEST_PAUSE)
            self._closing.wait(pause) if not closing else time.sleep(min(pause, BATCH_SECONDS))

    def _deliver(self) -> None:
        if self._remote is None:
            self._remote = StageRun(self._target, self._fresh)
            self._fresh = False
            self.run_id = self._remote.run_id
        self._deliver_points(self._remote)
        while self._jobs and time.monotonic() < self._give_up_at:
            name, job = self._jobs[0]
            self._guarded(name, partial(job, self._remote))
            with self._lock:
                self._jobs.popleft()

    def _deliver_points(self, remote: StageRun) -> None:
        with self._lock:
            batch = list(self._points)
        if not batch:
            return
        try:
            remote.send(batch)
        except Exception as error:
            if not _is_refusal(error):
                raise
            for point in batch:  # find the ones that MLflow does not take, and deliver the rest
                self._refused += not self._guarded(f"point of step {point.step}", partial(remote.send, [point]))
                self._drop([point])
        self._drop(batch)

    def _guarded(self, name: str, call: Callable[[], object]) -> bool:
        """True after success, False when MLflow will never take it; other failures are worth another attempt."""
        try:
            call()
            return True
        except Exception as error:
            if not _is_refusal(error):
                raise
            logger.warning("MLflow does not take %s: %s", name, _cause(error))
            return False

    def _drop(self, batch: list[Point]) -> None:
        """Take delivered points off the queue; `forget` may have dropped some of them meanwhile."""
        done = {id(point) for point in batch}
        with self._lock:
            self._points = deque(point for point in self._points if id(point) not in done)

    def _tell(self, error: Exception) -> None:
        logger.warning(
            "MLflow at %s does not answer (%s); the stage goes on, its journal keeps the points until it does",
            without_login(self._target.uri),
            _cause(error),
        )


def _is_refusal(error: Exception) -> bool:
    """Not an outage: the same call will fail again."""
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return without_login(lines[0] if lines else type(error).__name__)


def _quiet() -> None:
    """Silence what mlflow's libraries tell about migrations and retries: `_tell` says it once, in our words."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(_from_elsewhere)


def _from_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD
