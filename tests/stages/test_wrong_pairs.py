"""data.noise: students meet the wrong pairs, the teacher does not, and tables say which they were."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.data.wrong_captions import caption_owners
from cmapkd_core.fingerprints import reads
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.statistics import roc_area

NOISE = "optim.batch=29 data.noise=0.3"


def test_tables_say_who_was_wrong_and_stages_how_they_were_weighed(tmp_path, train_tiny, tiny_shards, capsys):
    warm = train_tiny(tmp_path, "warmup", "none", NOISE)
    alsn = Artifact.open(train_tiny(tmp_path, "alsn", "none", NOISE, init=warm))
    stats, weights = (
        pq.read_table(Artifact.open(warm).fetch("sample_stats.parquet")),
        pq.read_table(alsn.fetch("weights.parquet")),
    )
    shards = open_shards(Artifact.open(tiny_shards))
    owners = caption_owners(
        shards, "train", pc.indices_nonzero(pc.is_valid(shards.table("train")["key"])).to_numpy(), 0.3
    )
    wrong = {key for i, key in enumerate(shards.keys("train")) if owners[i] != i}
    assert len(wrong) == 26  # of 87
    for table in (stats, weights):
        assert dict(zip(table["key"].to_pylist(), table["wrong_caption"].to_pylist(), strict=True)) == {
            key: key in wrong for key in table["key"].to_pylist()
        }
    found = alsn.manifest["metrics"]
    theirs, ours = (weights.filter(pc.equal(weights["wrong_caption"], wrong)) for wrong in (True, False))
    assert found["wrong/pairs"] == len(theirs) > 0
    for name in ALL_LEVELS:
        assert found[f"wrong/weight/{name}"] == pytest.approx(pc.mean(theirs[f"w_{name}"]).as_py(), rel=1e-5)
        above = [(w > r) + (w == r) / 2 for w in column(theirs, name) for r in column(ours, name)]
        assert found[f"wrong/auc/{name}"] == pytest.approx(sum(above) / len(above))
    assert 0 < found["wrong/entropy/vision"] < 1.3863 > found["right/entropy/text"]
    said = capsys.readouterr().out
    assert f"alsn: {len(theirs)} pairs have another's caption (data.noise); mean entropy" in said
    areas = {name: found[f"wrong/auc/{name}"] for name in ALL_LEVELS}
    best = max(areas, key=lambda name: abs(areas[name] - 0.5))
    assert f"the weight of {best} tells them apart best, area under the ROC curve {areas[best]:.2f}" in said


def column(table, level):
    return table[f"w_{level}"].to_pylist()


def test_the_area_of_what_is_told_apart_and_of_what_is_not():
    low, high, both = torch.tensor([0.1, 0.2]), torch.tensor([0.7, 0.8, 0.9]), torch.tensor([0.2, 0.7])
    assert (roc_area(high, low), roc_area(low, high), roc_area(both, both)) == (1.0, 0.0, 0.5)
    assert roc_area(torch.tensor([0.2]), torch.tensor([0.1, 0.2, 0.3, 0.4])) == 0.375  # above one, level with one


def test_the_data_set_and_the_teacher_are_those_of_right_pairs():
    noisy, clean = resolve("bench", overrides="data.noise=0.3"), resolve("bench")
    for stage in ("prepare", "teacher"):
        assert reads(noisy, stage) == reads(clean, stage)
    for stage in ("warmup", "alsn", "joint"):
        assert reads(noisy, stage) == reads(clean, stage) | {"data.noise": 0.3}
