"""What a local run says when it is over: where the student lies and how it is used, and the report.

What came out is not said again: the report's stage has just printed it.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd.pipelines.started import console_words
from cmapkd_core.commands import PYTHON
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.exported import student_use
from cmapkd_core.stages.report_kinds import RUN, SUITE
from cmapkd_core.stages.searched import search_command
from cmapkd_core.usage import StudentUse

KINDS = {kind.stage: kind for kind in (RUN, SUITE)}


def closing(outputs: Mapping[str, str], places: Mapping[str, str], data: str = "") -> str:
    """The lines, of which those of Python and of the shell can be pasted as they stand.

    Args:
        outputs: artifact of every task that ran, by task, the last one last; where that is no report, it is named.
        places: where the artifacts of all of the run's tasks lie, once they are made.
        data: as `--data` of the run.
    """
    if not outputs:
        return ""
    name, url = list(outputs.items())[-1]
    report = find(url)
    if report is None or report.manifest["stage"] not in KINDS:
        return f"{name}: {url}"
    use = student_use(places["export"]) if "export" in places else None
    usage = [*_used(use), *_searched(places, data)] if use else []
    return "\n".join(["", *usage, _page(report)])


def _page(report: Artifact) -> str:
    return f"The report: {report.file_url(KINDS[report.manifest['stage']].html)}"


def _used(use: StudentUse) -> list[str]:
    lines = [f"The student: {use.folder} (README.md there is its card)"]
    if use.copy:
        lines += ["It is brought here by", "", use.copy, ""]
    if use.reason:
        return [*lines, f"open_clip cannot have it: {use.reason}. {PYTHON} can, with ONNX Runtime:", "", use.onnx()]
    return [*lines, f"These lines in {PYTHON} use it:", "", use.python()]


def _searched(places: Mapping[str, str], data: str) -> list[str]:
    """The command that searches the run's own pictures with its student; none where the data cannot be read."""
    command = search_command(places["export"], places.get("prepare", ""), data, console_words())
    intro = "This finds pictures of the data by words; other words may stand at its end:"
    return [intro, "", command, ""] if command else []
