"""What the benchmark of a GPU found: lines of one table, printed as Markdown and written as JSON."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FAILED = "failed"


@dataclass(frozen=True)
class Line:
    """One line.

    section, what: where and what was looked at. found: ours. beside: a peer of the same run, or a bound. goal: what it
    was to be. holds: whether it is; None: it is a number that nothing is asked of.
    """

    section: str
    what: str
    found: str
    beside: str = ""
    goal: str = ""
    holds: bool | None = None


def lines_of(section: str, measure: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """Those of a measurement; what ends it is its last line, and the other measurements go on."""
    try:
        yield from measure()
    # Whatever goes wrong on a machine that has not been seen before is what the table is for.
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        yield Line(section, "ended early", f"{FAILED}: {message[:200]}", holds=False)
        traceback.print_exc()


def markdown(heading: str, lines: list[Line]) -> str:
    """One table below what it was run on."""
    rows = ["| | | found | beside | goal | |", "|---|---|---|---|---|---|"]
    section = ""
    for line in lines:
        shown = line.section if line.section != section else ""
        section = line.section
        held = "" if line.holds is None else "ok" if line.holds else "**no**"
        cells = (shown, line.what, line.found, line.beside, line.goal, held)
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join([heading, "", *rows])


def write(path: Path, machine: dict[str, object], lines: list[Line]) -> None:
    """The same as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "lines": [asdict(line) for line in lines]}, indent=1) + "\n")
