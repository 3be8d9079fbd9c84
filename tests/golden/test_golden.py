"""Training gives the losses that it gave before, step by step."""

import json
import runpy
from pathlib import Path

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.recipes import ABLATIONS


@pytest.fixture(scope="module")
def regenerate(command):
    return command("regenerate")


@pytest.fixture(autouse=True)
def _quiet(one_thread: None, own_signals: None) -> None:
    """Stages take over SIGTERM; sums in another order differ in the last bits."""


CURVES = runpy.run_path(str(Path(__file__).with_name("regenerate.py")))["curves"]()


def test_no_file_is_of_no_curve(regenerate):
    left = {path.stem for path in regenerate.FOLDER.glob("*.json")} - {*CURVES}
    assert not left, f"remove {left}, or write the row that they are of"


def test_a_missing_curve_names_the_command_that_writes_it(regenerate, tmp_path):
    with pytest.raises(InputError) as raised:
        regenerate.read_file("kd", tmp_path)
    assert str(raised.value) == "'kd' has no golden curve yet: python tests/golden/regenerate.py kd"
    assert regenerate.chosen(["kd"]) == ("kd",)


def test_without_a_name_nothing_is_written(regenerate, tmp_path, monkeypatch, capsys):
    """It once wrote all files anew, for `--help` too."""
    monkeypatch.setattr(regenerate, "run_curve", None)
    assert regenerate.main([]) == 0
    assert "each has its file\nnothing is written" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^0$"):
        regenerate.main(["--help"])
    assert regenerate.main(["kdd"]) == 2
    assert "unknown curve 'kdd': did you mean 'kd'?" in capsys.readouterr().err
    (tmp_path / "old.json").touch()
    assert "of no row, to be removed: old.json" in regenerate.plan(tmp_path)
    assert f"without a file: python tests/golden/regenerate.py {' '.join(CURVES)}" in regenerate.plan(tmp_path)


def test_a_file_stays_where_only_last_digits_differ(regenerate, tmp_path):
    curve = [{"task": 2.0, "total": 0.2}, {"task": 1.0, "total": 0.1}]
    assert regenerate.write("kd", curve, tmp_path) == "kd.json: written"
    kept = (tmp_path / "kd.json").read_text()
    near = [{name: value * 1.0005 for name, value in step.items()} for step in curve]
    assert regenerate.write("kd", near, tmp_path) == "kd.json: as it was"
    assert (tmp_path / "kd.json").read_text() == kept
    for other in ([curve[0], {"task": 1.002, "total": 0.1}], curve[:1], [{"task": 2.0}, curve[1]]):
        assert regenerate.write("kd", other, tmp_path) == "kd.json: has moved, say why in the commit"
        assert regenerate.read_file("kd", tmp_path) == other
        regenerate.write("kd", curve, tmp_path)


def test_no_two_rows_have_one_curve(regenerate):
    """Or a row could lose its changes without a curve that moves."""
    curves: dict[str, set[str]] = {}
    for name in CURVES:
        curves.setdefault(json.dumps(regenerate.read_file(name)), set()).add(name)
    assert sorted(map(sorted, (alike for alike in curves.values() if len(alike) > 1))) == regenerate.SAME


# The ablations change fields of the full method alone, but for these.
SOME = {"no_alsn", "oracle_alsn", "one_stage", "no_pyramid"}


def marked(name: str) -> object:
    """Every method in each run of the tests, the other ablations with `make test-heavy`."""
    return pytest.param(name, marks=pytest.mark.heavy) if name in {*ABLATIONS} - SOME else name


@pytest.mark.parametrize("name", [*map(marked, CURVES)])
def test_curve(tmp_path, regenerate, tiny_shards, tiny_teacher, name):
    expected = regenerate.read_file(name)
    found = regenerate.run_curve(name, str(tmp_path), tiny_shards, tiny_teacher)
    assert len(found) == len(expected) >= 5
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == pytest.approx(theirs, rel=regenerate.RELATIVE, abs=regenerate.ABSOLUTE), f"step {step}"
