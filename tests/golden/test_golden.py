"""Training gives the losses that it gave before, step by step."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def regenerate(command):
    return command("regenerate")


@pytest.fixture(autouse=True)
def _quiet(one_thread: None, own_signals: None) -> None:
    """Stages take over SIGTERM; sums in another order differ in the last bits."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def test_every_curve_has_its_file(regenerate):
    assert names() == sorted(regenerate.CURVES)


def test_no_two_rows_have_one_curve(regenerate):
    """Or a row could lose its changes without a curve that moves."""
    curves: dict[str, set[str]] = {}
    for name in names():
        curves.setdefault((FOLDER / f"{name}.json").read_text(), set()).add(name)
    assert [alike for alike in curves.values() if len(alike) > 1] == regenerate.SAME


@pytest.mark.parametrize("name", names())
def test_curve(tmp_path, regenerate, tiny_shards, tiny_teacher, name):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    found = regenerate.run_curve(name, str(tmp_path), tiny_shards, tiny_teacher)
    assert len(found) == len(expected) >= 5
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6), f"step {step}"
