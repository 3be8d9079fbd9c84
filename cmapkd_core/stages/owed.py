"""What MLflow did not get of a stage in its time, and its delivery later.

A note (OWED) lies where the stage's journal does: beside the manifest of a finished one, whose artifact has the journal
and is not touched by it; in the work folder of one that failed. The note goes when MLflow has everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cmapkd_core import parallel, storage, temporary
from cmapkd_core.commands import submit
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import DamagedInput, InputError, again
from cmapkd_core.logins import without_login
from cmapkd_core.stages.artifact import WORK, Artifact, find
from cmapkd_core.tracking import FLUSH_SECONDS, STATUSES, Left, Tracker, chosen_server

if TYPE_CHECKING:
    from cmapkd_core.request import Request

logger = logging.getLogger(__name__)

JOURNAL, OWED = "journal.jsonl", "owed.json"
_SHAPE: dict[str, type] = {"run": str, "stage": str, "params": dict}
_MORE: dict[str, type] = dict.fromkeys(("server", "experiment", "parent", "status", "reason"), str)
LOOKS = 16  # places asked at a time


@dataclass(frozen=True)
class Owed:
    """A note. place: its URL. arguments: what `Tracker.open` takes, `status` and `reason`."""

    place: str
    arguments: dict[str, Any]
    journal: bytes


def owe(folder: str, tracker: Tracker, names: dict[str, Any], status: str = "FINISHED", reason: str = "") -> None:
    """Note below `folder` that MLflow is still to get how the stage ended; "" of a stage that reports to none."""
    if tracker.delivers:
        arguments = names | tracker.place | {"status": status, "reason": without_login(reason)}
        storage.write_json(storage.join(folder, OWED), arguments)


def settled(folder: str) -> None:
    """MLflow has everything, or another attempt tells it."""
    storage.delete(storage.join(folder, OWED))


def way_out(run: str, more: str = "") -> str:
    """What brings MLflow the rest, as a message ends; without a name a run cannot be asked for."""
    later = f"{submit('--deliver', run)} (with the run's --root, and --local)" if run else ""
    return " or ".join(filter(None, (later, more)))


def find_owed(url: str) -> Owed | None:
    """The note of the stage whose artifact is at `url`, or was to be there; None: MLflow has everything.

    Raises:
        InputError: the journal is gone or damaged, or the note is.
    """
    artifact = find(url)
    folder = url if artifact else storage.join(url, WORK)
    place = storage.join(folder, OWED)
    try:
        arguments = _note(place, artifact.manifest["stage"] if artifact else "")
        journal = (
            artifact.fetch(JOURNAL).read_bytes() if artifact else storage.read_bytes(storage.join(folder, JOURNAL))
        )
    except FileNotFoundError:
        return None
    return Owed(place, arguments, journal)


def _note(place: str, stage: str) -> dict[str, Any]:
    """A note as `owe` writes it. Raises DamagedInput of another, FileNotFoundError where there is none."""
    try:
        note = storage.read_object(place, _SHAPE, _MORE)
        if strange := [name for name in note if name not in _SHAPE | _MORE]:
            raise DamagedInput(f"{place} is damaged (it has the unknown {strange[0]!r})")
        if note.get("status", "FINISHED") not in STATUSES:
            raise DamagedInput(f"{place} is damaged (its status is {note['status']!r})")
    except DamagedInput as error:
        anew = again(stage) if stage else "start the stage again"
        raise DamagedInput(
            f"{error}, so it is not known what MLflow lacks: delete it where MLflow has enough, or have all told anew: "
            f"{anew}"
        ) from None
    return note


def deliver(uri: str, owed: Owed, seconds: float = FLUSH_SECONDS, hurried: bool = True) -> Left:
    """Tell MLflow what it lacks of a stage, each point once however often it is asked; what it lacks still.

    Args:
        uri: as `Tracker.open` takes it; "" delivers nothing.
        seconds, hurried: as `Tracker.close` takes them.
    """
    arguments = dict(owed.arguments)
    arguments.pop("server", None)
    status, reason = arguments.pop("status", "FINISHED"), arguments.pop("reason", "")
    with temporary.folder() as folder:
        journal = folder / JOURNAL
        journal.write_bytes(owed.journal)
        tracker = Tracker.open(uri, journal=journal, **arguments)
        left = tracker.close(status, reason, seconds, hurried)
    if tracker.delivers and not left.journal:
        storage.delete(owed.place)
    return left if tracker.delivers else Left("there is no MLflow to tell", journal=True)


def _of_others(owed: Owed, request: Request) -> bool:
    """Whether another run owes it to another MLflow; a run that has a new one tells that."""
    asked = without_login(chosen_server(request.tracking_uri))
    return bool(owed.arguments["run"] != (request.run or "unnamed") and owed.arguments.get("server", asked) != asked)


def deliver_owed(request: Request, artifacts: Iterable[Artifact]) -> None:
    """Deliver to MLflow what it did not get of finished stages; as far as it answers, the rest later."""
    if parallel.rank() > 0:
        return
    urls = [artifact.url for artifact in artifacts]
    noted = in_order(urls, lambda url: storage.exists(storage.join(url, OWED)), LOOKS)
    for url in [url for url, note in zip(urls, noted, strict=True) if note]:
        try:
            owed = find_owed(url)
        except InputError as error:
            logger.warning("MLflow cannot be told of %s: %s", url, error)
            continue
        if owed is None or _of_others(owed, request):
            continue
        left = deliver(request.tracking_uri, owed)
        if left.journal:
            if left.text and request.tracking_uri:
                logger.warning("%s; later %s does", left.text, way_out(owed.arguments["run"], "the same command"))
            return  # what waited for one would wait for the others
        if left.text:
            logger.warning("%s", left.text)
