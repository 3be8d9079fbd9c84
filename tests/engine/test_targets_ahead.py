"""The teacher one batch ahead: on a CPU the order alone, which is what decides the numbers."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.targets_ahead import TargetsAhead, tensors_in
from cmapkd_core.errors import Interrupted
from cmapkd_core.request import Request
from cmapkd_core.stages import train, training
from cmapkd_core.stages.artifact import Artifact

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    images = {"teacher": torch.full((2, 3, 4, 4), float(number))}
    return Batch([f"{number}-a", f"{number}-b"], torch.arange(2), images, {"teacher": torch.zeros(2, 5).long()}, [])


class Numbered:
    """Batches that say their step."""

    def __init__(self) -> None:
        self.steps_per_epoch, self.made, self.turns = 10, [], []

    def batches(self, start: int, stop: int):
        for number in range(start, stop):
            self.made.append(number)
            yield batch(number)

    def reorder(self, turn: int) -> None:
        self.turns.append(turn)


@pytest.fixture
def begun() -> list[float]:
    return []


@pytest.fixture
def ahead(begun):
    def compute(given: Batch) -> Tensor:
        begun.append(given.images["teacher"].mean().item())
        return 10 * given.images["teacher"].mean((1, 2, 3))

    return TargetsAhead(Numbered(), compute, CPU)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (3, 4), (3, 3)])
def test_each_batch_comes_with_its_own_targets(ahead, begun, start, stop):
    found = []
    for given in ahead.batches(start, stop):
        moved = replace(given, index=given.index.clone())  # the loop moves a batch that is where it belongs already
        found.append((given.keys[0], ahead.targets(moved).tolist()))
    assert found == [(f"{n}-a", [10.0 * n, 10.0 * n]) for n in range(start, stop)]
    assert begun == [float(n) for n in range(start, stop)]  # once each


def test_the_next_targets_are_begun_before_a_batch_is_trained_on(ahead, begun):
    steps = ahead.batches(5, 9)
    next(steps)
    assert begun == [5.0, 6.0]
    next(steps)
    assert begun == [5.0, 6.0, 7.0]


def test_another_batch_is_computed_when_it_is_asked_for(ahead, begun):
    given = next(ahead.batches(0, 3))
    few = replace(given, keys=given.keys[:1], images={"teacher": given.images["teacher"][:1]})
    assert ahead.targets(few).tolist() == [0.0]
    assert ahead.targets(batch(7)).tolist() == [70.0, 70.0]
    assert begun == [0.0, 1.0, 0.0, 7.0]


def test_an_error_of_the_loader_comes_after_what_was_read_before_it(ahead):
    """A corrupt shard stops training where it would without looking ahead, less the one batch that was waiting."""

    def broken(start: int, stop: int):
        yield from map(batch, range(2))
        raise OSError("no such shard")

    ahead._loader.batches = broken
    steps = ahead.batches(0, 5)
    assert next(steps).keys[0] == "0-a"
    with pytest.raises(OSError, match="no such shard"):
        next(steps)


def test_the_order_is_the_loaders(ahead):
    ahead.reorder(3)
    assert ahead._loader.turns == [3]
    assert ahead.steps_per_epoch == 10


def test_a_stage_has_the_same_bits_when_its_teacher_is_ahead(
    tmp_path, tiny_shards, tiny_teacher, monkeypatch, terminate_after
):
    """Also when it is stopped and goes on: the batch that was waiting is read again."""

    def joint(name: str) -> list[dict]:
        request = Request("tiny", str(tmp_path / name), overrides="schedule.fine.epochs=2")
        url = train.run(request, stage="joint", shards=tiny_shards, teacher=tiny_teacher)
        points = json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]
        return [{k: v for k, v in point.items() if k != "samples_per_second"} for point in points]

    def with_targets_ahead(method, loader, targets, plan, session):
        made = TargetsAhead(loader, targets, CPU)
        run_phase(method, made, made.targets, plan, session)

    expected = joint("plain")
    monkeypatch.setattr(training, "run_phase", with_targets_ahead)
    assert joint("ahead") == expected
    terminate_after(4)
    with pytest.raises(Interrupted):
        joint("stopped")
    assert joint("stopped") == expected


@dataclass
class Inner:
    maps: dict[str, Tensor]


@dataclass
class Outer:
    scale: Tensor
    inner: Inner
    taps: list[Tensor]
    name: str = "x"
    nothing: None = None


def test_every_tensor_of_nested_targets_is_found():
    """One that were missed could be overwritten while a loss reads it, on a GPU and now and then."""
    one, two, three, four = (torch.tensor(float(n)) for n in range(4))
    found = list(tensors_in(Outer(one, Inner({"P2": two}), [three, four])))
    assert [x.item() for x in found] == [0.0, 1.0, 2.0, 3.0]
    assert not list(tensors_in(("a", 1, None, Outer)))
