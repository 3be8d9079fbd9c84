import io

import numpy as np
import pytest
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import Row
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.sources.scenes import COLOURS
from cmapkd_core.errors import InputError


def scenes(size: int) -> list[Row]:
    rows = list(open_rows(DataConfig(source="scenes", size=size)))
    assert all(isinstance(row, Row) for row in rows)
    return [row for row in rows if isinstance(row, Row)]


def test_scenes_are_always_the_same() -> None:
    assert scenes(20) == scenes(20) == scenes(40)[:20]


def centre(image: np.ndarray, colour: str) -> tuple[float, float]:
    """Mean x and y of the pixels of a colour."""
    y, x = np.nonzero((image == np.array(COLOURS[colour])).all(axis=-1))
    assert len(x) > 50
    return float(x.mean()), float(y.mean())


def test_captions_are_true() -> None:
    checked = 0
    for row in scenes(300):
        image = np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB"))
        words = row.captions[0].split()
        assert " ".join(words[1:3]) == row.class_name
        first, last = words[1], words[-2]
        centre(image, first)
        if len(words) == 3 or first == last:
            continue
        (x1, y1), (x2, y2) = centre(image, first), centre(image, last)
        assert (x1 < x2 - 10) if "left" in words else (y1 < y2 - 10)
        assert row.captions[1].startswith(f"a {last}")
        checked += 1
    assert checked > 100


def test_scenes_of_equal_content_share_a_group() -> None:
    rows = scenes(400)
    groups = {row.group for row in rows}
    assert len(groups) < 400
    assert all(row.group == row.captions[0] for row in rows)


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'scenes'"):
        open_rows(DataConfig(source="scene"))
