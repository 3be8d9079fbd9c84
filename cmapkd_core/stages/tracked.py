"""A stage in MLflow: opened from what an earlier attempt left, and ended as the stage ends, whichever way that is.

What MLflow did not get is noted (owed.py), and delivered later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd_core import parallel, storage, temporary
from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.fields import flatten
from cmapkd_core.stages.artifact import find
from cmapkd_core.stages.owed import JOURNAL, owe, settled, way_out
from cmapkd_core.tracking import FLUSH_SECONDS, Left, Tracker
from cmapkd_core.tracking.journal import Journal

if TYPE_CHECKING:
    from cmapkd_core.request import Request

logger = logging.getLogger(__name__)

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


def committing(tracker: Tracker, request: Request, stage: str, url: str) -> None:
    """Note, before a stage is complete, that MLflow is owed its end: a process that is killed then does not forget it.

    Not where another process has completed it: that one has its own.
    """
    if find(url) is None:
        owe(url, tracker, _names(request, stage))


def finished(tracker: Tracker, request: Request, url: str) -> None:
    """End the run of a stage whose artifact stands; what MLflow lacks is said, and stays noted beside the manifest."""
    left = tracker.close("FINISHED")
    if parallel.rank() == 0 and not left.journal:
        try:
            settled(url)
        except (OSError, storage.StorageError) as error:  # the artifact stands; what is sent again counts once
            logger.warning("that MLflow has everything could not be noted: %s", error)
    _tell(left, request.run)


def _tell(left: Left, run: str) -> None:
    """A warning for a stage that is well, with what brings MLflow the rest."""
    ways = [f"{way_out(run, 'the same command again')} delivers what its journal has, the run's report tries it too"]
    ways = ways if left.journal else []
    if left.jobs:
        ways.append(f"with --redo yes (of a run: --run RUN --only STAGE) it delivers {', '.join(left.jobs)} too")
    if left.text:
        logger.warning("%s", "; ".join([left.text, *ways]))


def failed(tracker: Tracker, request: Request, stage: str, error: BaseException, journal: Path, workdir: str) -> None:
    """End the run of a stage that fails or is stopped, as that, after its journal is safe.

    What goes wrong here is a note on the stage's own error, which stays the one that is shown.
    """
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    status, later = "KILLED" if stopped else "FAILED", ""
    if parallel.rank() == 0 and (tracker.delivers or not stopped):  # of a stop nothing stays that nobody needs
        try:
            storage.put(journal, storage.join(workdir, JOURNAL))
            owe(workdir, tracker, _names(request, stage), status, reason(error))
            later = way_out(request.run)
        except (OSError, storage.StorageError) as second:
            error.add_note(f"its journal could not be kept for the next attempt: {second}")
    left = tracker.close(status, reason(error), STOPPED_SECONDS if stopped else FLUSH_SECONDS)
    if left.text:
        error.add_note(f"{left.text}; " + " or ".join(filter(None, ("the next attempt", later))) + " delivers it")
    if later and not left.journal:
        _settle(workdir, error)


def _settle(workdir: str, error: BaseException) -> None:
    try:
        settled(workdir)
    except (OSError, storage.StorageError) as second:
        error.add_note(f"that MLflow has everything could not be noted: {second}")


def overtaken(tracker: Tracker, url: str) -> None:
    """End the run of a stage whose result is another process's; what it did itself is no result of the run."""
    left = tracker.close("KILLED", f"another process finished it first: {url}", STOPPED_SECONDS)
    if left.text:
        logger.warning("%s", left.text)


def reason(error: BaseException) -> str:
    """What MLflow shows of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    return str(error) if isinstance(error, InputError | Interrupted) else f"{type(error).__name__}: {error}"


@contextmanager
def reported_to_mlflow(request: Request, stage: str) -> Iterator[None]:
    """What fails before a stage has a tracker of its own, such as a missing input, is reported to MLflow too."""
    try:
        yield
    except (Exception, Interrupted) as error:
        if parallel.rank() == 0:
            try:
                with temporary.folder() as folder:
                    tracker = Tracker.open(request.tracking_uri, journal=folder / JOURNAL, **_names(request, stage))
                    tracker.close("KILLED" if isinstance(error, Interrupted) else "FAILED", reason(error))
            except Exception as second:
                error.add_note(f"MLflow could not be told: {second}")
        raise
