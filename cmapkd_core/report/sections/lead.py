"""What stands first in a report: what came out, what of the data was left aside, and how the student is used."""

from __future__ import annotations

from dataclasses import dataclass

from cmapkd_core.report.sections.outcome import Outcome
from cmapkd_core.usage import StudentUse


@dataclass(frozen=True)
class Lead:
    """set_aside: a sentence on rows that could not be used, "" where there are none. export: what makes the student."""

    outcome: Outcome
    set_aside: str = ""
    use: StudentUse | None = None
    export: str = ""
