"""Source glyphs on a small part of its packages (glyphs/README.md)."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import stat
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from docs_tools import tool
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import LazyRow, Row
from cmapkd_core.data.sources.glyph_names import concept, icon_caption, split_of_concept, without_others
from cmapkd_core.data.sources.glyphs import glyph_rows
from cmapkd_core.errors import InputError

SMALL = Path(__file__).parent / "glyphs"


def rows_of(url: str) -> dict[str, LazyRow]:
    found = {}
    for item in glyph_rows(DataConfig(source="glyphs", url=url)):
        assert isinstance(item, LazyRow)
        found[item.key] = item
    return found


@pytest.fixture(scope="module")
def rows() -> dict[str, LazyRow]:
    return rows_of(str(SMALL))


def test_a_style_has_each_emoji_once_and_none_of_a_skin_tone(rows: dict[str, LazyRow]) -> None:
    styles = Counter(key.partition("/")[0] for key in rows)
    emoji = dict.fromkeys(("twemoji", "noto", "noto-v1"), 60)
    one_colour = {"fluent-emoji-high-contrast": 59}  # without the black flag
    icons = {"game-icons": 40, "glyphs-poly": 30, "fluent-color": 2}  # of 32 and 8 files with sizes and second drawings
    assert styles == emoji | one_colour | icons
    assert not [key for key in rows if "skin-tone" in key]


def test_an_emoji_is_found_by_code_points_and_by_name(rows: dict[str, LazyRow]) -> None:
    by_points, by_name = rows["twemoji/bear"].row, rows["noto-v1/bear"].row  # whose set says no code points
    assert by_points.captions == by_name.captions
    assert by_points.captions[0] == "bear"
    assert by_points.class_name == "mammal"
    assert by_points.licence == "Twitter Emoji, Twitter, CC-BY-4.0"


def test_all_styles_of_a_concept_are_in_one_split(rows: dict[str, LazyRow]) -> None:
    """Whose split is that of anyone who takes the digest of its words."""
    splits: dict[str, set[str]] = {}
    for item in rows.values():
        splits.setdefault(item.row.group, set()).add(item.row.split)
    assert all(len(one) == 1 for one in splits.values())
    share = int(hashlib.sha256(b"blue circle").hexdigest()[:8], 16) / 2**32
    assert rows["twemoji/blue-circle"].row.group == "glyph blue circle"
    assert rows["twemoji/blue-circle"].row.split == ("test" if share < 0.15 else "val" if share < 0.2 else "train")
    assert {item.row.split for item in rows.values()} == {"train", "val", "test"}


def test_a_drawing_is_a_square_on_white(rows: dict[str, LazyRow]) -> None:
    for key in ("twemoji/blue-circle", "fluent-emoji-high-contrast/balloon", "glyphs-poly/bolt"):
        row = rows[key].load()
        assert isinstance(row, Row)
        pixels = np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB"))
        assert pixels.shape == (96, 96, 3)
        assert (pixels[0, 0] == 255).all(), key  # no transparency that would turn black
        assert (pixels < 128).any(), key  # what has no colour of its own is black
    blue = rows["twemoji/blue-circle"].load()
    assert isinstance(blue, Row)
    red, _, most = np.asarray(Image.open(io.BytesIO(blue.image)).convert("RGB"))[48, 48]
    assert most > red + 50


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("bell-ring-outline-24", "bell ring"),
        ("casino-777-slot-machine", "casino slot machine"),
        ("anchor-two", "anchor"),
        ("outline", "outline"),  # a name is never empty for its style
        ("3d-glasses", "3d glasses"),
        ("7", ""),
        ("a", ""),
    ],
)
def test_an_icon_is_called_without_numbers_and_styles(name: str, caption: str) -> None:
    assert icon_caption(name) == caption


def test_a_concept_is_its_words() -> None:
    assert concept("Fire Engines") == concept("engine of the fire") == "engine fire"
    assert concept("glass") == "glass"
    assert concept("bus") == "bus"
    assert concept("with") == "with"  # of filling words alone


def test_a_keyword_that_names_a_concept_held_out_is_no_caption() -> None:
    split = {
        text: split_of_concept(concept(text)) for text in ("dog", "wolf", "cat", "cow", "fox", "ape", "owl", "yak")
    }
    trained = next(text for text, one in split.items() if one == "train")
    other = next(text for text, one in split.items() if one != "train")
    assert without_others((trained, other), {other}) == (trained,)
    assert without_others((trained, other), ()) == (trained, other)  # that is no drawing's name
    assert without_others((other, trained), {trained}) == (other,)


def test_archives_that_are_missing_or_cut_are_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file iconify-json-\*\.tgz: run `npm pack @iconify/json@"):
        rows_of(str(tmp_path))
    shutil.copytree(SMALL, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "iconify-json-0.tgz").read_bytes()
    (tmp_path / "iconify-json-0.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no whole archive"):
        rows_of(str(tmp_path))
    (tmp_path / "iconify-json-0.tgz").write_bytes(gzip.compress(b"\0" * 10240))
    with pytest.raises(InputError, match="hold no drawings"):
        rows_of(str(tmp_path))


def repacked(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """An archive with its members changed."""
    with tarfile.open(source) as archive:
        members = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(target, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_archives_of_another_version_or_without_a_set_are_another_test_bed(tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path, dirs_exist_ok=True)
    name = "iconify-json-0.tgz"
    repacked(SMALL / name, tmp_path / name, lambda members: members.pop("package/json/noto.json") and None)
    with pytest.raises(InputError, match=r"lacks noto: run `npm pack @iconify/json@2\.2\.535"):
        rows_of(str(tmp_path))
    later = {"package/package.json": b'{"version": "2.2.536"}'}
    repacked(SMALL / name, tmp_path / name, lambda members: members.update(later))
    with pytest.raises(
        InputError, match=r"iconify-json-\*\.tgz .* is of version 2\.2\.536, and this test bed is of 2\."
    ):
        rows_of(str(tmp_path))
    shutil.copy(SMALL / name, tmp_path)
    name = "emojibase-data-0.tgz"
    repacked(SMALL / name, tmp_path / name, lambda members: members.pop("package/package.json") and None)
    with pytest.raises(InputError, match=r"emojibase-data-\*\.tgz .* is of version unknown"):
        rows_of(str(tmp_path))


def test_without_a_folder_npm_fetches_the_archives_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match="npm is not here"):
        rows_of("")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error 404' >&2\nexit 1\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(InputError, match="exit code 1: npm error 404"):
        rows_of("")
    npm.write_text(f'#!/bin/sh\n[ "$1 $2" = "pack @iconify/json@2.2.535" ] && /bin/cp {SMALL}/*.tgz "$5"\n')
    assert len(rows_of("")) == 311
    npm.unlink()
    assert len(rows_of("")) == 311


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*glyph: did you mean .*glyphs"):
        rows_of(str(SMALL.with_name("glyph")))


def test_the_sheet_of_glyphs_ends_with_the_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: data.source=glyphs: .* has no file iconify-json"):
        tool("glyph_sheet").main([str(tmp_path)])
