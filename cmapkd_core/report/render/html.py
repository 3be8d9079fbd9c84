"""A report as one HTML page that needs nothing else: no script, no font, no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from cmapkd_core.markup import without_turns
from cmapkd_core.report.render.drawings import svg
from cmapkd_core.report.sections.lead import Lead
from cmapkd_core.report.sections.left_out import LeftOut
from cmapkd_core.report.sections.section import Heading, Section


def page(
    template: str,
    headings: Mapping[str, Heading],
    sections: Mapping[str, Section],
    lead: Lead,
    rest: LeftOut,
    **content: Any,
) -> str:
    """The page as text.

    Args:
        template: run.html.j2 of a run, suite.html.j2 of a suite. lead: what stands first. rest: what it has not.
        content: what it shows beside the sections.
    """
    shown = {key: heading for key, heading in headings.items() if not sections[key].bare}
    made = environment().get_template(template)
    return made.render(headings=shown, sections=sections, lead=lead, rest=rest, **content)


def _shown(value: Any) -> Any:
    """A text of others as it may stand in the page; what is Markup is ours."""
    return without_turns(value) if type(value) is str else value


def environment() -> Environment:
    """Where templates of this package are found; whatever is no Markup is escaped."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
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
