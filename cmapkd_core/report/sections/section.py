"""A section of a report as data: what is shown, in words, figures and tables, or what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core.report.figures.style import Drawing
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.tables.table import Table


@dataclass(frozen=True)
class Section:
    """What one heading of the page holds; the page, Markdown and the paper's folder show the same.

    Attributes:
        caption: what is seen and by what rule it was chosen; a figure's caption in a paper.
        missing: sentences on inputs that are not there. One without figures and tables has nothing else.
        wide: the panels are wide ones. table_first: the first table is above the figures.
        urls: every artifact that it was made from, name -> URL.
        content: what only the page shows, for its template.
    """

    caption: str = ""
    figures: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()
    wide: bool = False
    table_first: bool = False
    urls: Mapping[str, str] = field(default_factory=dict)
    content: Any = None

    @property
    def bare(self) -> bool:
        """True where it holds nothing but tables' sentences on what was not measured."""
        return not (self.missing or self.figures or self.content or any(made.rows for made in self.tables))


TableMaker = Callable[[Results, str, str], list[Table]]  # gets the table's key and title


@dataclass(frozen=True)
class Heading:
    """Where a section stands. number: "Figure 3", where the paper has it. template: of `content`, "" for none."""

    title: str
    make: Callable[[Any, Results], Section]  # from the inputs of a run or of a suite
    number: str = ""
    template: str = ""

    def text(self) -> str:
        """Number and title."""
        return f"{self.number}. {self.title}" if self.number else self.title


def table_section(make: TableMaker, key: str, title: str, sources: bool) -> Callable[[Any, Results], Section]:
    """What makes a section of one of the paper's tables; sources: whether it names the artifacts, as a run's does."""

    def section(inputs: Any, results: Results) -> Section:
        made = tuple(make(results, key, title))
        urls = {name: url for one in made for name, url in one.origins().items()}
        return Section(tables=made, urls=urls if sources else {})

    return section


def build_sections(headings: Mapping[str, Heading], inputs: Any, results: Results) -> dict[str, Section]:
    """Every section's data; one whose inputs are not there says so in place of all else."""
    built = {}
    for key, heading in headings.items():
        try:
            built[key] = heading.make(inputs, results)
        except Missing as reason:
            built[key] = Section(missing=(str(reason),))
    return built
