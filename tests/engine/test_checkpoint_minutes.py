"""Checkpoints by time as well as by steps, and what they take."""

import dataclasses
import threading
import time

import pytest
import torch

from cmapkd_core import storage
from cmapkd_core.config import Phase, Rates
from cmapkd_core.engine import checkpoint
from cmapkd_core.engine.saving import Saver

PATIENCE = 20.0
WHOLE = (Phase(1, Rates(student=1e-2, pyramid=1e-3)),)


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def by_clock(toy, monkeypatch):
    """`by_clock(every, minutes)`: ten steps, of which each but the first begins a minute after the one before."""
    monkeypatch.setattr(checkpoint, "KEPT", 1000)

    def make(every, minutes, **more):
        runtime = dataclasses.replace(toy().runtime, checkpoint_every=every, checkpoint_minutes=minutes)
        one = toy(runtime=runtime, phases=WHOLE, **more)
        minute = 0
        one.now = lambda: 60.0 * minute

        def before(step):
            nonlocal minute
            minute = step

        one.rows.before = before
        return one

    return make


@pytest.fixture
def at_once(monkeypatch):
    """A checkpoint is written before the next of these steps, which take no time."""
    begin = Saver.begin
    monkeypatch.setattr(Saver, "begin", lambda self, snapshot: (begin(self, snapshot), self._thread.join())[0])


def steps(one):
    return [one.checkpoints.load(name).step for name in reversed(one.checkpoints.names())]


@pytest.mark.parametrize(
    ("every", "minutes", "expected"),
    [
        (0, 2.5, [4, 7, 10]),
        (5, 2.5, [4, 5, 8, 10]),  # by steps too, and the time counts from the last one of either kind
        (4, 0.0, [4, 8, 10]),
        (100, 100.0, [10]),
    ],
)
def test_whichever_comes_first_makes_a_checkpoint(at_once, by_clock, every, minutes, expected):
    one = by_clock(every, minutes)
    one.run()
    assert steps(one) == expected


def test_time_makes_no_checkpoint_while_one_is_written_so_that_training_goes_on(by_clock, monkeypatch):
    one, put, further = by_clock(0, 1.0), storage.put, threading.Event()
    before = one.rows.before
    one.rows.before = lambda step: (before(step), further.set() if step == 8 else None)

    def late(path, url):
        assert further.wait(PATIENCE), "step 8 waits for a checkpoint"
        put(path, url)

    monkeypatch.setattr(storage, "put", late)
    one.run()
    assert (steps(one)[0], steps(one)[-1]) == (2, 10)
    assert not set(range(3, 9)) & set(steps(one))


def test_a_killed_run_goes_on_from_the_checkpoint_by_time_bit_for_bit(at_once, by_clock, toy):
    straight = toy("straight", phases=WHOLE)  # with other checkpoints
    straight.run()
    cut = by_clock(0, 2.5)
    before = cut.rows.before

    def kill(step):
        before(step)
        if step == 8:
            raise Killed

    cut.rows.before = kill
    with pytest.raises(Killed):
        cut.run()
    resumed = by_clock(0, 2.5)
    session = resumed.run()
    assert "toy: going on from the checkpoint at phase phase0, step 7\n" in resumed.said
    theirs = straight.module.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in resumed.module.state_dict().items())
    assert session.costs.number == 4  # 4 and 7 of the attempt before; 8, as the clock of this one leaps, and 10


def test_what_checkpoints_take_is_measured_and_said(toy, monkeypatch):
    put = storage.put
    monkeypatch.setattr(storage, "put", lambda path, url: (time.sleep(0.03), put(path, url))[1])
    one = toy(phases=WHOLE, runtime=dataclasses.replace(toy().runtime, checkpoint_every=0))
    began = time.monotonic()
    costs = one.run().costs
    assert 4 * 0.03 <= costs.written <= time.monotonic() - began  # four files
    assert 3 * 0.03 <= costs.stalled <= time.monotonic() - began  # there is nothing to train beside the last one
    assert one.said[-1] == f"toy: {costs}\n"
    assert costs.metrics() == {
        "checkpoints/number": 1.0,
        "checkpoints/stalled": round(costs.stalled, 3),
        "checkpoints/written": round(costs.written, 3),
    }


def test_what_is_written_behind_training_does_not_count_as_holding_it_up(toy, monkeypatch):
    one, put = toy(phases=WHOLE, runtime=dataclasses.replace(toy().runtime, checkpoint_every=4)), storage.put
    monkeypatch.setattr(storage, "put", lambda path, url: (time.sleep(0.03), put(path, url))[1])
    write, written = one.checkpoints.write, threading.Event()
    one.checkpoints.write = lambda snapshot: (write(snapshot), written.set())[0]

    def work(step):  # of training, for as long as a checkpoint is written
        if step in (4, 8):
            assert written.wait(PATIENCE)
            written.clear()

    one.rows.before = work
    costs = one.run().costs
    assert costs.stalled < costs.written - 4 * 0.03  # of three, two are written behind training
