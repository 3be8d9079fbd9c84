"""Bad input is found once: a retry of Kubeflow Pipelines says at once what the attempt before it found.

It retries whatever failed, and its launcher's exit code does not say why. So a stage whose input is bad leaves a record
beside its checkpoints, and the next attempt of the same chain of retries repeats it, before data and models are loaded.
A chain begins anew with `submit.py --retry`, the UI's button or a new run, and its first attempt forgets the record:
what was mended outside, such as data that are there since, is tried without another word. Where nobody counts attempts
(parallel.attempts) nothing is kept.

Never kept is what the same input may survive: the table of exits.py says which ends last, and OutsideError (storage, a
hub) never does; nor what is no InputError at all.
"""

from __future__ import annotations

from typing import Any

from cmapkd_core import __version__, parallel, storage
from cmapkd_core.commands import submit
from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.exits import lasts
from cmapkd_core.fingerprints import fingerprint
from cmapkd_core.stages.commit import commit

RECORD = "refused.json"


class Refusals:
    """What earlier attempts of a stage found bad."""

    def __init__(self, workdir: str, stage: str, asked: dict[str, Any]) -> None:
        """`asked`: the request, and the digests of what the stage reads; anything else there is tried."""
        self.url, self.stage, self.run = storage.join(workdir, RECORD), stage, asked.get("run") or "RUN"
        self.key = {"asked": fingerprint(asked), "code": __version__, "commit": commit()}
        self.attempts = parallel.attempts()

    def repeat(self) -> None:
        """Raises InputError on all ranks where the attempt before this one found bad input."""
        if self.attempts is None:
            return
        if message := parallel.broadcast(self._recorded() if parallel.rank() == 0 else None):
            raise InputError(
                f"{self.stage}: the attempt before this one failed with the same input and code, so this one does not"
                f" try: {message}; mend it, then {submit('--retry', self.run)} (or Retry in the UI) tries again"
            )

    def _recorded(self) -> str:
        if not self.attempts:
            storage.delete(self.url)
            return ""
        try:
            kept = storage.read_object(self.url, {"text": str, "key": dict})
        except (FileNotFoundError, DamagedInput):  # a damaged one says nothing of the attempt before
            return ""
        return str(kept["text"]) if kept["key"] == self.key else ""

    def keep(self, error: InputError) -> None:
        """Leave it for the next attempt, if that would find the same."""
        if self.attempts is None or not lasts(error) or parallel.rank() > 0:
            return
        try:
            storage.write_json(self.url, {"text": str(error), "key": self.key})
        except (OSError, storage.StorageError) as second:
            error.add_note(f"the next attempt will find it anew: {second}")
