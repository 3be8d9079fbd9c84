"""Pairs of pictures side by side on one HTML page, so that a person can judge them. Nothing of it is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from cmapkd_core.data.look_alikes import Pair, Pictures, Reader

SHOWN = 50  # pairs of each kind
_SIDE = 160  # pixels
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
.pair { border: 1px solid #8886; border-radius: .5rem; padding: .75rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1.25rem 1rem; }
.pictures ul { list-style: none; margin: .25rem 0; padding: 0; font-size: .95rem; }
.pictures li { line-height: 1.35; margin: .3rem 0; }
small { opacity: .7; }
.two { display: flex; gap: .75rem; }
figure { margin: 0; flex: 1; min-width: 0; }
img { width: 100%; height: 10rem; object-fit: contain; background: #8882; }
figcaption, p.why { font-size: .85rem; overflow-wrap: anywhere; margin: .25rem 0 0; }
code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Section:
    """Pairs under a heading and a text; train, held: where their pictures lie, as of `look_alikes.compared`."""

    heading: str
    text: str
    pairs: Sequence[Pair]
    train: Pictures
    held: Mapping[str, Pictures]


def sheet(sections: Sequence[Section]) -> str:
    """The page: of each section the first SHOWN pairs."""
    body = "".join(part for section in sections if section.pairs for part in _section(section))
    return whole_page("Pictures side by side", body)


def whole_page(title: str, body: str) -> str:
    """A page under a heading, in the look of these sheets."""
    head = f'<meta charset=utf-8><meta name=viewport content="width=device-width"><title>{escape(title)}</title>'
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"


def _section(section: Section) -> Iterator[str]:
    count, shown = len(section.pairs), section.pairs[:SHOWN]
    train_reader = section.train.reader(pair.train for pair in shown)
    held_out_readers = {
        data: pictures.reader(pair.held_out for pair in shown if pair.data == data)
        for data, pictures in section.held.items()
    }
    many = f"{count} pairs" + (f", of which the first {SHOWN} are here" if count > SHOWN else "")
    yield f"<h2>{escape(section.heading)}: {many if count > 1 else 'a pair'}</h2><p>{escape(section.text)}</p>"
    yield "<div class=pairs>"
    for pair in shown:
        where = f"{pair.split} of {pair.data}" if pair.data else pair.split
        two = _figure(train_reader, pair.train, "train") + _figure(held_out_readers[pair.data], pair.held_out, where)
        yield f"<div class=pair><div class=two>{two}</div><p class=why>{escape('; '.join(pair.reasons))}</p></div>"
    yield "</div>"


def _figure(read: Reader, key: str, where: str) -> str:
    name = escape(f"{where}: {key}")
    with read.shown(key) as image:
        picture = f'<img src="{inlined(image)}" alt="{name}">' if image is not None else "<p>gone</p>"
    return f"<figure>{picture}<figcaption>{name}</figcaption></figure>"


def inlined(image: Image.Image) -> str:
    """A small JPEG of a picture as a data URL."""
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
