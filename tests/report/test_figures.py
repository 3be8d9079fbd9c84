"""Figures: nothing that is written on one lies outside of it."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cmapkd_core.report.figures.comparisons import draw_differences
from cmapkd_core.report.figures.style import PRINT, Drawing, Look, painted, panel
from cmapkd_core.report.read.suite_inputs import NAMES
from cmapkd_core.report.render.drawings import save
from cmapkd_core.report.significance import Interval


@pytest.mark.parametrize("names", [["KD"], [label for label, _ in NAMES.values()]])
@pytest.mark.parametrize("unit", ["points", "ranks"])
def test_the_names_of_rows_their_numbers_and_the_title_lie_on_the_panel(names, unit):
    found = {name: Interval(9.96 * i, 0.5, 5) for i, name in enumerate(names)}
    with painted(
        draw_differences("Geometric mean rank, better to the right", found, "full method", unit), PRINT
    ) as figure:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        written = [*axes.get_yticklabels(), *axes.texts, axes._left_title, axes.xaxis.label]
        for text in written:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.width, text.get_text()
        beside = {name.get_text(): number for name, number in zip(axes.get_yticklabels(), axes.texts, strict=True)}
        for i, name in enumerate(names):
            assert beside[name].get_text() == (f"+{9.96 * i:.1f}" if i else "0.0")
            assert beside[name].get_window_extent().x0 > axes.bbox.x1, "a number lies on the dots"


def test_print_has_the_letters_of_other_scripts_too(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """matplotlib warns of a letter that no font of the list has, and prints a box."""

    def paint(look: Look) -> Figure:
        figure, axes = panel(look, "Größe ж ↑", "λ ½", "ﬁ ⠿")  # the last two are not in the small file
        axes.plot([0, 1], [0, 1])
        return figure

    pdf, _ = save(Drawing("letters", "", paint), tmp_path, "letters")
    assert not [one for one in recwarn.list if "missing" in str(one.message)]
    fonts = {*re.findall(rb"/BaseFont /([\w+-]+)", pdf.read_bytes())}
    assert len(fonts) >= 2  # the small one and, for two letters, the large one
    assert b"/FontFile2" in pdf.read_bytes()  # embedded
