"""data.unpaired in stages: towers run on the pictures in parts or at once, live or stored, and a cut run goes on."""

import json

import pytest

from cmapkd_core.errors import Interrupted
from cmapkd_core.fingerprints import reads
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import teacher, train, training
from cmapkd_core.stages.artifact import Artifact

# 43 pairs and 44 pictures: three updates an epoch.
HALF = "optim.batch=14 data.unpaired=0.5 schedule.fine.epochs=2 method.weights.fd=1 runtime.checkpoint_every=100"


def points(url: str) -> list[dict[str, float]]:
    return [p["terms"] for p in json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]]


def close(ours: list[dict[str, float]], theirs: list[dict[str, float]], bound: float = 1e-5) -> bool:
    return len(ours) == len(theirs) == 6 and all(
        a == pytest.approx(b, rel=bound, abs=bound) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def at_once(tmp_path, train_tiny) -> str:
    return train_tiny(tmp_path / "once", "joint", "no_alsn", HALF)


def test_in_parts_and_after_a_cut_pictures_train_as_at_once(tmp_path, train_tiny, at_once, terminate_after, digests):
    assert close(
        points(train_tiny(tmp_path / "parts", "joint", "no_alsn", f"{HALF} optim.accumulate=7")), points(at_once)
    )
    terminate_after(4)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "cut", "joint", "no_alsn", HALF)
    assert digests(train_tiny(tmp_path / "cut", "joint", "no_alsn", HALF)) == digests(at_once)


def test_stored_levels_of_pictures_are_those_of_a_live_teacher(tmp_path, tiny_shards, monkeypatch):
    views = f"{HALF} teacher_fit.views=2 teacher_fit.store=levels"
    request = Request("tiny", str(tmp_path), ablation="no_alsn", overrides=views)
    given = {"shards": tiny_shards, "teacher": teacher.run(request, shards=tiny_shards)}
    stored = points(train.run(request, stage="joint", **given))
    monkeypatch.setattr(training, "open_cache", lambda context: None)
    live = Request("tiny", str(tmp_path / "live"), ablation="no_alsn", overrides=views)
    assert close(stored, points(train.run(live, stage="joint", **given)), 1e-3)


def test_without_weight_and_in_other_methods_the_pairs_train_alone(tmp_path, train_tiny, at_once):
    pairs = train_tiny(tmp_path / "pairs", "joint", "no_alsn", f"{HALF} method.unpaired=0")
    ours, theirs = points(at_once)[0], points(pairs)[0]
    assert {name for name in ours if ours[name] != pytest.approx(theirs[name])} == {"intra", "fd"}
    finetune = train_tiny(tmp_path / "finetune", "joint", "finetune", HALF)
    assert points(finetune)[0]["task"] == pytest.approx(theirs["task"], rel=1e-4)  # the same pairs, and no others


def test_the_data_set_and_the_teacher_are_those_of_all_captions():
    few, every = resolve("bench", "tenth_captions"), resolve("bench", overrides="schedule.times=10")
    for stage in ("prepare", "teacher"):
        assert reads(few, stage) == reads(every, stage)
    assert reads(few, "joint") == reads(every, "joint") | {"data.unpaired": 0.9}
    kd = resolve("bench", "kd", "method.unpaired=0 data.unpaired=0.9")
    assert "method.unpaired" not in reads(kd, "joint")
