"""Prepare as a process: killed, stopped, run with other numbers of threads, and on S3: always the same bytes."""

import contextlib
import io
import json
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Forked
from PIL import Image

from cmapkd_core import storage
from cmapkd_core.data import inspection
from cmapkd_core.data.layout import MANIFEST, QUARANTINE
from cmapkd_core.data.leakage import LeakageError
from cmapkd_core.errors import InputError
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main

ROWS, FILES, SHARD = 600, 40, 30
OVERRIDES = f"data.samples_per_shard={SHARD} data.quarantine_bound=0.01 data.leakage=ids,exact"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows of 40 pictures; three are bad."""
    there = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(FILES):
        small = Image.fromarray(draw.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(there / f"{number}.jpg", quality=90)
    (there / "cut.jpg").write_bytes((there / "0.jpg").read_bytes()[:2000])
    lines = []
    for row in range(ROWS):
        file = "cut.jpg" if row % 500 == 7 else "gone.jpg" if row == 8 else f"{row % FILES}.jpg"
        lines.append(json.dumps({"key": f"k{row:04d}", "file": file, "captions": [f"row {row}", f"file {file}"]}))
    (there / "captions.jsonl").write_text("\n".join(lines))
    return there


def request(root: Path | str, folder: Path | str, overrides: str = "") -> Request:
    return Request("tiny", str(root), overrides=f"{OVERRIDES} {overrides}", data=f"folder:{folder}")


def digests(url: str) -> dict[str, str]:
    """sha256 of every file but the journal, which has times."""
    outputs = Artifact.open(url).manifest["outputs"]
    return {name: output["sha256"] for name, output in outputs.items() if name != "journal.jsonl"}


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a run that nothing disturbed, on no thread but its own."""
    found = digests(prepare.run(request(tmp_path_factory.mktemp("straight"), folder)))
    assert len([name for name in found if name.endswith(".tar")]) > 15
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_threads_writes_the_same_bytes(
    tmp_path: Path, folder: Path, straight: dict[str, str], workers: int
) -> None:
    assert digests(prepare.run(request(tmp_path, folder, f"runtime.workers={workers}"))) == straight


def signalled(root: Path, folder: Path, which: signal.Signals) -> tuple[int | None, str]:
    """Start the stage as a pod would, signal it once it has kept three shards, and wait for its end."""
    asked = request(root, folder)
    argv = ["--recipe", "tiny", "--root", str(root), "--overrides", f"{asked.overrides} runtime.workers=1"]
    process = Forked("cmapkd_core.stages.prepare", [*argv, "--source", asked.data], {"OMP_NUM_THREADS": "1"})
    with contextlib.closing(process):
        give_up = time.monotonic() + PATIENCE
        while len(list(root.glob("prepare/*/work/shards-*/*.parquet"))) < 3:
            assert process.poll() is None, process.said()
            assert time.monotonic() < give_up
            time.sleep(0.005)
        process.send_signal(which)
        said, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, said


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[[], int]]:
    """`decoded(n)`: the n-th picture that is decoded from now on breaks the stage off; gives how many were decoded."""
    original = inspection.shown_quickly

    def arrange(stop: int) -> Callable[[], int]:
        calls = 0

        def shown(data: bytes, max_pixels: int) -> AbstractContextManager[Image.Image]:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return original(data, max_pixels)

        monkeypatch.setattr(inspection, "shown_quickly", shown)
        return lambda: calls

    return arrange


@pytest.mark.parametrize(
    ("which", "code"), [pytest.param(signal.SIGKILL, -9, marks=pytest.mark.heavy), (signal.SIGTERM, 143)]
)
def test_a_stopped_stage_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path,
    folder: Path,
    straight: dict[str, str],
    decoded: Callable[[int], Callable[[], int]],
    capsys: pytest.CaptureFixture[str],
    which: signal.Signals,
    code: int,
) -> None:
    ended, said = signalled(tmp_path, folder, which)
    assert ended == code, said
    assert "Traceback" not in said
    if which == signal.SIGTERM:
        assert "prepare was asked to stop after" in said
    assert not list(tmp_path.glob("prepare/*/manifest.json"))
    kept = len(list(tmp_path.glob("prepare/*/work/shards-*/*.parquet")))
    count = decoded(0)
    url = prepare.run(request(tmp_path, folder))
    assert f"going on after {SHARD * kept} pictures in finished shards" in capsys.readouterr().out
    assert count() < ROWS - SHARD * kept
    assert digests(url) == straight
    assert not storage.list_files(storage.join(url, "work"))


@pytest.mark.heavy
def test_it_goes_on_from_s3(s3_root: str, folder: Path, decoded: Callable[[int], Callable[[], int]]) -> None:
    for path in folder.iterdir():
        storage.put(path, storage.join(s3_root, "in", path.name))
    asked = request(s3_root, storage.join(s3_root, "in"), "data.size=200 data.quarantine_bound=0.1")
    decoded(150)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(asked)
    assert not [name for name in storage.list_files(s3_root) if name.endswith("manifest.json")]
    count = decoded(0)
    url = prepare.run(asked)
    assert count() <= 200 - 3 * SHARD
    assert digests(url) == digests(
        prepare.run(request(storage.join(s3_root, "other"), storage.join(s3_root, "in"), asked.overrides))
    )


CHANGES: dict[str, Callable[[list[dict[str, object]]], list[dict[str, object]]]] = {
    "another row in front": lambda rows: [rows[0] | {"key": "new"}, *rows],
    "another caption": lambda rows: [rows[0] | {"captions": ["x"]}, *rows[1:]],
    "fewer rows": lambda rows: rows[:40],
    "another class": lambda rows: [row | {"class": "renamed"} for row in rows],
}


@pytest.mark.parametrize("change", [*CHANGES, "a damaged shard"])
def test_a_source_that_changed_meanwhile_starts_anew(
    tmp_path: Path,
    folder: Path,
    decoded: Callable[[int], Callable[[], int]],
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    there = tmp_path / "pictures"
    there.mkdir()
    for path in folder.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    asked = request(tmp_path / "root", there, "data.quarantine_bound=0.1")
    decoded(150)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(asked)
    decoded(0)
    if change in CHANGES:
        rows = [json.loads(line) for line in (there / "captions.jsonl").read_text().splitlines()]
        (there / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in CHANGES[change](rows)))
    else:
        (tar,) = (tmp_path / "root").glob("prepare/*/work/shards-*/train-00000.tar")
        tar.write_bytes(tar.read_bytes()[:700] + bytes(9) + tar.read_bytes()[709:])
    again = prepare.run(asked)
    assert "nothing of the earlier attempt can be gone on with (" in capsys.readouterr().out
    assert digests(again) == digests(prepare.run(request(tmp_path / "fresh", there, "data.quarantine_bound=0.1")))


LINES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:200] + bytes([data[200] ^ 8]) + data[201:],
    "torn": lambda data: data[:-100],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", LINES)
def test_damaged_lines_of_a_saved_shard_make_that_shard_again(
    tmp_path: Path,
    folder: Path,
    straight: dict[str, str],
    decoded: Callable[[int], Callable[[], int]],
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    decoded(300)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(request(tmp_path, folder))
    lines = sorted(tmp_path.glob("prepare/*/work/shards-*/*.parquet"))
    first = next(path for path in lines if path.name.startswith("train-00000."))
    first.write_bytes(LINES[damage](first.read_bytes()))
    count = decoded(0)
    assert digests(prepare.run(request(tmp_path, folder))) == straight
    said = capsys.readouterr().out
    assert f"prepare: {first} is not what an earlier attempt saved: its shard is made again\n" in said
    assert f"going on after {SHARD * (len(lines) - 1)} pictures" in said
    assert count() < ROWS - SHARD * (len(lines) - 1)


def test_a_picture_mended_after_a_leak_is_read_again(tmp_path: Path) -> None:
    """The list of the pictures is as it was: only the file has changed."""
    there = tmp_path / "pictures"
    there.mkdir()
    for name in ("a.jpg", "c.jpg"):
        Image.new("RGB", (24, 24), {"a.jpg": "red", "c.jpg": "blue"}[name]).save(there / name)
    (there / "b.jpg").write_bytes((there / "a.jpg").read_bytes())
    splits = {"a": "train", "c": "train", "b": "test"}
    lines = [{"key": k, "file": f"{k}.jpg", "captions": [k], "split": split} for k, split in splits.items()]
    (there / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = request(tmp_path / "root", there)
    with pytest.raises(LeakageError, match="train a = test b"):
        prepare.run(asked)
    Image.new("RGB", (24, 24), "green").save(there / "b.jpg")
    assert Artifact.open(prepare.run(asked)).manifest["metrics"]["test"] == 1


def test_the_bad_rows_are_listed_in_order(tmp_path: Path, folder: Path) -> None:
    url = prepare.run(request(tmp_path, folder, "runtime.workers=2"))
    listed = [json.loads(line) for line in Artifact.open(url).fetch(QUARANTINE).read_text().splitlines()]
    assert [(bad["row"], bad["key"]) for bad in listed] == [(8, "k0007"), (9, "k0008"), (508, "k0507")]
    assert "the JPEG cannot be read" in listed[0]["reason"]
    assert listed[1]["reason"] == "file gone.jpg is not there"


def test_progress_tells_the_number_the_speed_and_the_rest(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.run(request(tmp_path, folder))
    said = capsys.readouterr().out
    assert f"prepare: 50/{ROWS} rows" in said
    assert "rows/s  ETA" in said
    prepare.run(Request("tiny", str(tmp_path), data="scenes"))
    assert "prepare: 50 rows" in capsys.readouterr().out


def test_a_picture_in_no_memory_and_small_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """231 megapixels are told by the header, 43 pixels are a picture."""
    pictures = {"huge": (19_000, 12_158), "small": (43, 43), "other": (60, 40)}
    lines = []
    for key, size in pictures.items():
        file = io.BytesIO()
        Image.new("1", size).save(file, "PNG")
        (tmp_path / f"{key}.png").write_bytes(file.getvalue())
        lines.append(json.dumps({"key": key, "file": f"{key}.png", "caption": key, "split": "train"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    overrides = "data.quarantine_bound=0.5"
    url = prepare.run(Request("tiny", str(tmp_path / "root"), overrides=overrides, data=f"folder:{tmp_path}"))
    (bad,) = Artifact.open(url).fetch(QUARANTINE).read_text().splitlines()
    assert json.loads(bad) == {
        "row": 1,
        "key": "huge",
        "reason": "19000x12158 pixels are more than data.max_pixels=50000000",
    }


def test_a_limit_of_rows_is_said_and_counts_bad_ones_in_their_places(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows 8 and 9 are bad: of the first ten, eight are used."""
    url = prepare.run(request(tmp_path, folder, "data.size=10 data.quarantine_bound=0.2"))
    metrics = Artifact.open(url).manifest["metrics"]
    assert (metrics["seen"], metrics["used"], metrics["quarantined"]) == (10, 8, 2)
    assert "data.size=10 ended the source after so many rows; data.size=0 takes all of them" in capsys.readouterr().out
    url = prepare.run(request(tmp_path, folder, "data.size=0"))
    assert Artifact.open(url).manifest["metrics"]["seen"] == ROWS
    assert "data.size" not in capsys.readouterr().out


# ---- the command line -----------------------------------------------------------------------------


def test_source_is_another_word_for_data(tmp_path: Path) -> None:
    argv = ["--recipe", "tiny", "--root", str(tmp_path)]
    urls = []
    for given in (["--source", "scenes"], ["--data", "scenes"], ["--data", "scenes", "--source", "scenes"]):
        assert main(prepare.run, [*argv, *given, "--artifact", str(tmp_path / "url")]) == 0
        urls.append((tmp_path / "url").read_text())
    assert len(set(urls)) == 1


@pytest.mark.parametrize("splits", ["", "data.splits=test"])
def test_a_data_set_without_a_picture_is_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], splits: str
) -> None:
    lines = [json.dumps({"key": f"k{i}", "file": f"{i}.png", "caption": ""}) for i in range(5)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    argv = ["--recipe", "tiny", "--root", str(tmp_path / "root"), "--source", f"folder:{tmp_path}"]
    assert main(prepare.run, [*argv, "--overrides", f"data.quarantine_bound=1.0 {splits}"]) == 2
    said = capsys.readouterr().err
    assert "can be used, whatever bound is set: 5 of 5 are bad" in said
    assert "5 x k0 (line 1): caption is missing or empty" in said
    assert len(storage.read_bytes(said.split()[-1]).splitlines()) == 5
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_two_data_sets_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--source emoji and --data scenes name two data sets"):
        prepare.run(Request("tiny", str(tmp_path), data="scenes"), source="emoji")


def test_chosen_splits_alone_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def counts(splits: str) -> list[float]:
        url = prepare.run(Request("tiny", str(tmp_path), overrides=f"data.splits={splits}"))
        metrics = Artifact.open(url).manifest["metrics"]
        return [metrics[split] for split in ("train", "val", "test")]

    train, val, test = counts("")
    assert counts("test") == [0, 0, test]
    assert counts("train,val") == [train, val, 0]


def test_unnamed_splits_are_left_out_by_the_pictures_hash(tmp_path: Path, folder: Path) -> None:
    whole = Artifact.open(prepare.run(request(tmp_path, folder))).manifest["metrics"]
    part = Artifact.open(prepare.run(request(tmp_path, folder, "data.splits=val"))).manifest["metrics"]
    assert (part["train"], part["val"], part["test"]) == (0, whole["val"], 0)
    assert part["left_out"] == whole["train"] + whole["test"]


def test_pictures_are_counted_by_licence_where_a_source_gives_any(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def manifest(url: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Artifact.open(url).fetch(MANIFEST).read_text())
        return found

    scenes = prepare.run(Request("tiny", str(tmp_path), overrides="data.size=50"))
    assert manifest(scenes)["licences"] == {"CC0-1.0": sum(one["count"] for one in manifest(scenes)["splits"].values())}
    assert "prepare: licence of 50 pictures: CC0-1.0\n" in capsys.readouterr().out
    assert "licences" not in manifest(prepare.run(request(tmp_path, folder)))
    assert "licence of" not in capsys.readouterr().out
