"""A figure's files: inline SVG that takes its colours and font from the page, PDF and PNG for print.

The page's colours are placeholders that `svg` replaces by CSS variables, so one SVG serves light and dark pages and
print.
"""

from __future__ import annotations

import hashlib
import re
from io import StringIO
from pathlib import Path

from cmapkd_core.report.figures.style import PAGE, PRINT, Drawing, painted

_VARIABLES = {PAGE.ink: "--ink", PAGE.muted: "--muted", PAGE.rule: "--rule", PAGE.blank: "--page"} | {
    colour: f"--c{i}" for i, colour in enumerate(PAGE.series, 1)
}
DPI = 300


def svg(drawing: Drawing) -> str:
    """The figure as an inline `<svg>` that scales with the page and names itself to screen readers."""
    out = StringIO()
    with painted(drawing, PAGE) as figure:
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    text = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit", text)
    text = _unique_ids(text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escape(drawing.description)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def save(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """The figure for print: NAME.pdf with its fonts embedded, NAME.png at 300 dpi on white."""
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    with painted(drawing, PRINT) as figure:
        figure.savefig(paths[0], metadata={"CreationDate": None})
        figure.savefig(paths[1], dpi=DPI, facecolor=PRINT.blank)
    return paths


def _unique_ids(text: str) -> str:
    """Prefix every id: many figures share one page. By content, so that the same run gives the same page."""
    prefix = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    return text.replace("url(#", f"url(#{prefix}")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
