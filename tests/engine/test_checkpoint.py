"""Checkpoints: complete or nothing, verified byte by byte, the last two kept, never unpickled."""

import logging
import pickle
import random
from pathlib import Path

import pytest
import torch

from cmapkd_core import parallel, storage
from cmapkd_core.config import Phase, Rates
from cmapkd_core.engine.checkpoint import Checkpoints, Snapshot

STATE = {"optimiser": {}, "random": [], "history": [{"step": 1}], "replaced": []}


@pytest.fixture
def checkpoints(tmp_path: Path):
    def make(identity: str = "ours") -> Checkpoints:
        (tmp_path / "scratch").mkdir(exist_ok=True)
        return Checkpoints(str(tmp_path / "work"), tmp_path / "scratch", identity)

    return make


def save(checkpoints: Checkpoints, step: int, phase: int = 0) -> None:
    tensors = {"weights.safetensors": {"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)}}
    checkpoints.write(Snapshot.take(phase, step, tensors, STATE | {"mark": step}))


def step_of(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.latest()
    assert found is None or found.tensors["weights.safetensors"]["w"].tolist() == [[float(found.step)] * 2] * 3
    return None if found is None else found.step


def files(tmp_path: Path, step: int) -> list[Path]:
    return sorted(p for p in (tmp_path / "work").rglob(f"*-{step:09d}-*/*") if p.is_file())


def test_nothing_saved_is_nothing_found(checkpoints):
    assert checkpoints().latest() is None


def test_a_checkpoint_comes_back_whole(checkpoints):
    save(checkpoints(), 7, phase=1)
    found = checkpoints().latest()
    assert (found.phase, found.step) == (1, 7)
    assert found.state == STATE | {"mark": 7}
    assert found.tensors["weights.safetensors"]["n"].item() == 7
    assert found.tensors["weights.safetensors"]["n"].shape == ()


def test_the_newest_of_the_latest_phase_counts_and_two_are_kept(checkpoints):
    for phase, step in ((0, 5), (0, 10), (1, 1), (1, 2)):
        save(checkpoints(), step, phase)
    names = checkpoints().names()
    assert [name.rsplit("-", 2)[0] for name in names] == ["01-000000002", "01-000000001"]
    assert {f.split("/")[0] for f in storage.list_files(checkpoints().url)} == set(names)
    assert step_of(checkpoints()) == 2


def test_nothing_is_left_in_the_scratch_folder(checkpoints, tmp_path):
    save(checkpoints(), 1)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_folder_without_a_manifest_does_not_exist(checkpoints, tmp_path):
    save(checkpoints(), 1)
    save(checkpoints(), 2)
    (path,) = (tmp_path / "work").rglob("*-000000002-*/manifest.json")
    path.unlink()
    assert step_of(checkpoints()) == 1


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_in_any_file_is_detected_and_the_one_before_used(checkpoints, tmp_path, caplog, seed):
    save(checkpoints(), 1)
    save(checkpoints(), 2)
    chance = random.Random(seed)
    stored = files(tmp_path, 2)
    assert {p.name for p in stored} == {"weights.safetensors", "state.json", "manifest.json"}
    victim = stored[seed % len(stored)]
    data = bytearray(victim.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    victim.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert step_of(checkpoints()) == 1
    assert "000000002" in caplog.text


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "another's"])
def test_torn_files_are_detected(checkpoints, tmp_path, name, damage):
    save(checkpoints(), 1)
    save(checkpoints(), 2)
    (victim,), (other,) = ([p for p in files(tmp_path, step) if p.name == name] for step in (2, 1))
    data = {"truncated": victim.read_bytes()[:-3], "empty": b"", "another's": other.read_bytes()}[damage]
    victim.write_bytes(data)
    assert step_of(checkpoints()) == 1


def test_a_missing_file_is_detected(checkpoints, tmp_path):
    save(checkpoints(), 1)
    save(checkpoints(), 2)
    next(p for p in files(tmp_path, 2) if p.name == "state.json").unlink()
    assert step_of(checkpoints()) == 1


def test_two_damaged_checkpoints_leave_none(checkpoints, tmp_path):
    for step in (1, 2):
        save(checkpoints(), step)
    for step in (1, 2):
        files(tmp_path, step)[-1].write_bytes(b"x")
    assert checkpoints().latest() is None


def test_after_a_damaged_one_two_good_ones_are_kept_again(checkpoints, tmp_path):
    save(checkpoints(), 1)
    save(checkpoints(), 2)
    files(tmp_path, 2)[-1].write_bytes(b"x")
    going_on = checkpoints()
    assert step_of(going_on) == 1
    save(going_on, 2)
    assert len(checkpoints().names()) == 2
    newest = max(files(tmp_path, 2), key=lambda p: p.stat().st_mtime_ns).parent
    (newest / "state.json").write_bytes(b"x")
    assert step_of(checkpoints()) == 1


def test_another_identitys_checkpoint_is_neither_used_nor_in_the_way(checkpoints, caplog):
    """The inputs changed while an earlier attempt was further on: its checkpoints have higher steps."""
    for step in (8, 9):
        save(checkpoints("theirs"), step)
    with caplog.at_level(logging.WARNING):
        assert checkpoints("ours").latest() is None
    assert "made from other inputs" in caplog.text
    for step in (1, 2, 3):
        save(checkpoints("ours"), step)
    assert step_of(checkpoints("ours")) == 3
    assert step_of(checkpoints("theirs")) == 9
    assert len(checkpoints("ours").names()) == 4


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("EXPLODED"),)


def test_nothing_is_unpickled(checkpoints, tmp_path, monkeypatch):
    """A hostile file with a matching digest is refused by its format, and no code runs."""
    monkeypatch.chdir(tmp_path)
    save(checkpoints(), 1)
    (weights,) = (p for p in files(tmp_path, 1) if p.name == "weights.safetensors")
    weights.write_bytes(pickle.dumps(Bomb()))
    (path,) = (p for p in files(tmp_path, 1) if p.name == "manifest.json")
    manifest = storage.read_json(str(path))
    from cmapkd_core.engine.checkpoint import _digest

    del manifest["sha256"]
    manifest["files"]["weights.safetensors"] = storage.sha256_file(weights)
    storage.write_json(str(path), manifest | {"sha256": _digest(manifest)})
    with pytest.raises(Exception, match="(?i)header"):
        checkpoints().latest()
    assert not (tmp_path / "EXPLODED").exists()


def test_checkpoints_on_s3(s3_root, tmp_path):
    (tmp_path / "scratch").mkdir()
    there = Checkpoints(s3_root, tmp_path / "scratch", "ours")
    for step in (1, 2, 3):
        save(there, step)
    assert len(there.names()) == 2
    assert step_of(there) == 3
    storage.write_bytes(storage.join(there.url, there.names()[0], "state.json"), b"{}")
    assert step_of(Checkpoints(s3_root, tmp_path / "other", "ours")) == 2


def test_a_rank_takes_the_checkpoint_that_the_first_one_chose_and_no_other(toy, monkeypatch):
    one = toy(phases=(Phase(1, Rates(student=1e-2)),))
    one.run()
    _, chosen = one.checkpoints.names()
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "broadcast", lambda value: chosen)
    assert toy().session().saved.name == chosen
    (state,) = (Path(toy().folder) / "work").glob(f"checkpoints/{chosen}/state.json")
    state.write_text("{}")
    with pytest.raises(OSError, match=f"checkpoint {chosen}, from which rank 0 goes on"):
        toy().session()


def test_what_is_no_checkpoint_is_named_left_alone_and_not_read(checkpoints, tmp_path, caplog):
    for name in ("mine/manifest.json", "a-b-c/manifest.json", "00-000000009-ours/manifest.json", "notes.txt"):
        storage.write_bytes(f"{checkpoints().url}/{name}", b"{}")
    assert step_of(checkpoints()) is None
    for step in (1, 2, 3):
        save(checkpoints(), step)
    caplog.clear()
    assert step_of(checkpoints()) == 3
    (told,) = [record.getMessage() for record in caplog.records]
    named = "00-000000009-ours, a-b-c, mine, notes.txt"
    assert told == f"{tmp_path}/work/checkpoints holds {named}, which is no checkpoint: left alone and not read"
    assert len(storage.list_files(checkpoints().url)) == 4 + 2 * 3
