"""A data set prepared in parts: the same bytes for any number of them, from a folder, tars, and here or on S3."""

from __future__ import annotations

import io
import json
import signal
import tarfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import Forked
from PIL import Image

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data import inspection
from cmapkd_core.data.rows import Item, Row
from cmapkd_core.data.sources import scenes_vqa
from cmapkd_core.data.verdict import TooManyBadError
from cmapkd_core.errors import InputError
from cmapkd_core.places import part_url
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, prepare_part
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.cli import main

OVERRIDES = "data.samples_per_shard=7 data.quarantine_bound=0.5 data.leakage=ids"
PATIENCE = 120.0


def digests(url: str) -> dict[str, str]:
    """sha256 of every file but the journal, which has times."""
    outputs = Artifact.open(url).manifest["outputs"]
    return {name: output["sha256"] for name, output in outputs.items() if name != "journal.jsonl"}


def asking(root: str | Path, data: str, overrides: str = "", **more: str) -> Request:
    return Request("tiny", str(root), overrides=f"{OVERRIDES} {overrides}", data=data, **more)


def parts_of(asked: Request, of: int) -> dict[str, str]:
    """Make all parts, the last one first; their URLs as stage prepare is given them."""
    urls = {number: prepare_part.run(asked, part=str(number), of=str(of)) for number in range(of, 0, -1)}
    return {f"part-{number}": url for number, url in urls.items()}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Forty; the last one cannot be decoded."""
    draw = np.random.default_rng(0)
    files = []
    for _ in range(40):
        file = io.BytesIO()
        small = Image.fromarray(draw.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return [*files[:-1], files[-1][:200]]


def write_folder(there: str, pictures: list[bytes]) -> str:
    """A hundred rows: some without a picture, some with the key of an earlier one."""
    lines = []
    for row in range(100):
        key = {40: "k003", 97: "k001", 98: "k097"}.get(row, f"k{row:03d}")
        lines.append({"key": key, "file": f"{row % 41}.jpg", "captions": [f"row {row}"], "class": "abc"[row % 3]})
    for number, data in enumerate(pictures):
        storage.write_bytes(storage.join(there, f"{number}.jpg"), data)
    storage.write_bytes(storage.join(there, "captions.jsonl"), "\n".join(map(json.dumps, lines)).encode())
    return f"folder:{there}"


def tar(samples: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for stem, image in samples.items():
            for extension, data in (("jpg", image), ("txt", f"said of {stem}".encode())):
                member = tarfile.TarInfo(f"{stem}.{extension}")
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tars(source: str, there: str, pictures: list[bytes]) -> str:
    """Seven shards of very different sizes: one cut off, one lost; another tool's, in which a name stands again."""
    sizes = (30, 1, 12, 9, 0, 25, 4)
    folders = ("train/", "validation/") if source == "cc3m" else ("",)
    for number, size in enumerate(sizes):
        stems = {f"{number:05d}{i:04d}": pictures[(7 * number + i) % 40] for i in range(size)}
        where = storage.join(there, f"{folders[number % len(folders)]}{number:05d}")
        data = tar(stems)
        if number != 3:
            storage.write_bytes(f"{where}.tar", data[: len(data) // 2] if number == 2 else data)
        storage.write_json(f"{where}_stats.json", {"successes": size})
    return f"{source}:{there}"


def made(kind: str, there: str, pictures: list[bytes]) -> str:
    return write_folder(there, pictures) if kind == "folder" else write_tars(kind, there, pictures)


@pytest.mark.parametrize("kind", ["folder", "img2dataset", "cc3m", "img2dataset on s3"])
def test_one_two_and_five_partitions_give_the_same_bytes(
    tmp_path: Path, pictures: list[bytes], kind: str, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("s3_root") if "s3" in kind else str(tmp_path)
    data = made(kind.partition(" ")[0], storage.join(place, "in"), pictures)
    whole = prepare.run(asking(storage.join(place, "whole"), data))
    manifest = Artifact.open(whole).manifest
    assert manifest["metrics"]["quarantined"] >= 4
    assert len([name for name in digests(whole) if name.endswith(".tar")]) > 8
    for of in (1, 2, 5) if place == str(tmp_path) else (2,):
        asked = asking(storage.join(place, f"in {of}"), data, "runtime.workers=2")
        url = prepare.run(asked, artifacts=parts_of(asked, of))
        assert url.removeprefix(asked.root) == whole.removeprefix(storage.join(place, "whole"))
        assert digests(url) == digests(whole)
        assert Artifact.open(url).manifest["metrics"] == manifest["metrics"]
        assert not storage.list_files(storage.join(asked.root, "prepare-part")), "parts that are joined go"


def test_a_part_that_is_killed_goes_on_and_the_others_are_not_made_again(
    tmp_path: Path, pictures: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = asking(tmp_path / "root", made("folder", str(tmp_path / "in"), pictures * 2), "data.samples_per_shard=3")
    first = prepare_part.run(asked, part="1", of="2")
    arguments = ["--recipe", "tiny", "--root", asked.root, "--overrides", asked.overrides, "--data", asked.data]
    process = Forked("cmapkd_core.stages.prepare_part", [*arguments, "--part", "2", "--of", "2"], {})
    with closing(process):
        give_up = time.monotonic() + PATIENCE
        while len(list(Path(asked.root).glob("prepare-part/*/work/shards-*/*.parquet"))) < 3:
            assert process.poll() is None, process.said()
            assert time.monotonic() < give_up
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    missing = part_url(asked.root, asked.resolved(), 2, 2)
    with pytest.raises(InputError, match=r"^part 2 of 2 \(.*\) is not there, or was joined and deleted: start the run"):
        prepare.run(asked, artifacts={"part-1": first, "part-2": missing})
    capsys.readouterr()
    parts = parts_of(asked, 2)
    said = capsys.readouterr().out
    assert "prepare-part-2: going on after" in said
    assert "prepare-part-1: already complete" in said
    assert digests(prepare.run(asked, artifacts=parts)) == digests(
        prepare.run(asking(tmp_path / "other", asked.data, "data.samples_per_shard=3"))
    )


def test_a_part_of_something_else_is_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    there = tmp_path / "in"
    asked = asking(tmp_path / "root", made("folder", str(there), pictures))
    parts = parts_of(asked, 2)
    other = prepare_part.run(asking(tmp_path / "root", asked.data, "data.val_share=0.3"), part="2", of="2")
    third = prepare_part.run(asked, part="3", of="3")
    bad = {
        "data.val_share: 0.1 -> 0.3": parts | {"part-2": other},
        "stage: prepare-part-2 -> prepare-part-3": parts | {"part-2": third},
        "part: 1 -> 2": {"part-1": parts["part-2"], "part-2": parts["part-1"]},
        "--artifacts part-2: all parts of one data set, as part-1": {"part-2": parts["part-2"]},
    }
    for why, given in bad.items():
        with pytest.raises(InputError, match=why):
            prepare.run(asked, artifacts=given)
    (there / "1.jpg").write_bytes((there / "2.jpg").read_bytes())
    with pytest.raises(
        InputError, match=r"part 1 of 2 .* no longer those of the source: data\.url=.* has changed: 1\.jpg"
    ):
        prepare.run(asked, artifacts=parts)
    assert not list(Path(asked.root).glob("prepare/*/manifest.json"))
    assert find(prepare.run(asked, artifacts=parts_of(asked, 2))) is not None


def test_parts_of_a_set_that_stands_are_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request("tiny", str(tmp_path))
    url = prepare.run(asked)
    capsys.readouterr()
    parts = parts_of(asked, 2)
    assert set(parts.values()) == {url}
    assert f"prepare-part-2: nothing to do, the whole data set is complete: {url}" in capsys.readouterr().out
    assert prepare.run(asked, artifacts=parts) == url
    assert find(url) is not None, "what was handed on is no part to be deleted"
    again = Request("tiny", str(tmp_path), redo="yes")
    before = Artifact.open(url).digest
    assert prepare.run(again, artifacts=parts_of(again, 2)) == url
    assert Artifact.open(url).digest != before


def test_what_fails_on_the_whole_keeps_the_parts_and_another_bound_or_gate_uses_them(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made("folder", str(tmp_path / "in"), pictures)
    strict = asking(tmp_path / "root", data, "data.quarantine_bound=0.01 data.leakage=exact")
    parts = parts_of(strict, 2)
    with pytest.raises(
        TooManyBadError, match=r"5 of 100 rows cannot be used(.|\n)*Every bad row with its reason: "
    ) as raised:
        prepare.run(strict, artifacts=parts)
    assert len(storage.read_bytes(str(raised.value).rsplit(" ", 1)[-1]).splitlines()) == 5
    monkeypatch.setattr(inspection, "shown_quickly", None)  # nothing is decoded any more
    lenient = asking(tmp_path / "root", data, "data.leakage=exact")
    assert parts_of(lenient, 2) == parts
    assert Artifact.open(prepare.run(lenient, artifacts=parts)).manifest["metrics"]["used"] == 95


def test_questions_whose_numbers_meet_are_read_in_one_piece(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = scenes_vqa.scene_vqa_rows

    def twice(config: DataConfig) -> list[Item]:  # the last picture is asked what the first one is
        first, *between, last = (row for row in original(config) if isinstance(row, Row))
        return [first, *between, replace(last, questions=first.questions)]

    monkeypatch.setattr(scenes_vqa, "scene_vqa_rows", twice)
    more = "data.quarantine_bound=0.9 data.size=40"
    asked = asking(tmp_path / "root", "scenes_vqa", more)
    url = prepare.run(asked, artifacts=parts_of(asked, 2))
    said = capsys.readouterr().out
    assert "questions of two parts have the same number, so all rows are read here and the parts are not used" in said
    assert digests(url) == digests(prepare.run(asking(tmp_path / "whole", "scenes_vqa", more)))


def test_the_command_line_names_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--recipe", "tiny", "--root", str(tmp_path), "--set", "data.size=20"]
    for part, of in (("0", "2"), ("3", "2"), ("x", "2"), ("1", "")):
        assert main(prepare_part.run, [*given, "--part", part, "--of", of]) == 2
    assert "--part 3 --of 2: two whole numbers, such as --part 2 --of 5" in capsys.readouterr().err
    for part in ("1", "2"):
        assert main(prepare_part.run, [*given, "--part", part, "--of", "2", "--artifact", f"{tmp_path}/{part}"]) == 0
    urls = [(tmp_path / part).read_text() for part in ("1", "2")]
    assert main(prepare.run, [*given, "--artifacts", "part-1", urls[0], "part-2", urls[1]]) == 0
