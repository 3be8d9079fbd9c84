"""The page of a data set's pairs: which are on it, what stands beside them, and a picture that cannot be shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from cmapkd_core.data.layout import PAIRS
from cmapkd_core.data.pair_sheet import pair_sheet
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards

SPLITS = ("train",) * 30 + ("val",) * 2 + ("test",)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """33 pictures, 30 of them to train on; a caption is HTML, and the test picture has five."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, split in enumerate(SPLITS):
        Image.new("RGB", (24, 24), (8 * number, 90, 200 - number)).save(folder / f"{number}.png")
        captions = [f"view {i} of {number}" for i in range(5)] if split == "test" else [f"<b>shade</b> {number}"]
        lines.append({"file": f"{number}.png", "captions": captions, "split": split, "class": "a & b"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = Request("tiny", str(folder / "root"), data=f"folder:{folder}", overrides="data.leakage=ids")
    return Artifact.open(prepare.run(asked))


def test_pairs_of_every_split_with_their_words(prepared: Artifact) -> None:
    page = prepared.fetch(PAIRS).read_text()
    assert re.findall(r"<h2>([^<]+)</h2>", page) == [
        "train: 30 pictures, 12 of them here",
        "val: 2 pictures",
        "test: 1 picture",
    ]
    assert page.count('<img src="data:image/jpeg;base64,') == 12 + 2 + 1
    shades = {int(number) for number in re.findall(r"&lt;b&gt;shade&lt;/b&gt; (\d+)", page)}
    assert len(shades) == 14
    assert shades >= {0, 30, 31}  # the first; both of val
    assert max(shades - {30, 31}) > 25  # and some of the rest, to its end
    assert "<b>" not in page
    assert "<li>view 2 of 32</li><li>and 2 more</li>" in page
    assert "class a &amp; b" in page
    assert not re.search(r"https?://|<script", page)


def test_the_stage_says_where_it_lies(prepared: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    root = prepared.url.rpartition("/prepare/")[0]
    folder = Path(root).parent
    prepare.run(Request("tiny", root, data=f"folder:{folder}", overrides="data.leakage=ids"))  # answers at once
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "to look at" in line]
    assert Path(line.rpartition(": ")[2]).read_bytes() == prepared.fetch(PAIRS).read_bytes()


def test_a_damaged_picture_has_its_reason_in_its_place(prepared: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(prepared)
    monkeypatch.setattr(ShardSet, "_bytes", lambda self, shard, size, offset: b"x" * size)
    page = pair_sheet(shards)
    assert "<img" not in page
    assert page.count("its checksum is wrong") == 15
