"""Other content at the same path is no "already complete": the stage runs again and says which file changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cmapkd.pipelines.components import EVALUATE
from cmapkd.pipelines.suite import Shared, Suite, standing
from cmapkd.pipelines.tasks import Task
from cmapkd_core import storage
from cmapkd_core.config import ModelConfig
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import given, identities, prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context, execute

Run = Callable[[dict[str, str]], str]


@pytest.fixture
def ran() -> list[str]:
    """The identities of the stages whose bodies ran."""
    return []


@pytest.fixture
def stage(tmp_path: Path, ran: list[str]) -> Run:
    """`stage(paths)` runs a stage that reads these paths."""

    def body(context: Context) -> dict[str, float]:
        ran.append(context.identity)
        return {}

    def run(paths: dict[str, str]) -> str:
        request, url = Request("tiny", str(tmp_path / "root")), f"{tmp_path}/root/toy/0"
        return execute(request, "toy", url=url, fields={"seed": 0}, inputs={}, body=body, paths=paths)

    return run


@pytest.fixture(params=["path", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a prefix on S3."""
    return str(tmp_path / "given") if request.param == "path" else str(request.getfixturevalue("s3_root"))


def later(path: str, seconds: int = 5) -> None:
    """A local file's mtime, moved: two writes may fall into one tick of the file system's clock."""
    if "://" not in path:
        told = os.stat(path)
        os.utime(path, (told.st_atime, told.st_mtime + seconds))


def test_a_copy_that_keeps_size_and_time_is_other_content(stage: Run, ran: list[str], tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}")
    stage({"evaluate.templates": str(file)})
    told = os.stat(file)
    file.write_text("a image of a {}")
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    stage({"evaluate.templates": str(file)})
    assert len(ran) == 2


def test_a_file_of_another_size_or_content_makes_the_stage_run_again(
    stage: Run, ran: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = storage.join(place, "weights.safetensors")
    paths = {"teacher.weights": file}
    storage.write_bytes(file, b"first")
    url = stage(paths)
    assert stage(paths) == url
    assert len(ran) == 1
    storage.write_bytes(file, b"longer")
    stage(paths)
    said = capsys.readouterr().out
    assert (
        f"toy: runs again, what it read has changed since: teacher.weights={file} has 6 bytes and had 5: {url}" in said
    )
    storage.write_bytes(file, b"LONGER")
    later(file)
    stage(paths)
    assert f"teacher.weights={file} has other content in its 6 bytes" in capsys.readouterr().out
    stage(paths)
    assert "already complete" in capsys.readouterr().out
    assert len(ran) == len(set(ran)) == 3, "checkpoints of one content are no others'"
    assert Artifact.open(url).manifest["files"]["teacher.weights"]["bytes"] == 6


def test_a_local_file_that_was_only_touched_stands(stage: Run, ran: list[str], tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a {}")
    stage({"evaluate.templates": str(file)})
    later(str(file))
    stage({"evaluate.templates": str(file)})
    assert len(ran) == 1


def test_of_a_finished_stage_no_large_file_is_read(stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of an answer: a `stat`."""
    file = tmp_path / "large.safetensors"
    with file.open("wb") as made:
        made.truncate(identities.READ + 1)
    stage({"teacher.weights": str(file)})
    monkeypatch.setattr(storage, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    stage({"teacher.weights": str(file)})


def test_a_changed_folder_names_its_newer_files(
    stage: Run, ran: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("captions.jsonl", "a.png", "deep/b.png"):
        storage.write_bytes(storage.join(place, name), b"12345")
    paths = {"data.url": place}
    stage(paths)
    stage(paths)
    assert len(ran) == 1
    storage.delete(storage.join(place, "a.png"))
    stage(paths)
    said = capsys.readouterr().out
    assert f"data.url={place} has changed: none is newer, so files were removed, renamed or put back" in said
    assert "(2 files of 10 bytes, then 3 of 15)" in said
    storage.write_bytes(storage.join(place, "captions.jsonl"), b"1234")
    later(storage.join(place, "captions.jsonl"))
    stage(paths)
    said = capsys.readouterr().out
    assert f"data.url={place} has changed:" in said
    assert "(2 files of 9 bytes, then 2 of 10)" in said
    if "://" not in place:  # S3's clock has whole seconds
        assert f"data.url={place} has changed: captions.jsonl (" in said
    assert len(ran) == 3


def test_what_is_gone_does_not_take_its_result_along(
    stage: Run, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "captions.jsonl").write_text("{}")
    stage({"data.url": str(folder)})
    shutil.rmtree(folder)
    stage({"data.url": str(folder)})
    told = f"toy: data.url={folder} is gone, so whether it has changed is not known; what was made from it stands"
    assert told in capsys.readouterr().out
    assert len(ran) == 1


def test_an_artifact_of_before_stands(stage: Run, ran: list[str], tmp_path: Path) -> None:
    """Its manifest does not say what it read."""
    file = tmp_path / "classes.json"
    file.write_text("{}")
    stage({})
    stage({"evaluate.classes": str(file)})
    assert len(ran) == 1


def test_a_suite_asks_a_stage_again_whose_file_has_changed(stage: Run, tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text("{}")
    url = stage({"evaluate.classes": str(file)})
    laid = Suite("s", (), (), (Shared(Task("zeroshot", EVALUATE, "evaluate"), "zeroshot", url),))
    assert standing(laid) == ({"zeroshot": url}, {})
    file.write_text('{"a": "b"}')
    assert standing(laid) == ({}, {url: Artifact.open(url).digest})


@pytest.mark.parametrize(
    ("overrides", "function", "expected"),
    [
        ("teacher.weights=/w/t.safetensors", "of_teacher", {"teacher.weights": "/w/t.safetensors"}),
        (
            "student.model=/w/s.json student.weights=/w/s.safetensors",
            "of_teacher",
            {"student.model": "/w/s.json"},  # its shape alone
        ),
        ("teacher.model=local-dir:/w/t teacher.weights=own", "of_teacher", {"teacher.model": "/w/t"}),
        (
            "teacher.model=ViT-B-32 teacher.weights=openai@s3://w/t.safetensors",
            "of_teacher",
            {"teacher.weights": "s3://w/t.safetensors"},
        ),
        ("", "of_teacher", {}),
    ],
)
def test_what_a_stage_reads_by_path(overrides: str, function: str, expected: dict[str, str]) -> None:
    assert getattr(given, function)(resolve("tiny", overrides=overrides)) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("data.source=folder data.url=/pictures", {"data.url": "/pictures"}),
        ("data.source=emoji", {}),
    ],
)
def test_what_prepare_reads_by_path(overrides: str, expected: dict[str, str]) -> None:
    assert prepare.of_data(resolve("tiny", overrides=overrides)) == expected


def test_what_trainings_and_evaluations_read_by_path() -> None:
    files = "student.weights=/w/s.safetensors evaluate.templates=/t.txt evaluate.classes=/c.json"
    student, classes = (
        {"student.weights": "/w/s.safetensors"},
        {"evaluate.templates": "/t.txt", "evaluate.classes": "/c.json"},
    )
    recipe, prompted = resolve("tiny", overrides=files), resolve("tiny", "promptkd_cls", files)
    assert given.of_training(recipe, "") == student
    assert given.of_training(recipe, "s3://root/warmup/0") == {}
    assert given.of_training(prompted, "") == student | classes
    assert given.of_training(prompted, "s3://root/warmup/0") == classes
    assert given.of_evaluation(recipe, RECIPE_STUDENT, ("zeroshot",)) == student | classes
    assert given.of_evaluation(recipe, "s3://root/joint/0", ("retrieval", "zeroshot")) == classes
    assert given.of_evaluation(recipe, "s3://root/joint/0", ("retrieval",)) == {}
    assert given.of_evaluation(recipe, "/w/m.json:/w/m.safetensors") == {
        "model.model": "/w/m.json",
        "model.weights": "/w/m.safetensors",
    }
    assert given.of_model(ModelConfig("tiny-student", "random"), "student") == {}


def test_captions_that_were_rewritten_are_prepared_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16 rows became 11, and the answer was "already complete" with the numbers of 16."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for i in range(16):
        Image.new("RGB", (16, 16), (i * 15, 90, 20)).save(folder / f"{i}.png")
        rows.append(f'{{"key": "{i}", "file": "{i}.png", "caption": "picture {i}", "split": "train"}}')
    captions = folder / "captions.jsonl"
    captions.write_text("\n".join(rows))
    request = Request("tiny", str(tmp_path / "root"), data=f"folder:{folder}")
    url = prepare.run(request)
    assert Artifact.open(url).manifest["metrics"]["used"] == 16
    captions.write_text("\n".join(rows[:11]))
    later(str(captions))
    assert prepare.run(request) == url
    assert Artifact.open(url).manifest["metrics"]["used"] == 11
    said = capsys.readouterr().out
    assert (
        f"prepare: runs again, what it read has changed since: data.url={folder} has changed: captions.jsonl (" in said
    )
