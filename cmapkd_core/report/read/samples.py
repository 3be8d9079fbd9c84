"""What a report shows of single samples: their pictures, level weights with the teacher's embeddings, pooled levels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cmapkd_core.config import ALL_LEVELS, VISION_LEVELS
from cmapkd_core.data.images import shown
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.run_inputs import RunInputs

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


WEIGHTS_FILE, STATISTICS_FILE = "weights.parquet", "sample_stats.parquet"  # both in one artifact
MOST_SAMPLES = 5000  # the first of a data set, in the table's shuffled order: neighbours are looked for among them


@dataclass(frozen=True)
class Samples:
    """Training samples with their weights: keys, captions by sample, weights [n,8], teacher embeddings [n,E]."""

    keys: list[str]
    captions: list[list[str]]
    names: tuple[str, ...]
    weights: np.ndarray
    difficulty: np.ndarray
    image: np.ndarray
    text: np.ndarray


def read_samples(inputs: RunInputs) -> Samples:
    """Weights and statistics of the training samples, joined by key with their captions.

    Raises:
        Missing: one of the tables is not there.
    """
    source = inputs.first(WEIGHTS_FILE, "joint", "alsn")
    weights = source.head(WEIGHTS_FILE, MOST_SAMPLES)
    statistics = source.head(STATISTICS_FILE, MOST_SAMPLES, ["key", "teacher_image", "teacher_text"])
    captions = captions_of(inputs, "train", weights["key"])
    places = {key: i for i, key in enumerate(statistics["key"].to_pylist())}
    kept = [i for i, key in enumerate(weights["key"].to_pylist()) if key in places and key in captions]
    chosen = weights.take(kept)
    keys = chosen["key"].to_pylist()
    rows = statistics.take([places[key] for key in keys])
    names = tuple(name for name in ALL_LEVELS if f"w_{name}" in weights.column_names)
    return Samples(
        keys,
        [captions[key] for key in keys],
        names,
        np.stack([chosen[f"w_{name}"].to_numpy() for name in names], axis=1).astype(float),
        chosen["difficulty"].to_numpy().astype(float),
        unit(rows["teacher_image"]),
        unit(rows["teacher_text"]),
    )


def captions_of(inputs: RunInputs, split: str, keys: pa.ChunkedArray) -> Mapping[str, list[str]]:
    """Captions of these samples by key, from the shards' index."""
    which = (pc.field("split") == split) & pc.field("key").isin(keys.combine_chunks())
    rows = inputs.source("shards").rows("index.parquet", ["split", "key", "captions"], which)
    return dict(zip(rows["key"].to_pylist(), rows["captions"].to_pylist(), strict=True))


def unit(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists as rows of length 1, [n,E]."""
    rows: np.ndarray = np.stack(column.to_numpy()).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


MODELS = ("teacher", "before", "after")


def read_levels(inputs: RunInputs) -> pa.Table:
    """The table of stage levels.

    Raises:
        Missing: it was not given, or the method has no levels.
    """
    source = inputs.source("levels")
    if "levels.json" in source.files and "missing" in (details := source.json("levels.json")):
        raise Missing(str(details["missing"]))
    return source.parquet("levels.parquet")


def levels_in(table: pa.Table) -> tuple[str, ...]:
    """Image levels that the table has, finest first."""
    return tuple(name for name in VISION_LEVELS if f"teacher_{name}" in table.column_names)
