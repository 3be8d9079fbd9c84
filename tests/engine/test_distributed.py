"""Two gloo processes do what one does with the same global batch.

Compared on the rows without ALSN: its dropout has a stream per rank, so the processes draw other masks than
one process would. With it two processes are held to what must hold anyhow: SIGTERM on one rank stops both at
the same step, and the run goes on bit for bit.
"""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core.request import Request
from cmapkd_core.stages import train
from cmapkd_core.stages.artifact import Artifact

pytestmark = pytest.mark.heavy

SIX = "optim.batch=14 runtime.checkpoint_every=100"
ROUNDED = {"oracle_alsn": 5e-4}  # its weights are from differences of distances that are nearly equal


@pytest.fixture(scope="module")
def pair(tmp_path_factory, start_ranks, tiny_shards, tiny_teacher, damaged_shards) -> list[dict]:
    """What each of the two processes reports."""
    root = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("two_ranks.py")
    damaged = [f"{bound}={damaged_shards(bound)}" for bound in (0.5, 0.05)]
    processes = start_ranks(script, str(root), tiny_shards, tiny_teacher, *damaged)
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [json.loads((root / f"rank{rank}.json").read_text()) | {"said": said[rank]} for rank in range(2)]


def weights(url: str) -> dict[str, torch.Tensor]:
    artifact = Artifact.open(url)
    return load_file(artifact.fetch("model/model.safetensors")) | load_file(artifact.fetch("method.safetensors"))


def points(url: str) -> list[dict]:
    return json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]


@pytest.mark.parametrize(
    "row",
    [
        *("no_alsn", "kd", "kd_standardise", "finetune", "fitnet_joint", "promptkd", "c2kd", "llava_kd", "clip_kd"),
        *("clip_rd", "mobileclip", "oracle_alsn", "with_bank selector.kind=fixed", "with_rd selector.kind=fixed"),
        "no_alsn method.weights.xrd=1 selector.kind=fixed",
        "one_map method.weights.fd=1 selector.kind=fixed",
    ],
)
def test_two_processes_have_the_losses_and_the_weights_of_one(tmp_path, pair, tiny_shards, tiny_teacher, row):
    """Each of them with its pairs at once, and with one pair after the other.

    AdamW makes much of a gradient that is little more than rounding, and parts are summed in another order.
    """
    name, _, fields = row.partition(" ")
    request = Request("tiny", str(tmp_path), ablation=name, overrides=f"{SIX} {fields}")
    alone = train.run(request, stage="joint", shards=tiny_shards, teacher=tiny_teacher)
    for name, bound in ((row, 1e-5), (f"{row} in parts", 5e-5)):
        url = pair[0].get(name, pair[0][row])
        for one, two in zip(points(alone), points(url), strict=True):
            near = ROUNDED.get(row, 1e-5)
            assert two["terms"] == pytest.approx(one["terms"], rel=near, abs=near)
            assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=10 * near)
            assert two["stats"] == pytest.approx(one["stats"], abs=ROUNDED.get(row, 1e-6))
        ours, theirs = weights(alone), weights(url)
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            assert torch.allclose(x, theirs[name], rtol=0, atol=ROUNDED.get(row, bound)), name


def test_corrupt_pairs_of_both_processes_are_counted_and_listed(tmp_path, pair, damaged_shards):
    def listed(url: str) -> tuple[list[dict], float]:
        artifact = Artifact.open(url)
        lines = artifact.fetch("quarantine.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda line: line["key"]), artifact.manifest["metrics"]["replaced"]

    request = Request("tiny", str(tmp_path), ablation="finetune", overrides=f"{SIX} data.quarantine_bound=0.5")
    alone = train.run(request, stage="joint", shards=damaged_shards(0.5), teacher="")
    found, count = listed(pair[0]["damaged"])
    assert (found, count) == listed(alone)
    assert count == len(found) == len({line["key"] for line in found}) > 2


def test_corrupt_pairs_of_both_processes_count_against_the_bound(pair):
    """Four of the 87 may be corrupt, and neither process alone meets more."""
    first, second = (report["bad"] for report in pair)
    assert first == second
    assert re.match(r"[56] of 87 training samples are corrupt, more than data\.quarantine_bound=0\.05 allows", first)


def test_a_checkpoint_that_rank_0_could_not_write_stops_both(pair):
    first, second = (report["unsaved"] for report in pair)
    assert first.startswith("cannot write")
    assert second == f"rank 0 could not write a checkpoint: {first}"


def test_the_selector_learns_from_one_table_that_both_processes_read(pair):
    assert pair[0]["alsn"] == pair[1]["alsn"]
    artifact = Artifact.open(pair[0]["alsn"])
    tables = [pq.read_table(artifact.fetch(f"{name}.parquet")) for name in ("sample_stats", "weights")]
    assert tables[0].num_rows == tables[1].num_rows == 84  # 87 pairs in batches of 14
    assert len(points(pair[0]["alsn"])) == 12
    assert not list(Artifact.open(artifact.manifest["inputs"]["init"]["url"]).cache.glob("columns-*"))


def test_sigterm_on_one_rank_stops_both_at_the_same_step_and_the_run_goes_on_bit_for_bit(pair):
    assert [p["stopped"] for p in pair] == ["joint was asked to stop; saved at phase fine, step 3"] * 2
    straight, resumed = weights(pair[0]["none"]), weights(pair[0]["resumed"])
    assert all(torch.equal(x, resumed[name]) for name, x in straight.items())


def test_rank_0_s_clock_says_when_both_save(pair):
    """The straight run of the test before has made these; no result tells of it."""
    assert [p["saves"] for p in pair] == [[4, 6]] * 2  # with the first one after 2.5 minutes of a minute each, and last
    assert Artifact.open(pair[0]["none"]).manifest["metrics"]["checkpoints/number"] == 2
    assert "joint: 2 checkpoints held training up for" in pair[0]["said"]


def test_only_the_first_rank_talks(pair):
    assert "joint: done in" in pair[0]["said"]
    assert "joint" not in pair[1]["said"]


def test_a_batch_that_the_processes_cannot_share_is_refused_on_both(pair):
    for report in pair:
        assert "optim.batch=1 is smaller than the 2 processes" in report["small"]
        assert "optim.batch=15 does not divide over 2 processes" in report["odd"]


def test_collectives(pair):
    for rank, report in enumerate(pair):
        found = report["collectives"]
        assert found["gathered"] == [1, 1, 2, 2]
        # both ranks computed the same sum: their gradients for a row add up, and DDP takes the mean
        assert found["gradient"] == [[0, 2], [4, 6]][rank]
        assert found["any"] == [False, True, True]
        assert found["mean"] == [0.5, 3.0]
        assert found["broadcast"] == "from 0"
        assert found["objects"] == [0, 10]
