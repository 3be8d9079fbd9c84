"""The one background thread that talks to MLflow, so that nothing that happens there reaches training."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from cmapkd_core.logins import without_login
from cmapkd_core.tracking.journal import Journal
from cmapkd_core.tracking.limits import Names
from cmapkd_core.tracking.patience import GaveUp, Patience
from cmapkd_core.tracking.reach import GONE, Unusable, explained, is_outage, wants_login
from cmapkd_core.tracking.stage_run import StageRun, Target

logger = logging.getLogger(__name__)

BATCH_SECONDS = 1.0
LONGEST_PAUSE = 60.0  # seconds between two attempts to reach a server that is away
QUIET_SECONDS = (
    10.0  # trouble that is shorter is not reported, and a stage that fails at once tells its own error first
)
LOOK = 0.05  # seconds between two looks at whether the wait is over
LAST_ATTEMPTS = 3  # failures in a row after which closing gives up before its time is over

THREAD = "mlflow-delivery"
PARAMETERS, STATUS = "parameters", "status"  # jobs that opening a journal does again
UPLOAD = "artifact"  # jobs that may take long

Job = Callable[[StageRun], None]


@dataclass(frozen=True)
class Left:
    """What MLflow lacks of a stage that has ended.

    text: for people; "" where it has everything. journal: whether points, parameters or the status are missing, which
    opening the journal again delivers. jobs: names of what else is, such as an artifact.
    """

    text: str = ""
    journal: bool = False
    jobs: tuple[str, ...] = ()


class Delivery:
    """Delivers a journal's points in batches, and jobs; connects again for as long as it takes.

    The journal is the only queue of points. A failure drops the connection, unless a single job fails. The next one
    asks the server which points it holds, so a batch whose answer got lost is not delivered twice.
    """

    def __init__(self, target: Target, journal: Journal) -> None:
        self._target, self._journal = target, journal
        self._mark = journal.mark()  # as it was opened
        self._jobs: deque[tuple[str, Job]] = deque()
        self._remote: StageRun | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._patience = Patience(target.uri)
        self._refused: set[tuple[int, int]] = set()  # step and time of the points
        self._trouble = self._reported = ""  # why the latest attempt failed, and what was reported of it
        self._since = float("inf")  # when the first of the failures in a row was
        self._ended: tuple[str, Job] | None = None  # the job that has ended the run
        self._names = Names()
        self.run_id = ""
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self.do(PARAMETERS, StageRun.log_params)
        _quiet()
        self._thread.start()

    def do(self, name: str, job: Job) -> None:
        """Queue a call; `name` is for the message, should it never be delivered."""
        with self._lock:
            self._jobs.append((name, job))

    def close(self, status: str, reason: str, seconds: float, hurried: bool) -> Left:
        """Deliver what is left and end the run, within `seconds`; what could not be, for the caller to tell."""
        mark = self._journal.mark()
        self.do(f"{STATUS} {status}", lambda remote: remote.finish(status, reason, mark))
        self._patience.begin(seconds, hurried)
        self._closing.set()
        while self._thread.is_alive() and not self._patience.over:
            self._thread.join(LOOK)
        with self._lock:
            jobs = tuple(name for name, _ in self._jobs)
        lost = len(self._journal.waiting())
        if not (lost or jobs or self._refused):
            return Left()
        parts = [f"{lost} points"] * bool(lost) + list(jobs)
        if self._refused:
            parts.append(f"{len(self._refused)} points that it refuses, which are in the journal alone")
        text = f"MLflow at {without_login(self._target.uri)} lacks {', '.join(parts)}"
        if lost or jobs:
            text += f" ({self._trouble or 'it has not answered in time'})"
        others = tuple(name for name in jobs if name.split()[0] not in (PARAMETERS, STATUS))
        return Left(text, bool(lost or len(others) < len(jobs)), others)

    @property
    def place(self) -> dict[str, str]:
        """See `Tracker.place`."""
        return {
            "server": without_login(self._target.uri),
            "experiment": self._target.experiment,
            "parent": self._target.parent_id,
        }

    def _work(self) -> None:
        failures = 0
        while not self._patience.over:
            closing = self._closing.is_set()
            try:
                error = self._deliver()
            except Exception as raised:  # whatever it is, it is not worth a training run
                self._remote, error = None, raised
            failures = failures + 1 if error else 0
            self._note(error, failures)
            if closing and (not 0 < failures < LAST_ATTEMPTS or wants_login(error)):
                return
            if error:
                self._patience.failed()
            pause = min(BATCH_SECONDS * 2**failures, LONGEST_PAUSE)
            self._closing.wait(pause) if not closing else time.sleep(min(pause, BATCH_SECONDS))

    def _deliver(self) -> Exception | None:
        """Everything that MLflow takes; returns what is wrong with a job that it does not."""
        if self._remote is None:
            if "mlflow" not in sys.modules:  # seconds on a busy machine
                with self._patience.unhurried():
                    import mlflow  # noqa: F401
            self._remote = StageRun(self._target, self._mark, self._names, self.run_id, self._patience)
            self.run_id = self._remote.run_id
            if self._ended:  # to connect opens the run again
                self._jobs.append(self._ended)
        self._deliver_points(self._remote)
        return self._do_jobs(self._remote)

    def _do_jobs(self, remote: StageRun) -> Exception | None:
        """All jobs that can be done: a store of files that fails keeps nothing else, least of all the run's end."""
        kept: Exception | None = None
        for entry in list(self._jobs):
            if self._patience.over:
                break
            name, job = entry
            try:
                with self._patience.unhurried() if name.startswith(UPLOAD) else nullcontext():
                    self._guarded(name, partial(job, remote))
            except Exception as error:
                if is_outage(error) or _is_gone(error):
                    raise
                kept = kept or error
                continue
            if name.startswith(STATUS):
                self._ended = entry
            with self._lock:
                self._jobs.remove(entry)
        return kept

    def _deliver_points(self, remote: StageRun) -> None:
        batch = self._journal.waiting()
        if not batch:
            return
        try:
            remote.send([one.point for one in batch])
        except Exception as error:
            if not _is_refusal(error):
                raise
            for one in batch:  # find the ones that MLflow does not take, and deliver the rest
                if not self._guarded(f"point of step {one.point.step}", partial(remote.send, [one.point])):
                    self._refused.add((one.point.step, one.point.time))
                self._journal.delivered(one)
        self._journal.delivered(batch[-1])

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

    def _note(self, error: Exception | None, failures: int) -> None:
        """Say once that delivery fails, and why; of a stage that ends, the one who closes says it, in its place."""
        if error is None:
            self._reported, self._trouble, self._since = "", "", float("inf")
            return
        if isinstance(error, GaveUp):  # of ours, and says nothing of the server
            return
        self._since = min(self._since, time.monotonic())
        self._trouble = f"{_state(error)}: {explained(error)}"
        if failures == 1 and GONE in str(error):
            return  # the next attempt finds out what was deleted
        kind = str(error) if isinstance(error, Unusable) else _state(error)
        lasting = time.monotonic() - self._since >= QUIET_SECONDS
        if kind != self._reported and lasting and not self._closing.is_set():
            self._reported = kind
            logger.warning(
                "MLflow at %s %s; the stage goes on, its journal keeps the points until then",
                without_login(self._target.uri),
                self._trouble,
            )


def _state(error: Exception) -> str:
    return "does not answer" if is_outage(error) else "cannot be used"


def _is_refusal(error: Exception) -> bool:
    """Not an outage: the same call will fail again."""
    wrong = getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE" and not _is_gone(error)
    return isinstance(error, FileNotFoundError) or wrong


def _is_gone(error: Exception) -> bool:
    """The run or its experiment was deleted, and may be brought back."""
    return isinstance(error, Unusable) or GONE in str(error)


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return without_login(lines[0] if lines else type(error).__name__)


def _quiet() -> None:
    """Silence what mlflow's libraries tell about migrations and retries: `_note` says it once, in our words."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback at every attempt
    logging.getLogger("urllib3.connectionpool").addFilter(_from_elsewhere)


def _from_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD
