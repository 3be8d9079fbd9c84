"""runtime.compile changes no artifact's place and no number but by rounding, also in the middle of a stage."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch

from cmapkd_core.errors import Interrupted
from cmapkd_core.models.compiled import compiled_blocks
from cmapkd_core.request import Request
from cmapkd_core.stages import train, training
from cmapkd_core.stages.artifact import Artifact

SIX = "schedule.fine.epochs=2 runtime.shares_every=4"
TRACED = partial(torch.compile, backend="aot_eager")  # tests/models/test_compiled.py


@pytest.fixture(
    params=[
        pytest.param(TRACED, id="traced", marks=pytest.mark.heavy),
        pytest.param(None, id="inductor", marks=pytest.mark.slow),
    ]
)
def _compiler(request, monkeypatch, one_thread, own_signals):
    torch._dynamo.reset()
    if request.param:
        monkeypatch.setattr(training, "compiled_blocks", partial(compiled_blocks, compiler=request.param))
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_compiler")
def test_a_stage_goes_on_compiled_from_a_checkpoint_of_one_that_was_not(
    tmp_path, tiny_shards, tiny_teacher, terminate_after
):
    def joint(name: str, compiled: str) -> str:
        request = Request("tiny", str(tmp_path / name), overrides=f"{SIX} runtime.compile={compiled}")
        return train.run(request, stage="joint", shards=tiny_shards, teacher=tiny_teacher)

    def points(url: str) -> list[dict]:
        return json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]

    plain = joint("plain", "false")
    terminate_after(4)
    with pytest.raises(Interrupted):
        joint("both", "false")
    both = joint("both", "true")
    assert both.rpartition("/")[2] == plain.rpartition("/")[2]
    expected, found = points(plain), points(both)
    assert [p["step"] for p in found] == list(range(1, 11))
    for one, other in zip(found, expected, strict=True):
        for kind in ("terms", "shares"):
            assert one[kind].keys() == other[kind].keys()
            for name, value in other[kind].items():
                assert math.isclose(one[kind][name], value, rel_tol=1e-3, abs_tol=1e-5), (one["step"], name)
