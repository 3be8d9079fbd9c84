"""Training from cached teacher targets: the same losses as beside the teacher, which then never runs."""

import dataclasses
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core import parallel, storage
from cmapkd_core.catalog import StoreEntry
from cmapkd_core.data import order
from cmapkd_core.data.fixed_crops import CACHE_FOLDER
from cmapkd_core.data.shard_cache import GB
from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.fingerprints import reads
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import require
from cmapkd_core.methods.kd import Kd
from cmapkd_core.models.build import load_model, save_model
from cmapkd_core.models.frozen_teacher import Embeddings, LevelTargets, Teacher
from cmapkd_core.recipes import BASELINES, ROWS, resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, teacher, teacher_cache, train, training
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import LEVELS_STATE

VIEWS = "teacher_fit.views=2"
LEVELS = f"{VIEWS} teacher_fit.store=levels"
SIX = f"{VIEWS} optim.batch=14 runtime.checkpoint_every=100 runtime.shares_every=100"
ON_EMBEDDINGS = [row for row in BASELINES if METHODS[resolve("tiny", row).method.name].targets == "embeddings"]


@pytest.fixture(scope="module")
def storing(tmp_path_factory, tiny_shards) -> str:
    """A teacher with stored embeddings of two crops a picture."""
    torch.set_num_threads(1)
    return teacher.run(Request("tiny", str(tmp_path_factory.mktemp("views")), overrides=VIEWS), shards=tiny_shards)


@pytest.fixture(scope="module")
def with_levels(tmp_path_factory, tiny_shards) -> str:
    """A teacher whose levels are stored too."""
    torch.set_num_threads(1)
    return teacher.run(Request("tiny", str(tmp_path_factory.mktemp("levels")), overrides=LEVELS), shards=tiny_shards)


def joint(root, row, shards, fitted, overrides=SIX, **more) -> Artifact:
    request = Request("tiny", str(root), ablation=row, overrides=overrides)
    return Artifact.open(train.run(request, stage="joint", shards=shards, teacher=fitted, **more))


def losses(artifact: Artifact) -> list[dict[str, float]]:
    return [point["terms"] for point in json.loads(artifact.fetch("history.json").read_text())["points"]]


def test_these_methods_train_on_embeddings_alone():
    assert set(ON_EMBEDDINGS) == {"kd", "promptkd", "promptkd_cls", "clip_kd", "tinyclip", "mobileclip"}


@pytest.mark.parametrize("row", ON_EMBEDDINGS)
def test_losses_are_those_beside_the_running_teacher_on_the_same_crops(
    tmp_path, tiny_shards, storing, monkeypatch, row
):
    with monkeypatch.context() as online:
        online.setattr(training, "open_cache", lambda context: None)
        expected = losses(joint(tmp_path / "online", row, tiny_shards, storing))

    def never(*given):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(Teacher, "targets", never)
    found = losses(joint(tmp_path / "stored", row, tiny_shards, storing))
    assert len(found) == len(expected) == 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("row", ["none", "no_pyramid", "no_hierarchy", "seed_alsn", "kd"])
def test_levels_come_from_the_store_too(tmp_path, tiny_shards, with_levels, monkeypatch, row):
    """Warm-up with its table of the samples' levels, and joint; laterals are stored in 16 bits."""
    six = f"{SIX} teacher_fit.store=levels"

    def both(name):
        request = Request("tiny", str(tmp_path / name), ablation=row, overrides=six)
        given = {"shards": tiny_shards, "teacher": with_levels}
        warm = train.run(request, stage="warmup", **given)
        return [Artifact.open(warm), Artifact.open(train.run(request, stage="joint", init=warm, **given))]

    with monkeypatch.context() as online:
        online.setattr(training, "open_cache", lambda context: None)
        expected = both("online")
    monkeypatch.setattr(Teacher, "targets", lambda *given: pytest.fail("the teacher ran"))
    for ours, theirs in zip(both("stored"), expected, strict=True):
        for one, other in zip(losses(ours), losses(theirs), strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("row", ["none", "finetune", "c2kd"])
def test_other_methods_run_on_the_same_crops(tmp_path, tiny_shards, storing, monkeypatch, row):
    """One that trains on more than embeddings has the teacher beside it, one without a teacher none."""
    seen: dict[str, list] = {}
    original = training.train_loader

    def watched(*given, **settings):
        loader = original(*given, **settings)
        seen.setdefault(current, []).extend(b.images["student"] for b in loader.batches(0, 3))
        return loader

    monkeypatch.setattr(training, "train_loader", watched)
    for current in ("kd", row):
        joint(tmp_path, current, tiny_shards, storing)
    assert all(torch.equal(a, b) for a, b in zip(seen["kd"], seen[row], strict=False))


LIVE = "optim.batch=14 teacher_fit.views=0"


@pytest.mark.parametrize("kind", ["live", "embeddings", "levels"])
def test_a_method_that_asks_for_more_than_its_row_says_fails_alike_live_and_cached(
    tmp_path, request, tiny_shards, tiny_teacher, monkeypatch, kind
):
    """Live it had the towers' outputs too, and failed the day somebody set teacher_fit.views."""
    fitted = (
        tiny_teacher if kind == "live" else request.getfixturevalue({"embeddings": "storing"}.get(kind, "with_levels"))
    )
    overrides = {"live": LIVE, "embeddings": SIX, "levels": f"{SIX} teacher_fit.store=levels"}[kind]

    original = Kd.forward

    def asks(self, batch, targets, phase, step):
        return require(targets, LevelTargets)

    def reads(self, batch, targets, phase, step):
        return require(targets, Embeddings).levels

    for number, (forward, told) in enumerate(
        {
            asks: "the method asks for LevelTargets of its teacher, and has its Embeddings by its row of METHODS in",
            reads: "the method reads 'levels' of its teacher targets, which are Embeddings by its row of METHODS in",
        }.items()
    ):
        monkeypatch.setattr(Kd, "forward", forward)
        with pytest.raises((InputError, AttributeError), match=told):
            joint(tmp_path / str(number), "kd", tiny_shards, fitted, overrides)
    # the way out
    monkeypatch.setattr(Kd, "forward", lambda *given: require(given[2], LevelTargets) and original(*given))
    monkeypatch.setitem(METHODS, "kd", dataclasses.replace(METHODS["kd"], targets="levels"))
    assert len(losses(joint(tmp_path / "levels", "kd", tiny_shards, fitted, overrides))) == 6


def test_a_stopped_joint_stage_resumes_bit_for_bit(tmp_path, tiny_shards, storing, terminate_after):
    straight = joint(tmp_path / "straight", "clip_kd", tiny_shards, storing)
    terminate_after(3)
    with pytest.raises(Interrupted):
        joint(tmp_path / "cut", "clip_kd", tiny_shards, storing)
    cut = joint(tmp_path / "cut", "clip_kd", tiny_shards, storing)
    assert losses(cut) == losses(straight)
    for name in ("model/model.safetensors", "method.safetensors"):
        assert cut.manifest["outputs"][name] == straight.manifest["outputs"][name]


def test_a_store_on_s3_is_the_same(tmp_path, tiny_shards, storing, s3_root):
    remote = teacher.run(Request("tiny", s3_root, overrides=VIEWS), shards=tiny_shards)
    ours, theirs = (joint(tmp_path / name, "kd", tiny_shards, url) for name, url in {"a": remote, "b": storing}.items())
    assert losses(ours) == losses(theirs)


def test_a_part_that_was_changed_is_refused(tmp_path, tiny_shards):
    fitted = teacher.run(Request("tiny", str(tmp_path), overrides=VIEWS), shards=tiny_shards)
    (part,) = (path for path in tmp_path.glob("teacher/*/out-*/*/*.safetensors") if path.parent.name == CACHE_FOLDER)
    part.write_bytes(part.read_bytes() + b" ")
    with pytest.raises(InputError, match="was changed after it was written: run stage teacher again"):
        joint(tmp_path, "kd", tiny_shards, fitted)


def test_a_teacher_without_a_store_is_refused(tmp_path, tiny_shards, tiny_teacher):
    with pytest.raises(InputError, match=r"--teacher \S+ was made by another recipe .*\n  teacher_fit\.views: 0 -> 2"):
        joint(tmp_path, "kd", tiny_shards, tiny_teacher)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (SIX.replace("views=2", "views=3"), "teacher_fit.views: 2 -> 3"),
        (f"{SIX} data.crop_scale=0.5,1.0", r"data\.crop_scale: \[0\.9, 1\.0\] -> \[0\.5, 1\.0\]"),
    ],
)
def test_a_store_of_other_crops_is_refused_before_the_first_step(tmp_path, tiny_shards, storing, overrides, names):
    with pytest.raises(InputError, match=names):
        joint(tmp_path, "kd", tiny_shards, storing, overrides)
    assert not list(tmp_path.glob("joint/*/work/checkpoints/*"))


def test_a_store_of_other_shards_is_refused(tmp_path, storing):
    other = prepare.run(Request("tiny", str(tmp_path), overrides="data.size=97"))
    with pytest.raises(InputError, match=r"--teacher \S+ was made by another recipe .*\n  data\.size: \d+ -> 97"):
        joint(tmp_path, "kd", other, storing, f"{SIX} data.size=97")


def test_the_embeddings_are_the_teachers_and_part_by_part_they_are_the_same(
    tmp_path, tiny_shards, storing, monkeypatch, capsys
):
    """A stage that dies in the middle keeps its finished parts, and ranks share them; a damaged one is made again."""
    monkeypatch.setitem(teacher_cache.STORES, "embeddings", StoreEntry(20))
    original, done = teacher_cache.teacher_outputs, []

    def dies(context, shards, backbone, rows, progress):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(rows.start)
        return original(context, shards, backbone, rows, progress)

    def run() -> Artifact:
        return Artifact.open(teacher.run(Request("tiny", str(tmp_path), overrides=VIEWS), shards=tiny_shards))

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "teacher_outputs", dies)
        with pytest.raises(KeyboardInterrupt):
            run()
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            run()
        assert done == [40, 60]
    damaged = sorted(tmp_path.glob(f"teacher/*/work/{CACHE_FOLDER}/*-000001-*"))[0]
    flip(damaged)
    whole, found = (parts(a) for a in (Artifact.open(storing), run()))
    assert f"teacher: {damaged} is not what was saved: its pictures are asked for again\n" in capsys.readouterr().out
    assert (len(whole), len(found)) == (1, 5)
    assert whole[0]["crops/image"].shape == (87, 2, 32)
    assert whole[0]["offsets"][-1] == len(whole[0]["captions/text"]) == 174
    for name in ("crops/image", "captions/text"):
        assert torch.allclose(whole[0][name], torch.cat([part[name] for part in found]), atol=1e-6)
    assert torch.allclose(whole[0]["crops/image"].norm(dim=-1), torch.ones(87, 2), atol=1e-5)


def parts(artifact: Artifact) -> list[dict[str, torch.Tensor]]:
    return [load_file(artifact.fetch(name)) for name in sorted(artifact.files()) if name.startswith(f"{CACHE_FOLDER}/")]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def fill(tmp_path, tiny_shards, storing, monkeypatch):
    """`fill(rank, work)`: what one of two ranks does for the store, with parts of 20 pictures; gives those it asked."""
    shards = open_shards(Artifact.open(tiny_shards))
    backbone = load_model(Artifact.open(storing).fetch_folder("model"))
    asked: list[int] = []

    def part(context, shards, backbone, rows, progress):
        asked.append(rows.start)
        captions = sum(len(shards.captions("train", i)) for i in rows)
        image = torch.tensor(rows).view(-1, 1, 1).expand(-1, 2, 4)
        return {"image": image.float().clone()}, {"text": torch.ones(captions, 4)}

    monkeypatch.setitem(teacher_cache.STORES, "embeddings", StoreEntry(20))
    monkeypatch.setattr(teacher_cache, "teacher_outputs", part)
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "barrier", lambda: None)

    def run(rank: int, work: str) -> list[int]:
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        out, scratch = tmp_path / f"out{rank}", tmp_path / f"scratch{rank}"
        scratch.mkdir()
        save_model(backbone, out / "model")
        (out / LEVELS_STATE).write_text("of another test")
        asked.clear()
        recipe = resolve("tiny", overrides=VIEWS)
        teacher_cache.write_cache(Context(recipe, {}, out, scratch, None, work, "identity", print), shards, backbone)
        return list(asked)

    return run


def gathered(out):
    found = [load_file(path)["crops/image"][:, 0, 0] for path in sorted((out / CACHE_FOLDER).iterdir())]
    return torch.cat(found).tolist()


def test_ranks_share_the_parts(tmp_path, fill):
    made = {rank: fill(rank, str(tmp_path / "work")) for rank in (1, 0)}
    assert made == {1: [20, 60], 0: [0, 40, 80]}
    assert gathered(tmp_path / "out0") == list(range(87))
    assert not (tmp_path / "out1" / CACHE_FOLDER).exists()


def test_parts_that_went_up_to_s3_and_came_back_changed_are_made_again(tmp_path, s3_root, fill, capsys):
    assert fill(1, s3_root) == [20, 60]
    first, second = storage.list_files(f"{s3_root}/{CACHE_FOLDER}")
    data = storage.read_bytes(f"{s3_root}/{CACHE_FOLDER}/{first}")
    storage.write_bytes(f"{s3_root}/{CACHE_FOLDER}/{first}", data[:-1] + bytes([data[-1] ^ 1]))
    storage.delete(f"{s3_root}/{CACHE_FOLDER}/{second}")
    assert fill(0, s3_root) == [0, 40, 80, 20, 60]
    assert gathered(tmp_path / "out0") == list(range(87))
    said = capsys.readouterr().out
    assert f"teacher: {s3_root}/{CACHE_FOLDER}/{first} is not what was saved: its pictures are asked for again" in said
    assert f"teacher: part 3 is gone from {s3_root}: its pictures are asked for again" in said


def test_crops_are_read_by_every_student_and_zero_leaves_all_places_as_they_were():
    for row in ROWS:
        for stage in ("teacher", "warmup", "joint"):
            assert "teacher_fit.views" not in reads(resolve("tiny", row), stage)
            assert reads(resolve("tiny", row, VIEWS), stage)["teacher_fit.views"] == 2
    with pytest.raises(InputError, match="teacher_fit.views=-1"):
        resolve("tiny", "none", "teacher_fit.views=-1")


def test_pairs_and_levels_stream_from_s3_within_a_bound(tmp_path, tiny_shards, with_levels, s3_root, monkeypatch):
    """Losses to the bit; the bound that the refusal names is kept to."""
    monkeypatch.setattr(order, "BLOCK_SHARDS", 1)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    given = {name: put_to_s3(url, s3_root) for name, url in (("shards", tiny_shards), ("fitted", with_levels))}
    levels = f"{SIX} teacher_fit.store=levels"
    with pytest.raises(InputError, match="shuffled together and the teacher's outputs for them") as refusal:
        joint(tmp_path / "few", "none", **given, overrides=f"{levels} runtime.cache_gb=0.0001")
    enough = re.search(r"give at least (\S+),", str(refusal.value))[1]
    streamed = joint(tmp_path / "s3", "none", **given, overrides=f"{levels} runtime.cache_gb={enough}")
    whole = joint(tmp_path / "here", "none", tiny_shards, with_levels, overrides=levels)
    assert losses(streamed) == losses(whole)
    kept = [path for path in (tmp_path / "tmp").rglob("*") if path.suffix == ".tar" or path.parent.name == CACHE_FOLDER]
    assert 0 < sum(path.stat().st_size for path in kept) <= float(enough) * GB


def put_to_s3(url: str, root: str) -> str:
    """The artifact at S3."""
    place = storage.join(root, *url.split("/")[-2:])
    for name in storage.list_files(url):
        storage.put(Path(url, name), storage.join(place, name))
    return place
