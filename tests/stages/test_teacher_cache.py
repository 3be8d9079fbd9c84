"""Training from cached teacher targets: the same losses as beside the teacher, which then never runs."""

import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core import parallel, storage
from cmapkd_core.catalog import StoreEntry
from cmapkd_core.data import order
from cmapkd_core.data.fixed_crops import CACHE_FOLDER
from cmapkd_core.data.shard_cache import GB
from cmapkd_core.errors import DamagedInput, InputError, Interrupted
from cmapkd_core.fingerprints import reads
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import require
from cmapkd_core.methods.kd import Kd
from cmapkd_core.models.build import load_model, save_model
from cmapkd_core.models.frozen_teacher import Embeddings, LevelTargets, Teacher
from cmapkd_core.recipes import BASELINES, ROWS, resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, store_filling, teacher, train, training
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import LEVELS_STATE
from cmapkd_core.storage import StorageError

VIEWS = "teacher_fit.views=2"
LEVELS = f"{VIEWS} teacher_fit.store=levels"
STORED_AS = "teacher_fit.store=levels teacher_fit.levels={}"
SIX = f"{VIEWS} optim.batch=14 runtime.checkpoint_every=100 runtime.shares_every=100"
# Z-scores divide by the spread of a query's logits, here 0.01: two roundings of an embedding (2e-7) are 2e-5 of a
# z-score, and the student's steps follow them.
BOUNDS = {"kd_standardise": 1e-4}
FEW = ("kd", "clip_kd", "promptkd")  # of those; the others with `make test-heavy`
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


IN_PARTS = StoreEntry(20, levels=True)


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory, tiny_shards) -> Callable[[str], str]:
    """`in_parts(code)`: a teacher whose levels are stored so, in parts of 20 pictures; made once."""

    @functools.cache
    def make(code: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(store_filling.STORES, "levels", IN_PARTS)
            request = Request(
                "tiny", str(tmp_path_factory.mktemp(code)), overrides=f"{LEVELS} teacher_fit.levels={code}"
            )
            return teacher.run(request, shards=tiny_shards)

    return make


def joint(root, row, shards, fitted, overrides=SIX, **more) -> Artifact:
    request = Request("tiny", str(root), ablation=row, overrides=overrides)
    return Artifact.open(train.run(request, stage="joint", shards=shards, teacher=fitted, **more))


def losses(artifact: Artifact) -> list[dict[str, float]]:
    return [point["terms"] for point in json.loads(artifact.fetch("history.json").read_text())["points"]]


def test_these_methods_train_on_embeddings_alone():
    assert set(ON_EMBEDDINGS) == {
        "kd",
        "promptkd",
        "promptkd_cls",
        "kd_standardise",
        "clip_kd",
        "clip_rd",
        "tinyclip",
        "mobileclip",
    }


@pytest.mark.parametrize("row", [pytest.param(r, marks=[pytest.mark.heavy] * (r not in FEW)) for r in ON_EMBEDDINGS])
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
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        bound = BOUNDS.get(row, 1e-5) if step else 1e-5
        assert ours == pytest.approx(theirs, rel=bound, abs=bound)


OTHERS = [pytest.param(row, marks=pytest.mark.heavy) for row in ("no_pyramid", "no_hierarchy", "seed_alsn")]


@pytest.mark.parametrize("row", ["none", "kd", *OTHERS])
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


def test_a_store_has_the_pictures_that_students_train_on_and_no_others(tmp_path, tiny_shards, storing, monkeypatch):
    half = f"{SIX} data.fraction=0.5 data.noise=0.3"  # what is stored of a wrong caption is its own picture's
    some = teacher.run(
        Request("tiny", str(tmp_path / "some"), overrides=f"{VIEWS} data.fraction=0.5"), shards=tiny_shards
    )
    with monkeypatch.context() as online:
        online.setattr(training, "open_cache", lambda context: None)
        expected = losses(joint(tmp_path / "online", "kd", tiny_shards, some, half))
    found = losses(joint(tmp_path / "stored", "kd", tiny_shards, some, half))
    assert len(found) == len(expected) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    count = open_shards(Artifact.open(tiny_shards)).count("train")
    assert sum(len(pictures) for pictures in images_of(some)) == round(count / 2)
    with pytest.raises(InputError, match=r"data\.fraction: 1\.0 -> 0\.5"):
        joint(tmp_path, "kd", tiny_shards, storing, half)


def images_of(url: str) -> list[torch.Tensor]:
    """What each part of a teacher's store has of pictures, [k,n,E]."""
    artifact = Artifact.open(url)
    names = [name for name in artifact.files() if name.startswith(f"{CACHE_FOLDER}/")]
    return [load_file(artifact.fetch(name))["crops/image"] for name in names]


def test_levels_in_8_bits_give_the_terms_within_a_hundredth(tmp_path, tiny_shards, in_parts, monkeypatch):
    monkeypatch.setitem(store_filling.STORES, "levels", IN_PARTS)
    found = {
        code: losses(joint(tmp_path, "none", tiny_shards, in_parts(code), f"{SIX} {STORED_AS.format(code)}"))
        for code in ("float16", "int8")
    }
    for one, other in zip(found["int8"], found["float16"], strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-4)
    assert found["int8"] != found["float16"]
    stored = [sum(x.nbytes for n, x in parts(Artifact.open(in_parts(c)))[0].items() if "/P" in n) for c in found]
    assert stored[0] / stored[1] == pytest.approx(2 * 16 / 17)  # of 16 channels; a scale is a byte
    with pytest.raises(InputError, match=r"teacher_fit\.levels: int8 -> float16"):
        joint(tmp_path, "none", tiny_shards, in_parts("int8"), f"{SIX} {STORED_AS.format('float16')}")
    with pytest.raises(InputError, match=r"teacher_fit\.store=embeddings stores none: give teacher_fit\.store=levels"):
        resolve("tiny", "none", f"{VIEWS} teacher_fit.levels=int8")


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
    monkeypatch.setitem(store_filling.STORES, "embeddings", StoreEntry(20))
    original, done = store_filling.teacher_outputs, []

    def dies(filling, parts, progress):
        for rows, outputs in zip(parts, original(filling, parts, progress), strict=True):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(rows.start)
            yield outputs

    def run() -> Artifact:
        return Artifact.open(teacher.run(Request("tiny", str(tmp_path), overrides=VIEWS), shards=tiny_shards))

    with monkeypatch.context() as patch:
        patch.setattr(store_filling, "teacher_outputs", dies)
        with pytest.raises(KeyboardInterrupt):
            run()
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            run()
        assert done == [40, 60]
    damaged = sorted(tmp_path.glob(f"teacher/*/*/{CACHE_FOLDER}/000001-*"))[0]
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
    """`fill(rank, url)`: what one of two ranks does for the store of an artifact, with parts of 20 pictures.

    Gives those that it asked the teacher for, and what the artifact's manifest will have of the store.
    """
    shards = open_shards(Artifact.open(tiny_shards))
    backbone = load_model(Artifact.open(storing).fetch_folder("model"))
    asked: list[int] = []

    def outputs(filling, parts, progress):
        for rows in parts:
            asked.append(rows.start)
            image = torch.tensor(rows).view(-1, 1, 1).expand(-1, 2, 4)
            yield [{"image": image.float().clone()}], [{"text": torch.ones(filling.counts[rows].sum(), 4)}]

    monkeypatch.setitem(store_filling.STORES, "embeddings", StoreEntry(20))
    monkeypatch.setattr(store_filling, "teacher_outputs", outputs)
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "barrier", lambda: None)

    def run(rank: int, url: str) -> tuple[list[int], dict[str, dict[str, Any]]]:
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        out, scratch = tmp_path / f"out{rank}", tmp_path / f"scratch{rank}"
        scratch.mkdir(exist_ok=True)
        save_model(backbone, out / "model")
        (out / LEVELS_STATE).write_text("of another test")
        asked.clear()
        recipe = resolve("tiny", overrides=VIEWS)
        context = Context(recipe, {}, out, scratch, None, storage.join(url, "work"), "identity", print)
        store_filling.write_store(context, shards, backbone)
        return list(asked), context.placed

    return run


def stored(url: str, placed: dict[str, dict[str, Any]], folder: Path) -> list[float]:
    """What the parts say of their pictures, in order, as a manifest finds them; their bytes are what it names."""
    assert list(placed) == [f"{CACHE_FOLDER}/{number:06d}.safetensors" for number in range(5)]
    found = []
    for name, entry in placed.items():
        path = storage.fetch(storage.join(url, entry["place"]), folder / name)
        assert (path.stat().st_size, storage.sha256_file(path)) == (entry["bytes"], entry["sha256"])
        found.append(load_file(path)["crops/image"][:, 0, 0])
    return torch.cat(found).tolist()


def test_a_store_is_kept_with_its_artifact_and_what_is_none_of_it_goes(tmp_path, tiny_shards):
    """The parts lie where no attempt's folder is; those of a result that was set aside stay beside those of the new."""

    def run(**asked) -> tuple[Artifact, set[Path]]:
        made = Artifact.open(teacher.run(Request("tiny", str(tmp_path), overrides=VIEWS, **asked), shards=tiny_shards))
        return made, {Path(made.file_url(name)) for name in made.files() if name.startswith(f"{CACHE_FOLDER}/")}

    first, parts = run()
    (folder,) = {path.parent for path in parts}
    assert folder.parent.name != first.manifest["folder"]
    stray = folder / parts.copy().pop().name.replace("000000", "000001")
    stray.write_text("of another attempt")
    assert run() == (first, parts)
    assert not stray.exists()
    second, more = run(redo="yes")
    assert second.digest != first.digest
    assert [storage.sha256_file(path) for path in sorted(more)] == [storage.sha256_file(path) for path in sorted(parts)]
    assert not more & parts
    found = {path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == CACHE_FOLDER}
    assert found == more | parts


def test_ranks_share_the_parts(tmp_path, fill):
    made = {rank: fill(rank, str(tmp_path / "place")) for rank in (1, 0)}
    assert {rank: asked for rank, (asked, _) in made.items()} == {1: [20, 60], 0: [0, 40, 80]}
    assert made[1][1] == {}
    assert stored(str(tmp_path / "place"), made[0][1], tmp_path) == list(range(87))


def test_parts_that_are_damaged_or_gone_on_s3_are_made_again(tmp_path, s3_root, fill, capsys):
    assert fill(1, s3_root)[0] == [20, 60]
    first, second = (name for name in storage.list_files(s3_root) if f"/{CACHE_FOLDER}/" in name)
    data = storage.read_bytes(f"{s3_root}/{first}")
    storage.write_bytes(f"{s3_root}/{first}", data[:-1] + bytes([data[-1] ^ 1]))
    storage.delete(f"{s3_root}/{second}")
    assert fill(1, s3_root)[0] == [60, 20]
    assert (
        f"teacher: {s3_root}/{first} is not what was saved: its pictures are asked for again" in capsys.readouterr().out
    )
    storage.delete(f"{s3_root}/{second}")  # by somebody, while rank 0 is at its share
    asked, placed = fill(0, s3_root)
    assert asked == [0, 40, 80, 60]
    assert stored(s3_root, placed, tmp_path) == list(range(87))
    assert fill(0, s3_root) == ([], placed)


def test_what_stores_a_part_fails_the_stage_and_what_is_whole_stays(tmp_path, fill, monkeypatch):
    put = storage.put

    def full(path: Path, url: str) -> None:
        if "/000002-" in url:
            raise StorageError("no space left")
        put(path, url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", full)
        with pytest.raises(StorageError, match="no space left"):
            fill(0, str(tmp_path / "place"))
    asked, _ = fill(0, str(tmp_path / "place"))
    assert 40 in asked
    assert 0 not in asked
    assert not list((tmp_path / "scratch0").glob("*-0.safetensors"))


def test_a_part_that_is_gone_as_soon_as_it_is_written_fails_the_stage(tmp_path, fill, monkeypatch):
    put = storage.put
    monkeypatch.setattr(storage, "put", lambda path, url: None if "/000003-" in url else put(path, url))
    with pytest.raises(
        DamagedInput, match="has 4 parts of the teacher's outputs, and others are gone: run stage teach"
    ):
        fill(0, str(tmp_path / "place"))


@pytest.mark.parametrize("gone", ["000000", "000002", "000004"])
@pytest.mark.parametrize("place", ["here", "S3"])
def test_a_store_that_lacks_a_part_is_refused_before_the_first_step(
    tmp_path, tiny_shards, in_parts, s3_root, monkeypatch, place, gone
):
    """As a manifest of somebody's own might, or one that another version wrote."""
    monkeypatch.setitem(store_filling.STORES, "levels", IN_PARTS)
    url, files = in_parts("float16"), Artifact.files
    url = url if place == "here" else put_to_s3(url, s3_root)
    left = {f"{CACHE_FOLDER}/{gone}.safetensors"}
    monkeypatch.setattr(Artifact, "files", lambda artifact: [name for name in files(artifact) if name not in left])
    with pytest.raises(
        DamagedInput, match=r"has 4 parts of the teacher's outputs, and others are gone: run stage teac"
    ):
        joint(tmp_path, "none", tiny_shards, url, f"{SIX} teacher_fit.store=levels runtime.cache_gb=1")
    assert not list(tmp_path.glob("joint/*/work/checkpoints/*"))


def test_crops_are_read_by_every_student_and_zero_leaves_all_places_as_they_were():
    for row in ROWS:
        for stage in ("teacher", "warmup", "joint"):
            assert "teacher_fit.views" not in reads(resolve("tiny", row), stage)
            assert reads(resolve("tiny", row, VIEWS), stage)["teacher_fit.views"] == 2
    with pytest.raises(InputError, match="teacher_fit.views=-1"):
        resolve("tiny", "none", "teacher_fit.views=-1")


def test_pairs_and_levels_stream_from_s3_within_a_bound(tmp_path, tiny_shards, in_parts, s3_root, monkeypatch):
    """Losses to the bit, of a store that the disk cannot hold; the bound that the refusal names is kept to."""
    monkeypatch.setattr(order, "BLOCK_SHARDS", 1)
    monkeypatch.setitem(store_filling.STORES, "levels", IN_PARTS)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    fitted = in_parts("float16")
    given = {name: put_to_s3(url, s3_root) for name, url in (("shards", tiny_shards), ("fitted", fitted))}
    levels = f"{SIX} teacher_fit.store=levels"
    with pytest.raises(InputError, match="shuffled together and the teacher's outputs for them") as refusal:
        joint(tmp_path / "few", "none", **given, overrides=f"{levels} runtime.cache_gb=0.0001")
    enough = re.search(r"give at least (\S+),", str(refusal.value))[1]
    streamed = joint(tmp_path / "s3", "none", **given, overrides=f"{levels} runtime.cache_gb={enough}")
    whole = joint(tmp_path / "here", "none", tiny_shards, fitted, overrides=levels)
    assert losses(streamed) == losses(whole)
    outputs = Artifact.open(fitted).manifest["outputs"].items()
    stored = [entry["bytes"] for name, entry in outputs if name.startswith(f"{CACHE_FOLDER}/")]
    assert len(stored) == 5
    assert sum(stored) > float(enough) * GB
    kept = [path for path in (tmp_path / "tmp").rglob("*") if path.suffix == ".tar" or path.parent.name == CACHE_FOLDER]
    assert 0 < sum(path.stat().st_size for path in kept) <= float(enough) * GB


def put_to_s3(url: str, root: str) -> str:
    """The artifact at S3."""
    place = storage.join(root, *url.split("/")[-2:])
    for name in storage.list_files(url):
        storage.put(Path(url, name), storage.join(place, name))
    return place
