"""Stage gate: waits, without a GPU, until what other runs of a suite make for this one is there.

A suite is several runs of Kubeflow Pipelines (cmapkd/pipelines/runs.py). The first task of a run that reads what others
make is this one. It looks for their manifests, and at the Workflows of the runs that make them: where one has ended
without its artifacts, no waiting helps, and the gate fails with that run's name. It makes no artifact.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core import storage
from cmapkd_core.commands import submit
from cmapkd_core.errors import InputError
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import is_made
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.workflows import ENDED, workflow_state

SECONDS = 30.0  # between two looks
LOOKS = 4  # in a row that must find a run ended without its artifacts; a retry takes its Workflow away for a moment
AWAY = 60  # looks in a row at a store that does not answer: half an hour
AGAIN = 3600.0  # seconds after which what is waited for is said again


class Closed(Exception):
    """What is waited for will not come; the message names the run and the way out."""


@dataclass(frozen=True)
class Maker:
    """A run that is waited for. id: KFP's; "" where it is not known. urls: its artifacts that are wanted.

    old: the beginnings of digests of those that it replaces: what it makes has another one.
    """

    run: str
    id: str
    urls: tuple[str, ...]
    old: Mapping[str, str] = field(default_factory=dict)


def run(request: Request, *, waits: str, follows: str = "") -> str:
    """Wait until every artifact is complete, and until the runs before in the same lane have ended, well or not.

    Args:
        waits: JSON, a list of [run, KFP's id of it or "", [places below the root]]: artifacts, and who makes them;
            PLACE#DIGEST is one whose manifest shall have another digest.
        follows: JSON, as `waits`: of runs whose end is waited for, well or not.

    Raises:
        InputError: another JSON than that.
        SystemExit: with 1, a run that is waited for has ended without its artifacts.
    """
    makers = [_maker(request.root, entry) for entry in _read("waits", waits)]
    before = [_maker(request.root, entry) for entry in _read("follows", follows)]
    try:
        wait(GateWatch(makers, before, workflow_state))
    except Closed as closed:
        print(f"error: {closed}", file=sys.stderr)
        raise SystemExit(1) from None
    print("gate: all that it waited for is there", flush=True)
    return request.root


def _read(name: str, text: str) -> list[Any]:
    try:
        entries: list[Any] = json.loads(text or "[]")
        if all(len(entry) == 3 and isinstance(entry, list) for entry in entries):
            return entries
    except (ValueError, TypeError):
        pass
    raise InputError(f'--{name} {text}: [["run", "its id", ["place/of/artifact"]], ..], as JSON')


def _maker(root: str, entry: Any) -> Maker:
    name, run_id, places = entry
    old = {storage.join(root, place): digest for place, _, digest in (one.partition("#") for one in places)}
    return Maker(str(name), str(run_id), tuple(old), {url: digest for url, digest in old.items() if digest})


@dataclass
class GateWatch:
    """What is waited for, and what was seen of it so far. state: RUNS, ENDED or why neither is known, of a run's id."""

    makers: Sequence[Maker]
    before: Sequence[Maker]
    state: Callable[[str], str]
    complete: set[str] = field(default_factory=set)
    looks: Counter[str] = field(default_factory=Counter)  # in a row that found a run ended

    def lines(self) -> list[str]:
        """One look: what is still waited for.

        Raises:
            Closed: a maker ended without its artifacts; not before the runs before in the lane have ended, for the next
                run in it follows this one alone.
        """
        before = []
        for one in self.before:
            if self._missing(one):
                state = self._look(f"before: {one.run}", one.id)
                if self.looks[f"before: {one.run}"] < LOOKS:
                    before.append(f"run {one.run} before it, which {state}")
        lines = []
        for maker in self.makers:
            if missing := self._missing(maker):
                state = self._look(maker.run, maker.id)
                if self.looks[maker.run] >= LOOKS and not before:
                    raise Closed(_why(maker, missing))
                lines.append(f"{len(missing)} of {len(maker.urls)} artifacts of run {maker.run}, which {state}")
        return lines + before

    def _missing(self, maker: Maker) -> list[str]:
        """URLs without a manifest so far; those found once are not looked for again."""
        self.complete |= {
            url for url in maker.urls if url not in self.complete and is_made(url, maker.old.get(url, ""))
        }
        return [url for url in maker.urls if url not in self.complete]

    def _look(self, key: str, run_id: str) -> str:
        state = self.state(run_id)
        self.looks[key] = self.looks[key] + 1 if state == ENDED else 0
        return state


def wait(watch: GateWatch, pause: Callable[[float], None] = time.sleep) -> None:
    """Look until nothing is waited for; a store that is away for a while is waited for too.

    Raises:
        Closed: see GateWatch.lines.
        StorageError: the store was away for AWAY looks in a row.
    """
    began, printed, printed_at, away = time.monotonic(), "", 0.0, 0
    while True:
        try:
            lines, away = watch.lines(), 0
        except storage.StorageError as error:
            away += 1
            if away == AWAY:
                raise
            lines = [f"the store: {error}"]
        if not lines:
            return
        now = time.monotonic()
        if "; ".join(lines) != printed or now - printed_at > AGAIN:
            printed, printed_at = "; ".join(lines), now
            print(f"gate: since {_span(now - began)} waiting for {printed}", flush=True)
        pause(SECONDS)


def _why(maker: Maker, missing: Sequence[str]) -> str:
    return (
        f"run {maker.run} has ended without {', '.join(missing)}: look at its failed task, mend it, and then: "
        f"{submit('--retry', maker.run.rpartition('.')[0])} (which retries this run too)"
    )


def _span(seconds: float) -> str:
    hours, minutes = divmod(int(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


if __name__ == "__main__":
    sys.exit(main(run))
