"""The data set's pictures as they stand in a report: small, on a white square."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from PIL import Image

from cmapkd_core.data.images import shown
from cmapkd_core.report.read.run import RunInputs

THUMBNAIL = 112  # pixels; shown at half of that and less, so that it is sharp on dense screens


def square_picture(inputs: RunInputs, key: str) -> Image.Image:
    """One picture, shrunk and centred.

    Raises:
        Missing: the report was given no shards.
        BadImageError: the stored picture cannot be read.
    """
    with shown(inputs.picture(key), inputs.recipe.data.max_pixels) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        paper = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
        paper.paste(image, ((THUMBNAIL - image.width) // 2, (THUMBNAIL - image.height) // 2))
    return paper


def data_url(image: Image.Image) -> str:
    """The image as a small JPEG in a data URL."""
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnails(inputs: RunInputs) -> Callable[[str], str]:
    """A function from an image's key to its data URL; each picture is read and shrunk once."""
    known: dict[str, str] = {}

    def show(key: str) -> str:
        if key not in known:
            known[key] = data_url(square_picture(inputs, key))
        return known[key]

    return show
