"""SIGTERM in every stage: exit code 143, nothing left but what is gone on with, and then the equal artifact."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).with_name("stopping.py")
STAGES = ("prepare", "teacher", "joint", "evaluate", "levels", "report", "export")
LONG = STAGES[-2:]  # with --faults all alone


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: Any, tiny_shards: str, tiny_teacher: str, tiny_warmup: str
) -> dict[str, list[dict[str, Any]]]:
    """Of each stage what became of its stops; one process for all, for what they import."""
    shards, teacher = ["--shards", tiny_shards], ["--teacher", tiny_teacher]
    artifacts = ["--artifacts", "shards", tiny_shards, "teacher", tiny_teacher, "warmup", tiny_warmup]
    stages = {
        "prepare": ["prepare"],
        "teacher": ["teacher", *shards, "--overrides", "teacher_fit.views=2"],
        "joint": ["train", "--stage", "joint", *shards, *teacher, "--init", tiny_warmup],
        "evaluate": ["evaluate", *shards, "--model", tiny_warmup],
        "levels": ["levels", *shards, *teacher, "--joint", tiny_warmup],
        "export": ["export", *shards, "--model", tiny_warmup],
        "report": ["report", "--run", "stopped", *artifacts],
    }
    folder = tmp_path_factory.mktemp("stopped")
    all_ = pytestconfig.getoption("--faults") == "all"
    asked = {name: argv for name, argv in stages.items() if all_ or name not in LONG}
    (folder / "stages.json").write_text(json.dumps(asked))
    with contextlib.closing(
        Forked(str(SCRIPT), [str(folder), "7" if all_ else "1"], {"OMP_NUM_THREADS": "1"})
    ) as process:
        said, _ = process.communicate(timeout=3600)
        assert process.returncode == 0, said
    print(said)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", STAGES)
def test_a_stopped_stage_leaves_nothing_and_ends_as_one_that_was_not(stopped, tally: Any, name: str) -> None:
    if name not in stopped:
        pytest.skip("with --faults all")
    rows = stopped[name]
    assert all(row["files"] for row in rows)
    ends = [row["code"] == 143 and not row["left"] and row["again"] == 0 and row["equal"] for row in rows]
    note = "; ".join(str(row) for row, well in zip(rows, ends, strict=True) if not well)
    tally(f"SIGTERM in {name}", "exit 143, nothing left, then the same artifact", len(rows), sum(ends), note)
