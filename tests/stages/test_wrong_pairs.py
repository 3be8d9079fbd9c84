"""data.noise: students meet the wrong pairs, the teacher does not, and tables say which they were."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.data.wrong_captions import caption_owners
from cmapkd_core.fingerprints import reads
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards

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
    theirs = weights.filter(weights["wrong_caption"])
    assert found["wrong/pairs"] == len(theirs) > 0
    for name in ALL_LEVELS:
        assert found[f"wrong/weight/{name}"] == pytest.approx(pc.mean(theirs[f"w_{name}"]).as_py(), rel=1e-5)
    assert 0 < found["wrong/entropy/vision"] < 1.3863 > found["right/entropy/text"]
    assert f"alsn: {len(theirs)} pairs have another's caption (data.noise); mean entropy" in capsys.readouterr().out


def test_the_data_set_and_the_teacher_are_those_of_right_pairs():
    noisy, clean = resolve("bench", overrides="data.noise=0.3"), resolve("bench")
    for stage in ("prepare", "teacher"):
        assert reads(noisy, stage) == reads(clean, stage)
    for stage in ("warmup", "alsn", "joint"):
        assert reads(noisy, stage) == reads(clean, stage) | {"data.noise": 0.3}
