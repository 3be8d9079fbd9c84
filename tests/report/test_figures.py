"""Figures: nothing that is written on one lies outside of it."""

import pytest

from cmapkd_core.report.figures.comparisons import draw_differences
from cmapkd_core.report.figures.style import PRINT, painted
from cmapkd_core.report.read.suite_inputs import NAMES
from cmapkd_core.report.significance import Interval


@pytest.mark.parametrize("names", [["KD"], [label for label, _ in NAMES.values()]])
@pytest.mark.parametrize("unit", ["points", "ranks"])
def test_the_names_of_rows_and_the_title_lie_on_the_panel(names, unit):
    found = {name: Interval(0.1 * i, 0.5, 5) for i, name in enumerate(names)}
    with painted(
        draw_differences("Geometric mean rank, better to the right", found, "full method", unit), PRINT
    ) as figure:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        written = [*axes.get_yticklabels(), axes._left_title, axes.xaxis.label]
        for text in written:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.width, text.get_text()
