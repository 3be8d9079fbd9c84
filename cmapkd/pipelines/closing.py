"""What a local run says when it is over: what came out, where the student lies and how it is used, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.exported import student_use
from cmapkd_core.stages.report_kinds import RUN, SUITE
from cmapkd_core.usage import PYTHON, StudentUse

KINDS = {kind.stage: kind for kind in (RUN, SUITE)}


def closing(outputs: Mapping[str, str], places: Mapping[str, str]) -> str:
    """The lines, of which those of Python and of the shell can be pasted as they stand.

    Args:
        outputs: artifact of every task that ran, by task, the last one last; where that is no report, it is named.
        places: where the artifacts of all of the run's tasks lie, once they are made.
    """
    if not outputs:
        return ""
    name, url = list(outputs.items())[-1]
    report = find(url)
    if report is None or report.manifest["stage"] not in KINDS:
        return f"{name}: {url}"
    use = student_use(places["export"]) if "export" in places else None
    return "\n".join(["", *_outcome(report), *(_used(use) if use else []), _page(report)])


def _outcome(report: Artifact) -> list[str]:
    table = json.loads(report.fetch(KINDS[report.manifest["stage"]].table).read_bytes())
    return [table["outcome"]["sentence"], ""] if "outcome" in table else []


def _page(report: Artifact) -> str:
    return f"The report: {report.file_url(KINDS[report.manifest['stage']].html)}"


def _used(use: StudentUse) -> list[str]:
    lines = [f"The student: {use.folder} (README.md there is its card)"]
    if use.copy:
        lines += ["It is brought here by", "", use.copy, ""]
    if use.reason:
        return [*lines, f"open_clip cannot have it: {use.reason}. {PYTHON} can, with ONNX Runtime:", "", use.onnx()]
    return [*lines, f"These lines in {PYTHON} use it:", "", use.python()]
