"""A section of a report as data: what is shown, in words, figures and tables, or what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core.report.inputs import Inputs, Missing
from cmapkd_core.report.papertable import PaperTable
from cmapkd_core.report.style import Drawing


@dataclass(frozen=True)
class Section:
    """What one heading of the page holds; the page, Markdown and the paper's folder show the same.

    Attributes:
        caption: what is seen and by what rule it was chosen; a figure's caption in a paper.
        missing: sentences on inputs that are not there. One without figures and tables has nothing else.
        wide: the panels are wide ones. tables_first: above the figures.
        urls: every artifact that it was made from, name -> URL.
        content: what only the page shows, for its template.
    """

    caption: str = ""
    figures: tuple[Drawing, ...] = ()
    tables: tuple[PaperTable, ...] = ()
    missing: tuple[str, ...] = ()
    wide: bool = False
    tables_first: bool = False
    urls: Mapping[str, str] = field(default_factory=dict)
    content: Any = None


@dataclass(frozen=True)
class Pages:
    """All that a report shows. title: of the paper's folder. table: for programs, its `text` for a terminal."""

    title: str
    html: str
    markdown: str
    table: Mapping[str, Any]
    headings: Mapping[str, Heading]
    sections: Mapping[str, Section]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Heading:
    """Where a section stands. number: "Figure 3", where the paper has it. template: of `content`, "" for none."""

    title: str
    make: Callable[..., Section]
    number: str = ""
    template: str = ""

    def text(self) -> str:
        """Number and title."""
        return f"{self.number}. {self.title}" if self.number else self.title


def origins(inputs: Inputs, *names: str) -> dict[str, str]:
    """Those of the named artifacts that were given, name -> URL."""
    return {name: inputs.source(name).url for name in names if inputs.source(name).url}


def build(headings: Mapping[str, Heading], *given: Any) -> dict[str, Section]:
    """Every section's data; one whose inputs are not there says so in place of all else."""
    built = {}
    for key, heading in headings.items():
        try:
            built[key] = heading.make(*given)
        except Missing as reason:
            built[key] = Section(missing=(str(reason),))
    return built
