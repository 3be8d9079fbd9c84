"""The two kinds of a report, of a run and of a suite, and what stage report is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cmapkd_core.report.read.run_inputs import check_run_names
from cmapkd_core.report.read.suite_inputs import FORMS, check_suite_names
from cmapkd_core.request import Request


@dataclass(frozen=True)
class Kind:
    """A kind of report.

    stage: what manifests and MLflow call it. html, markdown, table: its files. check: raises InputError for names of
    artifacts that say nothing of it. whole: an artifact that is not complete is an error; else it is named as missing.
    """

    stage: str
    html: str
    markdown: str
    table: str
    check: Callable[[Iterable[str]], None]
    whole: bool


RUN = Kind(
    *("report", "report.html", "report.md", "table.json", check_run_names),
    whole=True,
)
SUITE = Kind(
    *("suite_report", "suite.html", "suite.md", "suite.json", check_suite_names),
    whole=False,
)


@dataclass(frozen=True)
class ReportArgs:
    """What stage report is given; see there."""

    request: Request
    artifacts: Mapping[str, str]
    suite: str = ""
    expectations: bool = False
    executions: int = 0
    naive: int = 0

    @property
    def urls(self) -> dict[str, str]:
        """The artifacts by what manifests call them: of a suite `evaluation ROW/SEED`, `more TASK/ROW/SEED`."""
        return {self._called(name): url for name, url in self.artifacts.items()}

    def _called(self, name: str) -> str:
        if not self.suite:
            return name
        return name.replace("/", " ", 1) if name.partition("/")[0] in FORMS else f"more {name}"

    @property
    def cells(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """A suite's rows and seeds: those of the evaluations, in their order."""
        cells = [name.split("/")[1:] for name in self.artifacts if name.startswith("evaluation/")]
        rows, seeds = (tuple(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))
        return rows, seeds
