"""Students whose lower quarters are frozen: no method and no phase moves them, and all above is trained."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cmapkd_core.models.build import build, load_model
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact

FROZEN = "optim.batch=29 runtime.shares_every=1 schedule.frozen_quarters=2"


@pytest.mark.parametrize("row", ["none", "fitnet", "promptkd", "llava_kd", "tinyclip"])
def test_no_method_moves_what_is_frozen(tmp_path, train_tiny, row):
    artifact, recipe = Artifact.open(train_tiny(tmp_path, "warmup", row, FROZEN)), resolve("tiny", row)
    folder = "student" if row == "promptkd" else "model"
    before, after = build(recipe.student, recipe.seed, tmp_path), load_model(artifact.fetch_folder(folder))
    state, frozen = before.state_dict(), before.before(1)
    moved = {name for name, x in after.state_dict().items() if not torch.equal(x, state[name])}
    assert not moved & frozen
    trained = before.before(3) - frozen
    towers = ("model.visual.",) if row == "promptkd" else ("model.",)
    assert {name for name in trained if name.startswith(towers)} <= moved


def test_levels_are_of_use_as_far_as_they_move_what_is_trained(tmp_path, train_tiny):
    """Captions' levels do not meet: the two of frozen taps reach nothing. Those of pictures hear the coarser ones."""
    table = pq.read_table(Artifact.open(train_tiny(tmp_path, "warmup", "none", FROZEN)).fetch("sample_stats.parquet"))
    used = {
        name: bool(np.any(table[f"u_{name}"].to_numpy())) for name in ("P2", "P3", "P4", "P5", "L1", "L2", "L3", "L4")
    }
    assert used == {name: name not in ("L1", "L2") for name in used}


def test_a_row_of_random_weights_freezes_none():
    assert resolve("bench", "scratch").schedule.frozen_quarters == 0
    assert resolve("bench", "finetune").schedule.frozen_quarters == 1
