"""A model that is tested on pictures of its training, where these are of another data set than its own."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmapkd_core import storage
from cmapkd_core.data.leakage import BOUND, LeakageError
from cmapkd_core.data.look_alikes import DIFFERENT
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import reads
from cmapkd_core.places import evaluation_fields
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import cli, evaluate, prepare, train
from cmapkd_core.stages.artifact import Artifact

ALLOW = "evaluate.leakage_action=allow"
TRAINED = {f"t{at}": at for at in range(20)}
HELD_OUT = {f"h{at}": 100 + at for at in range(4)}


def picture(seed: int) -> Image.Image:
    grid = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((64, 64), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def folder(where: Path, train_files: dict[str, bytes], test_files: dict[str, bytes]) -> Path:
    where.mkdir()
    lines = []
    for split, files in (("train", train_files), ("test", test_files)):
        for key, data in files.items():
            (where / key).write_bytes(data)
            lines.append(json.dumps({"key": key, "file": key, "caption": f"it is {key}", "split": split}))
    (where / "captions.jsonl").write_text("\n".join(lines))
    return where


def files(seeds: dict[str, int]) -> dict[str, bytes]:
    return {key: encoded(picture(seed)) for key, seed in seeds.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def request(root: Path, data: Path, overrides: str = "") -> Request:
    return Request("tiny", str(root), "finetune", f"data.size=0 {overrides}", data=f"folder:{data}")


@pytest.fixture(scope="module")
def own(root: Path) -> Request:
    """Asks for the data set that `model` is trained on."""
    return request(root, folder(root / "own", files(TRAINED), files(HELD_OUT)))


@pytest.fixture(scope="module")
def model(own: Request) -> str:
    return train.run(own, stage="warmup", shards=prepare.run(own), teacher="")


@pytest.fixture(scope="module")
def copies(root: Path) -> Request:
    """Asks for a data set of test pictures: x0 is t0, x1 a smaller t1 as JPEG, and two of its own."""
    seen = {"x0": encoded(picture(0)), "x1": encoded(picture(1).resize((32, 32)), "JPEG")}
    return request(root, folder(root / "copies", {}, seen | files({"x2": 200, "x3": 201})), "data.splits=test")


@pytest.fixture(scope="module")
def others(root: Path) -> Request:
    """Asks for a data set that shares no picture with any other."""
    return request(root, folder(root / "others", files({f"o{at}": 300 + at for at in range(20)}), files({"o": 400})))


def evaluation(model: str, asked: Request, overrides: str = "", task: str = "retrieval") -> Artifact:
    """The model's evaluation on the data set that is asked for."""
    shards = prepare.run(asked)
    return Artifact.open(evaluate.run(with_overrides(asked, overrides), model=model, shards=shards, task=task))


def with_overrides(asked: Request, overrides: str) -> Request:
    return Request(asked.recipe, asked.root, asked.ablation, f"{asked.overrides} {overrides}", data=asked.data)


@pytest.mark.parametrize("task", ["retrieval", "captioning"])
@pytest.mark.parametrize("action", ["", "data.leakage_action=drop", "data.leakage_action=allow"])
def test_pictures_of_its_training_are_refused_and_listed(model: str, copies: Request, task: str, action: str) -> None:
    with pytest.raises(LeakageError) as caught:
        evaluation(model, copies, action, task)
    said, data = str(caught.value), prepare.run(copies)
    for words in (
        f"{model} was trained on 2 pictures of split test of {data}",
        f"train t0 = test x0 of {data} (exact: the same file; perceptual: 0 of 64 bits differ)",
        f"--set data.against={data} --set data.leakage_action=drop",
        "data.leakage_action is not read here: the model has seen them",
        f"--set {ALLOW}",
    ):
        assert words in said
    listed = [json.loads(line) for line in storage.read_bytes(said.rsplit(" ", 1)[-1]).splitlines()]
    assert [(pair["train"], pair["held_out"], pair["data"]) for pair in listed] == [
        ("t0", "x0", data),
        ("t1", "x1", data),
    ]


def test_what_is_allowed_is_recorded(model: str, own: Request, copies: Request, capsys) -> None:
    found = evaluation(model, copies, ALLOW)
    assert "2 of the pictures were trained on" in capsys.readouterr().out
    assert found.manifest["fields"]["evaluate.leakage_action"] == "allow"
    counts = {"leakage/pairs": 2.0, "leakage/pictures": 2.0, "leakage/unknown": 0.0}
    assert counts.items() <= found.manifest["metrics"].items()
    assert json.loads(found.fetch("leakage.json").read_text()) == {
        "compared": {prepare.run(own): ["ids", "exact", "perceptual"]},
        "bound": BOUND,
        "finer_bound": DIFFERENT,
        "look_alikes": 0,
        "pairs": 2,
        "pictures": 2,
        "unknown": {},
    }
    assert len(found.fetch("leakage.jsonl").read_text().splitlines()) == 2


def test_allowing_it_trains_nothing_again() -> None:
    usual, allowed = resolve("tiny"), resolve("tiny", overrides=ALLOW)
    for stage in ("prepare", "teacher", "warmup", "joint"):
        assert reads(allowed, stage) == reads(usual, stage)


def test_data_that_shares_no_picture_passes(model: str, others: Request) -> None:
    found = evaluation(model, others)
    assert found.manifest["metrics"]["leakage/pairs"] == 0
    assert "leakage.jsonl" not in found.files()
    assert "retrieval/i2t/R@1" in found.manifest["metrics"]


def test_a_check_that_is_switched_off_finds_nothing(model: str, copies: Request) -> None:
    found = evaluation(model, copies, "data.leakage=ids")
    assert found.manifest["metrics"]["leakage/pairs"] == 0
    assert found.manifest["fields"]["data.leakage"] == ["ids"]


def test_its_own_data_is_not_compared_with_itself(model: str, own: Request) -> None:
    found = evaluation(model, own)
    assert not [name for name in (*found.manifest["metrics"], *found.files()) if name.startswith("leakage")]


def test_a_model_that_comes_from_no_training_here_has_nothing_to_compare(copies: Request) -> None:
    found = evaluation("tiny-student:random", copies, ALLOW)
    assert not [name for name in found.manifest["metrics"] if name.startswith("leakage")]
    assert "evaluate.leakage_action" not in found.manifest["fields"]


def test_training_without_them_as_the_refusal_says_makes_it_pass(model: str, own: Request, copies: Request) -> None:
    with pytest.raises(LeakageError) as caught:
        evaluation(model, copies)
    flags = re.findall(r"--set \S+", next(line for line in str(caught.value).splitlines() if "Train without" in line))
    given = cli.parser(prepare.run).parse_args(["--recipe", "tiny", "--root", own.root, *" ".join(flags).split()])
    way_out = given.overrides
    assert way_out == f"data.against={prepare.run(copies)} data.leakage_action=drop"
    again = with_overrides(own, way_out)
    later = train.run(again, stage="warmup", shards=prepare.run(again), teacher="")
    assert evaluation(later, with_overrides(copies, way_out)).manifest["metrics"]["leakage/pairs"] == 0


def test_what_its_predecessor_was_trained_on_counts_too(model: str, copies: Request, others: Request) -> None:
    later = train.run(others, stage="joint", shards=prepare.run(others), teacher="", init=model)
    with pytest.raises(LeakageError, match="train t0 = test x0"):
        evaluation(later, copies)


@pytest.fixture
def gone(root: Path, model: str) -> Iterator[None]:
    """Nothing is left of the data that the model was trained on."""
    data = Path(Artifact.open(model).manifest["inputs"]["shards"]["url"])
    data.rename(root / "aside")
    yield
    (root / "aside").rename(data)


def test_training_data_that_is_gone_is_refused_unless_allowed(model: str, others: Request, gone: None, capsys) -> None:
    overrides = "evaluate.batch=7 data.leakage=exact"  # a place of its own
    with pytest.raises(InputError, match="was trained on cannot be compared with split test: .*has no manifest.json"):
        evaluation(model, others, overrides)
    found = evaluation(model, others, f"{overrides} {ALLOW}")
    assert "not everything that" in capsys.readouterr().out
    assert found.manifest["metrics"]["leakage/unknown"] == 1
    assert list(json.loads(found.fetch("leakage.json").read_text())["unknown"]) == [
        Artifact.open(model).manifest["inputs"]["shards"]["url"]
    ]


def test_evaluations_keep_their_places_where_nothing_is_asked_for() -> None:
    usual = evaluation_fields("root", "root/joint/0123", "root/prepare/4567", resolve("tiny"))
    assert set(usual) == {
        *("model", "shards", "evaluate.tasks", "evaluate.split", "evaluate.templates", "evaluate.classes"),
    }
    costs = resolve("tiny", overrides=ALLOW)
    assert "evaluate.leakage_action" not in evaluation_fields("root", "root/joint/0123", "", costs, "efficiency")


def test_a_word_that_it_does_not_know_gets_those_that_it_does() -> None:
    with pytest.raises(InputError, match="unknown evaluate.leakage_action 'drop': one of: refuse, allow"):
        resolve("tiny", overrides="evaluate.leakage_action=drop")
