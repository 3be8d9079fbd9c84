"""benchmarks/gpu.py at tiny sizes on a CPU: the same code as on a GPU, and a table that cannot be taken for a GPU's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import correct, machine, steps, table
from benchmarks.gpu_parts.table import Line
from cmapkd_core.recipes import BASELINES


@pytest.fixture(autouse=True)
def _alone(one_thread: None, own_signals: None) -> None:
    """A step listens for SIGTERM."""


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")][2:]


@pytest.mark.heavy
def test_steps_and_their_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "there" / "gpu.json"
    assert gpu.main(["--tiny", "--only", "step", "shares", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "run on: CPU, tiny sizes: says nothing about GPUs" in text
    told = json.loads(out.read_text())
    assert told["machine"]["tiny"] is True
    lines = [Line(**line) for line in told["lines"]]
    assert [row[2] for row in cells(text[text.index("| | |") :])] == [line.found for line in lines]
    of_steps = {line.what.partition(",")[2].strip() or line.what: line for line in lines if line.section == "step"}
    assert len(of_steps) == 2 + len(steps.ROWS) + 1
    # Of FLOP, which are no timing: a stored teacher costs less than a live one, and none is least.
    flop = {
        what: float(line.beside.partition("(")[2].partition(" ")[0])
        for what, line in of_steps.items()
        if "(" in line.beside
    }
    assert flop["no teacher, 4 pairs"] <= 1.0  # less, where captions are shorter than the context
    assert flop["no teacher, 4 pairs"] <= flop["coarse, 4 pairs"] <= flop["medium, 4 pairs"] < flop["joint, 4 pairs"]
    assert flop["joint, 4 pairs"] < flop["joint, live teacher, 4 pairs"]
    shares = [float(line.found.removesuffix("%")) for line in lines if line.section == "shares"]
    assert len(shares) == 6
    assert sum(shares) == pytest.approx(100, abs=4)


@pytest.mark.heavy
def test_what_is_checked_holds_and_what_does_not_is_told(tmp_path, monkeypatch, capsys) -> None:
    checks = correct.Correct(machine.here(tiny=True), tmp_path, few=True)
    lines = [*checks.curves(), *checks.resume(), *checks.evaluated()]
    assert [line.holds for line in lines] == [True] * 5
    assert lines[2].found == "same bits"
    kept = checks.golden.read_file(correct.ROW)
    kept[3]["intra"] += 0.01
    monkeypatch.setattr(checks.golden, "read_file", lambda name: kept)
    monkeypatch.setattr(
        gpu, "sections", lambda machine, args, root: {"correct": [lambda: iter([*checks.curves()][:1])]}
    )
    assert gpu.main(["--only", "correct"]) == 1
    (row,) = cells(capsys.readouterr().out.partition("run on")[2])
    assert row[-1] == "**no**"
    assert 1e-3 < float(row[2].removesuffix(" apart")) <= 1e-2  # 0.01 of a term of 1.4


def test_what_fails_is_a_line_and_the_rest_goes_on(monkeypatch, capsys) -> None:
    def broken():
        yield Line("step", "first", "1")
        raise torch.OutOfMemoryError("of 80 GiB\nnothing is left")

    monkeypatch.setattr(
        gpu, "sections", lambda *given: {"step": [broken], "ranks": [lambda: iter([Line("ranks", "joined", "2")])]}
    )
    assert gpu.main([]) == 1
    rows = cells(capsys.readouterr().out)
    assert [row[1:3] for row in rows] == [
        ["first", "1"],
        ["ended early", "failed: OutOfMemoryError: of 80 GiB nothing is left"],
        ["joined", "2"],
    ]
    assert [row[-1] for row in rows] == ["", "**no**", ""]


def test_a_step_that_does_not_fit_is_told_and_the_next_is_measured(monkeypatch) -> None:
    cost = steps.Cost(1.0, 2e12, 2048.0)

    def ours(pair, what, size, count):
        if "joint" in what:
            raise torch.OutOfMemoryError
        return cost

    monkeypatch.setattr(steps, "ours", ours)
    monkeypatch.setattr(steps, "peer", lambda *given, **more: cost)
    pair = type("Pair", (), {"machine": machine.here(tiny=True), "precision": "fp32"})()
    found = {line.what: line.found for line in steps.measured(pair, [8], 1)}
    assert found["ours, joint, 8 pairs"] == "does not fit into memory"
    assert found["ours, coarse, 8 pairs"] == "1000.0 ms, 8 pairs/s, 2 TFLOP/s, 2.0 GiB"


def test_on_a_gpu_the_table_says_which_and_holds_it_to_the_goals() -> None:
    cost = steps.Cost(0.5, 2.5e12, 1024.0)
    real = machine.Machine(torch.device("cuda", 0), tiny=False)
    line = steps.shown(real, "ours, joint, live teacher", 32, cost, steps.Cost(0.25, 1e12, 512.0), 1e13)
    assert line.beside == "2.00 of a plain step (2.50 in FLOP), 50 % of the product"
    assert (line.goal, line.holds) == ("<= 2.45 in FLOP", False)


def test_cells_cannot_break_the_table() -> None:
    shown = table.markdown("run on", [Line("a", "x|y", "1"), Line("a", "z", "2", holds=True)])
    assert cells(shown) == [["a", "x/y", "1", "", "", ""], ["", "z", "2", "", "", "ok"]]


@pytest.mark.heavy
def test_every_method_has_its_golden_curve_there_too(tmp_path: Path) -> None:
    lines = [*correct.Correct(machine.here(tiny=True), tmp_path, few=False).curves()]
    assert len(lines) == 2 + len(BASELINES)
    assert not [line for line in lines if not line.holds]


@pytest.mark.slow
def test_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--tiny"]) == 0
    rows = cells(capsys.readouterr().out.partition("run on")[2])
    assert len(rows) > 30
    assert not [row for row in rows if "failed" in row[2]]
