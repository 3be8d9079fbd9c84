import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cmapkd_core import storage
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.verdict import TooManyBadError
from cmapkd_core.errors import InputError
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.prepare import run


def folder_of(tmp_path: Path, picture: Callable[..., bytes], bad: int) -> Path:
    """Twenty pictures of two classes, the first `bad` of them without a caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i in range(20):
        (folder / f"{i}.png").write_bytes(picture(colour=(10 * i, 0, 0)))
        caption = "" if i < bad else f"thing {i}"
        lines.append(json.dumps({"key": f"k{i}", "file": f"{i}.png", "caption": caption, "class": "ab"[i == 19]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def shards_of(url: str, tmp_path: Path) -> ShardSet:
    return ShardSet.open(storage.join(url, Artifact.open(url).manifest["folder"]), tmp_path / "cache")


def test_prepare_writes_an_artifact_and_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = run(Request("tiny", str(tmp_path / "root")))
    artifact = Artifact.open(url)
    assert {"shards.json", "index.parquet", "quarantine.jsonl"} <= set(artifact.files())
    assert artifact.manifest["metrics"]["used"] == 96
    shards = shards_of(url, tmp_path)
    assert sum(shards.count(split) for split in ("train", "val", "test")) == 96
    assert list(shards.verify()) == []
    said = capsys.readouterr().out
    assert "96 pictures" in said
    assert run(Request("tiny", str(tmp_path / "root"))) == url
    assert "already complete" in capsys.readouterr().out


def test_bad_rows_below_the_bound_are_kept_in_the_artifact(
    tmp_path: Path, picture: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, picture, bad=2)
    overrides = "data.quarantine_bound=0.2 data.test_share=0.3"
    url = run(Request("tiny", str(tmp_path / "root"), overrides=overrides, data=f"folder:{folder}"))
    lines = Artifact.open(url).fetch("quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["k0 (line 1)", "k1 (line 2)"]
    said = capsys.readouterr().out
    assert "2 of 20 rows are bad, left out and listed in quarantine.jsonl, such as k0 (line 1): " in said
    assert "classes have no picture in split" in said


def test_a_failed_stage_leaves_its_quarantine_list_where_it_says(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    folder = folder_of(tmp_path, picture, bad=7)
    with pytest.raises(TooManyBadError, match="7 of 20 rows") as caught:
        run(Request("tiny", str(tmp_path / "root"), data=f"folder:{folder}"))
    kept = str(caught.value).rsplit(" ", 1)[-1]
    assert len(storage.read_bytes(kept).splitlines()) == 7
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_prepare_on_s3(tmp_path: Path, s3_root: str) -> None:
    url = run(Request("tiny", s3_root, overrides="data.size=48"))
    assert shards_of(url, tmp_path).count("train") > 30


def test_shards_json_is_read_with_its_digest(tiny_shards: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_shards, tmp_path / "copy")
    artifact = Artifact.open(str(tmp_path / "copy"))
    assert open_shards(artifact).count("train") == 87
    path = Path(artifact.file_url("shards.json"))
    path.write_text(path.read_text().replace('"quarantined": 0', '"quarantined": 1'))
    with pytest.raises(InputError, match=r"shards\.json was changed after it was written: run stage prepare again"):
        open_shards(artifact)


def test_an_artifact_of_another_stage_is_no_data_set(tiny_teacher: str) -> None:
    with pytest.raises(
        InputError, match=r"has no shards\.json, so it is no data set: give an artifact of stage prepare"
    ):
        open_shards(Artifact.open(tiny_teacher))
