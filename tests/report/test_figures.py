"""Figures: nothing that is written on one lies outside of it."""

import pytest

from cmapkd_core.report.figures import differences
from cmapkd_core.report.names import NAMES
from cmapkd_core.report.statistics import Interval
from cmapkd_core.report.style import PRINT, painted


@pytest.mark.parametrize("names", [["KD"], [label for label, _ in NAMES.values()]])
@pytest.mark.parametrize("unit", ["points", "ranks"])
def test_the_names_of_rows_and_the_title_lie_on_the_panel(names, unit):
    found = {name: Interval(0.1 * i, 0.5, 5) for i, name in enumerate(names)}
    with painted(differences("Geometric mean rank, better to the right", found, "full method", unit), PRINT) as figure:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        written = [*axes.get_yticklabels(), axes._left_title, axes.xaxis.label]
        for text in written:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.width, text.get_text()
