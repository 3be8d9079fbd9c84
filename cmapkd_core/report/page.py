"""The report as one HTML page that needs nothing else: no script, no font, no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from cmapkd_core.report import markdown, sections, table
from cmapkd_core.report.inputs import Inputs
from cmapkd_core.report.results import SIDES
from cmapkd_core.report.section import Pages, Section
from cmapkd_core.report.style import svg

TEMPLATE = "report.html.j2"


def pages(inputs: Inputs) -> Pages:
    """A run's report; the metrics are the main table's numbers as `student/retrieval/i2t/R@1`."""
    found = table.build(inputs)
    built = sections.build(inputs, found)
    return Pages(
        f"{inputs.run}: recipe {inputs.recipe.name}, ablation {inputs.ablation}, seed {inputs.recipe.seed}",
        render(inputs, found, built),
        markdown.render(inputs, built),
        table.as_json(found, inputs),
        sections.HEADINGS,
        built,
        {f"{table.SHORT[row.name]}/{key}": value for row in found.rows for key, value in row.values.items()},
    )


def render(inputs: Inputs, found: table.Table, built: Mapping[str, Section]) -> str:
    """The page as text."""
    return fill(
        TEMPLATE,
        run=inputs.run,
        recipe=inputs.recipe,
        ablation=inputs.ablation,
        table=found,
        headings=sections.HEADINGS,
        sections=built,
        sides=SIDES,
        sources=[source for source in inputs.sources.values() if source.url],
    )


def fill(template: str, **content: Any) -> str:
    """A template of this package with its content."""
    return environment().get_template(template).render(**content)


def environment() -> Environment:
    """Where templates of this package are found; whatever is no Markup is escaped."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
    )
    made.filters |= {"number": number, "svg": lambda drawing: Markup(svg(drawing)), "breakable": breakable}
    return made


def breakable(text: str) -> Markup:
    """The text, where a line may end after a comma or a sign of equality."""
    return Markup(re.sub(r"([,=])(?=\S)", r"\1<wbr>", str(escape(text))))


def number(value: Any, digits: int = 2) -> str:
    """A number at a fixed number of digits; a dash for one that is not known."""
    return "-" if value is None else f"{value:.{digits}f}"
