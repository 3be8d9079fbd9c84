"""Seeds, random states and the wish to stop."""

import json
import random
import signal

import numpy as np
import torch

from cmapkd_core.engine.runtime import StopRequest, random_state, restore_random_state, seed_everything
from cmapkd_core.progress import clock


def draw() -> list[float]:
    """Also what keeps state beyond its position: a second half of a Gaussian pair in NumPy and in Python."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
        float(torch.nn.functional.dropout(torch.ones(8), 0.5).sum()),
    ]


def test_a_seed_repeats_everything():
    seed_everything(5, rank=0)
    first = draw()
    seed_everything(5, rank=0)
    assert draw() == first
    seed_everything(6, rank=0)
    assert draw() != first


def test_ranks_have_their_own_dropout():
    streams = []
    for rank in (0, 1):
        seed_everything(5, rank)
        streams.append(torch.rand(8))
    assert not torch.equal(*streams)


def test_a_random_state_survives_plain_json_and_tensors():
    seed_everything(1, rank=0)
    draw()
    tensors, plain = random_state()
    expected = draw()
    seed_everything(99, rank=3)
    draw()
    restore_random_state({name: x.clone() for name, x in tensors.items()}, json.loads(json.dumps(plain)))
    assert draw() == expected


def test_sigterm_is_remembered_and_stops_nothing_by_itself():
    stop = StopRequest().listen()
    assert not stop.anywhere()
    signal.raise_signal(signal.SIGTERM)
    assert stop.anywhere()
    assert not StopRequest().anywhere()


def test_sigterm_is_given_back():
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    stop = StopRequest().listen()
    stop.release()
    signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    assert not stop.asked


def test_time_left_is_readable():
    assert [clock(s) for s in (0, 9.6, 61, 3600, 45296)] == ["0:00", "0:10", "1:01", "1:00:00", "12:34:56"]


def test_a_handler_that_has_done_its_work_is_not_given_back_again():
    """The stage's own one ends with its first signal, and the process with its second."""

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)
    stop = StopRequest().listen()
    stop.release()
    signal.raise_signal(signal.SIGTERM)
    stop.release()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
