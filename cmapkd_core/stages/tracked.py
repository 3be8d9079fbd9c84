"""A stage in MLflow: opened from what an earlier attempt left, and ended as the stage ends, whichever way that is.

What MLflow could not be told of a finished stage is written beside its manifest (OWED); the same command again, which
finds the stage done, delivers it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd_core import parallel, storage, temporary
from cmapkd_core.engine.runtime import Interrupted
from cmapkd_core.errors import InputError
from cmapkd_core.fields import flatten
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.tracking import FLUSH_SECONDS, Tracker
from cmapkd_core.tracking.journal import Journal

if TYPE_CHECKING:
    from cmapkd_core.stages.common import Request

logger = logging.getLogger(__name__)

JOURNAL, OWED = "journal.jsonl", "owed.json"
STOPPED_SECONDS = 10.0  # a TrainJob's preempted pod has seconds left; what MLflow lacks then goes out with the retry


def open_tracker(request: Request, stage: str, workdir: str, journal: Path) -> Tracker:
    """Rank 0 delivers to MLflow, from an earlier attempt's journal on; the others keep one that nobody reads."""
    if parallel.rank() > 0:
        return Tracker(Journal(journal), None)
    if storage.exists(storage.join(workdir, JOURNAL)):
        journal.write_bytes(storage.read_bytes(storage.join(workdir, JOURNAL)))
    return Tracker.open(request.tracking_uri, journal=journal, **_names(request, stage))


def _names(request: Request, stage: str) -> dict[str, Any]:
    """Run, stage and parameters as MLflow gets them."""
    row = request.ablation if request.ablation not in ("", "none") else ""
    seed = f"seed {request.seed}" if request.seed else ""
    notes = ", ".join(note for note in (request.own_source, row, seed) if note and note not in stage.split())
    name = f"{stage} ({notes})" if notes else stage  # the stages of a suite may all have one parent run
    params = {field: str(value) for field, value in flatten(request.resolved()).items()}
    return {"run": request.run or "unnamed", "stage": name, "params": params}


def finished(tracker: Tracker, request: Request, stage: str, url: str) -> None:
    """End the run of a stage whose artifact stands; what MLflow lacks is told, and noted beside the manifest."""
    left = tracker.close("FINISHED")
    place = storage.join(url, OWED)
    if left.journal:
        storage.write_json(place, _names(request, stage))
    elif parallel.rank() == 0 and storage.exists(place):  # of an earlier result that this one replaces
        storage.delete(place)
    _tell(left.text, left.journal, left.jobs)


def _tell(text: str, journal: bool, jobs: tuple[str, ...]) -> None:
    """A warning for a stage that is well, with what brings MLflow the rest."""
    ways = ["the same command again delivers what its journal has"] * journal
    if jobs:
        ways.append(f"with --redo yes (submit.py: --run RUN --only STAGE) it delivers {', '.join(jobs)} too")
    if text:
        logger.warning("%s", "; ".join([text, *ways]))


def failed(tracker: Tracker, error: BaseException, journal: Path, workdir: str) -> None:
    """End the run of a stage that fails or is stopped, as that, after its journal is safe.

    What goes wrong here is a note on the stage's own error, which stays the one that is told.
    """
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    if parallel.rank() == 0 and (tracker.delivers or not stopped):  # of a stop nothing stays that nobody needs
        try:
            storage.put(journal, storage.join(workdir, JOURNAL))
        except (OSError, storage.StorageError) as second:
            error.add_note(f"its journal could not be kept for the next attempt: {second}")
    seconds = STOPPED_SECONDS if stopped else FLUSH_SECONDS
    left = tracker.close("KILLED" if stopped else "FAILED", reason(error), seconds)
    if left.text:
        error.add_note(f"{left.text}; the next attempt delivers it")


def overtaken(tracker: Tracker, text: str) -> None:
    """End the run of a stage whose result is another process's; what it did itself is no result of the run."""
    left = tracker.close("KILLED", text, STOPPED_SECONDS)
    if left.text:
        logger.warning("%s", left.text)


def reason(error: BaseException) -> str:
    """What MLflow shows of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    return str(error) if isinstance(error, InputError | Interrupted) else f"{type(error).__name__}: {error}"


@contextmanager
def told_to_mlflow(request: Request, stage: str) -> Iterator[None]:
    """What fails before a stage has a tracker of its own, such as an input that is missing, is told to MLflow too."""
    try:
        yield
    except (Exception, Interrupted) as error:
        if parallel.rank() == 0:
            with temporary.folder() as folder:
                tracker = Tracker.open(request.tracking_uri, journal=folder / JOURNAL, **_names(request, stage))
                tracker.close("KILLED" if isinstance(error, Interrupted) else "FAILED", reason(error))
        raise


def deliver_owed(request: Request, found: Artifact) -> None:
    """Tell MLflow what it could not be told of a finished stage in its time."""
    place = storage.join(found.url, OWED)
    if not storage.exists(place):
        return
    with temporary.folder() as folder:
        journal = folder / JOURNAL
        journal.write_bytes(found.fetch(JOURNAL).read_bytes())
        tracker = Tracker.open(request.tracking_uri, journal=journal, **storage.read_json(place))
        if not tracker.delivers:
            return
        left = tracker.close("FINISHED")
    if not left.journal:
        storage.delete(place)
    _tell(left.text, left.journal, left.jobs)
