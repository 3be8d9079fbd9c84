"""The report as one HTML page that needs nothing else: no script, no font, no file."""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from cmapkd_core.config import TEXT_LEVELS
from cmapkd_core.report.inputs import Inputs
from cmapkd_core.report.sections import SIDES, Section
from cmapkd_core.report.table import COLUMNS, Table

TEMPLATE = "report.html.j2"


def render(inputs: Inputs, table: Table, sections: dict[str, Section]) -> str:
    """The page as text."""
    return fill(
        TEMPLATE,
        run=inputs.run,
        recipe=inputs.recipe,
        ablation=inputs.ablation,
        terms={n: w for n, w in dataclasses.asdict(inputs.recipe.method.weights).items() if w},
        table=table,
        columns=table.columns(),
        heads=heads(table),
        sides=SIDES,
        text_levels=TEXT_LEVELS,
        sources=[source for source in inputs.sources.values() if source.url],
        **{name: drawn(section) for name, section in sections.items()},
    )


def fill(template: str, **content: Any) -> str:
    """A template of this package with its content; whatever is no Markup is escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"number": number, "signed": lambda value: f"{value:+.1f}"}
    return environment.get_template(template).render(**content)


def heads(table: Table) -> list[tuple[str, int]]:
    """Group headings of the main table and how many columns each spans."""
    columns = table.columns()
    groups = dict.fromkeys(column.group for column in COLUMNS)
    spans = ((group, sum(column.group == group for column in columns)) for group in groups)
    return [(group, span) for group, span in spans if span]


def number(value: Any, digits: int = 2) -> str:
    """A number at a fixed number of digits; a dash for one that is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def drawn(section: Section) -> Section:
    """The section with its SVG marked as markup; every other string is escaped."""
    return section | {"figures": [Markup(figure) for figure in section.get("figures", ())]}
