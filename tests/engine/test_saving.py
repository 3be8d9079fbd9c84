"""Checkpoints are written while training goes on: what they hold, and what becomes of an error."""

import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmapkd_core import storage
from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine import checkpoint
from cmapkd_core.engine.session import Session
from cmapkd_core.errors import Diverged, Interrupted
from cmapkd_core.storage import StorageError

PATIENCE = 20.0
TIMES = ("history", "seconds", "checkpoints")  # of a state: what tells of time
STRICT = OptimConfig(batch=4, warmup=0.0, max_skipped=0)
WHOLE = (Phase(1, Rates(student=1e-2, pyramid=1e-3)),)


@pytest.fixture
def uploads(monkeypatch) -> Callable[[Callable[[Path, str], None]], None]:
    """`uploads(before)`: what happens before each file of a checkpoint is stored; it may wait or raise."""
    put = storage.put

    def arrange(before: Callable[[Path, str], None]) -> None:
        def stored(path: Path, url: str) -> None:
            before(path, url)
            put(path, url)

        monkeypatch.setattr(storage, "put", stored)

    return arrange


@pytest.fixture
def every(toy):
    """`every(n)`: a toy of ten steps with a checkpoint after each n."""
    return lambda n, **more: toy(runtime=dataclasses.replace(toy().runtime, checkpoint_every=n), phases=WHOLE, **more)


def test_steps_go_on_while_a_checkpoint_is_uploaded(every, uploads, terminate_after):
    one, further = every(4), threading.Event()
    one.rows.before = lambda step: further.set() if step == 6 else None
    uploads(lambda path, url: None if further.wait(PATIENCE) else pytest.fail("step 6 waits for the upload of step 4"))
    terminate_after(7)
    with pytest.raises(Interrupted, match="step 7"):
        one.run()
    saved = [one.checkpoints.load(name) for name in one.checkpoints.names()]
    assert [found.step for found in saved] == [7, 4]
    assert [len(found.state["history"]) for found in saved] == [7, 4]
    other = every(100, name="other")
    terminate_after(4)
    with pytest.raises(Interrupted):
        other.run()
    assert same(saved[1], other.checkpoints.latest())


def same(a: checkpoint.Saved, b: checkpoint.Saved) -> bool:
    """Equal in all but what tells of time."""
    assert a.tensors.keys() == b.tensors.keys()
    pairs = [(x, b.tensors[file][name]) for file, values in a.tensors.items() for name, x in values.items()]
    rest = [{name: value for name, value in found.state.items() if name not in TIMES} for found in (a, b)]
    return all(torch.equal(x, y) for x, y in pairs) and rest[0] == rest[1]


def test_what_is_written_behind_training_is_what_it_was_when_it_was_saved(toy, every, uploads, monkeypatch):
    """A hundred saves, one after each step, that take as long as they like."""
    monkeypatch.setattr(checkpoint, "KEPT", 1000)
    phases, chance = (Phase(10, Rates(student=1e-2, pyramid=1e-3)),), random.Random(0)
    runtime = dataclasses.replace(toy().runtime, checkpoint_every=1)
    uploads(lambda path, url: time.sleep(chance.random() * 2e-3))
    behind, waited = (toy(name, phases=phases, runtime=runtime) for name in ("behind", "waited"))
    behind.run()
    begun = Session.save
    with monkeypatch.context() as patch:
        patch.setattr(Session, "save", lambda self, *given: (begun(self, *given), self.settle())[0])
        waited.run()
    found, expected = ([one.checkpoints.load(n) for n in one.checkpoints.names()] for one in (behind, waited))
    assert [one.step for one in found] == list(range(100, 0, -1))
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert all(len(one.state["history"]) == one.step for one in found)


def broken(path: Path, url: str) -> None:
    raise StorageError(f"cannot write {url}: no space left")


def test_an_upload_that_fails_stops_training_at_the_next_save(every, uploads):
    one = every(4)
    uploads(broken)
    with pytest.raises(StorageError, match="no space left"):
        one.run()
    lines = (one.folder / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert one.checkpoints.names() == []


def test_the_last_upload_that_fails_is_raised_at_the_end(every, uploads):
    one = every(100)
    uploads(broken)
    with pytest.raises(StorageError, match="no space left"):
        one.run()


def test_a_stop_that_could_not_save_is_no_stop(every, uploads, terminate_after):
    one = every(100)
    uploads(broken)
    terminate_after(3)
    with pytest.raises(StorageError, match="no space left"):
        one.run()


def test_an_exception_of_the_loop_leaves_the_checkpoint_before_it_whole(every, uploads):
    one = every(4, optim=STRICT)
    one.rows.y[4, 0] = torch.nan
    uploads(lambda path, url: time.sleep(0.1))
    with pytest.raises(Diverged, match="step 5"):
        one.run()
    assert one.checkpoints.latest().step == 4


def test_an_exception_of_the_loop_is_not_hidden_by_one_of_the_upload(every, uploads, caplog):
    one = every(4, optim=STRICT)
    one.rows.y[4, 0] = torch.nan
    uploads(broken)
    with pytest.raises(Diverged, match="step 5"):
        one.run()
    assert "the last checkpoint could not be written: cannot write" in caplog.text


def test_a_snapshot_is_a_copy_of_every_kind_of_tensor():
    x = torch.arange(12.0).view(3, 4)
    tensors = {"f": {"plain": x, "turned": x.T, "number": torch.tensor(3), "bytes": torch.arange(4, dtype=torch.uint8)}}
    state = {"history": [{"step": 1}], "replaced": {"a": "torn"}}
    expected = {name: value.clone() for name, value in tensors["f"].items()}
    taken = checkpoint.Snapshot.take(0, 1, tensors, state)
    for value in tensors["f"].values():
        value.zero_()
    state["history"][0]["step"] = 2
    state["replaced"]["b"] = "torn"
    assert all(torch.equal(taken.tensors["f"][name], value) for name, value in expected.items())
    assert json.loads(taken.state) == {"history": [{"step": 1}], "replaced": {"a": "torn"}}


def test_a_snapshot_takes_the_memory_of_the_one_before_where_it_fits():
    before = checkpoint.Snapshot.take(
        0, 1, {"f": {"x": torch.zeros(3, 4), "y": torch.zeros(2), "z": torch.zeros(2)}, "g": {"x": torch.zeros(1)}}, {}
    )
    old = {name: x.data_ptr() for name, x in before.tensors["f"].items()}
    tensors = {"f": {"x": torch.arange(12.0).view(4, 3).T, "y": torch.ones(3), "z": torch.ones(2, dtype=torch.int32)}}
    taken = checkpoint.Snapshot.take(0, 2, tensors, {}, before)
    assert {name: x.data_ptr() == old[name] for name, x in taken.tensors["f"].items()} == {
        "x": True,
        "y": False,
        "z": False,
    }
    assert taken.tensors.keys() == {"f"}
    assert all(torch.equal(x, tensors["f"][name]) and x.is_contiguous() for name, x in taken.tensors["f"].items())
