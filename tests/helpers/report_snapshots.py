"""A whole report as plain data: its page's lines, its tables for programs, its figures' plotted numbers, its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ENDS = "h1|h2|h3|p|tr|li|figure|caption|title|div|dt|dd"


def lines_of(html: str) -> list[str]:
    """The page's lines, a block each, without its style and the bytes of its pictures."""
    text = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    text = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "data:image/jpeg", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(rf"(</(?:{ENDS})>)\s*", r"\1\n", text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def plotted(figure: Figure, exact: bool = True) -> list[dict[str, Any]]:
    """What stands on each of the figure's axes; exact: False gives how many points, of what differs by machine."""
    return [_axes(axes, exact) for axes in figure.axes]


def _axes(axes: Axes, exact: bool) -> dict[str, Any]:
    texts = [text.get_text() for text in axes.texts]
    ticks = [[label.get_text() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis)]
    lines = [[_values(data, exact) for data in line.get_data()] for line in axes.lines]
    areas = [_values(np.vstack([path.vertices for path in area.get_paths()]), exact) for area in axes.collections]
    patches = [_values(patch.get_path().vertices, exact) for patch in axes.patches]
    found = {
        "words": [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel(), *texts],
        "ticks": ticks,
        "limits": _values(np.array([*axes.get_xlim(), *axes.get_ylim()]), exact),
        "lines": lines,
        "areas": areas,
        "patches": sorted(map(str, patches)),
        "pictures": [list(image.get_array().shape) for image in axes.images],
    }
    return {name: value for name, value in found.items() if value}


def _values(data: Any, exact: bool) -> Any:
    values = np.asarray(data, dtype=float)
    return [float(f"{value:.5g}") for value in values.ravel()] if exact else list(values.shape)


def folder_of(folder: Path) -> dict[str, Any]:
    """Every file below a folder: JSON as it is, text as lines, of others the name alone."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = json.loads(path.read_text())
        else:
            found[name] = path.read_text().splitlines() if path.suffix in (".tex", ".txt") else ""
    return found


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar with its place, such as `table/rows/0/label`."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in items:
            yield from leaves(one, f"{place}/{name}")
    else:
        yield place, value


def differences(expected: Any, found: Any) -> list[str]:
    """Where two snapshots differ; numbers within 1e-4 of each other are the same."""
    one, other = dict(leaves(expected)), dict(leaves(found))
    said = [f"{name}: gone" for name in one if name not in other]
    said += [f"{name}: new: {value}" for name, value in other.items() if name not in one]
    for name in (name for name in one if name in other):
        if not _same(one[name], other[name]):
            said.append(f"{name}:\n    was {one[name]}\n    is  {other[name]}")
    return said


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return bool(np.isclose(one, other, rtol=1e-4, atol=1e-6))
    return bool(one == other)
