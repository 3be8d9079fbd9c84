"""Every message that asks for a stage to run again names commands that make it run, though it is complete."""

import importlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import parser
from cmapkd.pipelines.tasks import TASKS, tasks_of
from cmapkd_core import storage
from cmapkd_core.data import copies
from cmapkd_core.errors import InputError, again
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import cli, prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards

DATA, ROWS = "easy_vqa", "data.size=60"
COMMANDS = re.compile(
    r"run stage (\w+) again: \S+ \S+(submit\.py --run \w+ --only \w+) .*"
    r"by hand \S*python -m (\S+) with its arguments and (--redo yes)"
)


def flip(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(bytes(data))


def read_all(artifact: Artifact) -> None:
    """What the stages read of a data set."""
    shards = open_shards(artifact)
    assert shards.question_count("train")
    shards.questions("train")
    for error in shards.verify():
        raise error


def read_file(artifact: Artifact) -> None:
    artifact.fetch("index.parquet")


PLACES: dict[str, tuple[str, Callable[[str], None], Callable[[Artifact], None]]] = {
    "a file": ("index.parquet", flip, read_file),
    "a file that is gone": ("index.parquet", lambda path: Path(path).unlink(), read_file),
    "shards.json": ("shards.json", flip, read_all),
    "no shards.json": ("shards.json", lambda path: Path(path).unlink(), read_all),
    "index": ("index.parquet", flip, read_all),
    "no index": ("index.parquet", lambda path: Path(path).unlink(), read_all),
    "questions": ("questions.parquet", flip, read_all),
    "no questions": ("questions.parquet", lambda path: Path(path).unlink(), read_all),
    "a shard": ("train-00000.tar", flip, read_all),
    "no shard": ("train-00000.tar", lambda path: Path(path).unlink(), read_all),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the data set of run `first`."""
    root = tmp_path_factory.mktemp("made")
    prepare.run(Request("tiny", str(root), overrides=ROWS, data=DATA, run="first"))
    return root


@pytest.mark.parametrize("place", PLACES)
def test_the_printed_commands_make_a_damaged_artifact_anew(
    made: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, root := tmp_path / "root")
    (folder,) = (root / "prepare").iterdir()
    name, damage, read = PLACES[place]
    damage(Artifact.open(str(folder)).file_url(name))
    with pytest.raises(InputError) as raised:
        read(Artifact.open(str(folder)))
    found = COMMANDS.search(str(raised.value))
    assert found, raised.value
    _, submit, module, redo = found.groups()
    made_there(submit.replace("RUN", "first"), root, str(folder))
    arguments = ["--recipe", "tiny", "--root", str(root), "--overrides", ROWS, "--source", DATA]
    assert cli.main(importlib.import_module(module).run, arguments) == 0
    assert "already complete" in capsys.readouterr().out  # without the words the message has to give, nothing happens
    assert cli.main(importlib.import_module(module).run, [*arguments, *shlex.split(redo)]) == 0
    read_file(Artifact.open(str(folder)))
    read_all(Artifact.open(str(folder)))


def made_there(command: str, root: Path, url: str) -> None:
    """The command plans the task that makes `url`, although it is complete."""
    job = decide(parser().parse_args([*shlex.split(command)[1:], "--local", "--root", str(root)]))
    (task,) = job.plan.tasks
    assert (job.urls[task.name], job.plan.redo) == (url, "yes")


def test_a_remote_file_names_the_run_that_made_it(made: Path, s3_root: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(copies.tempfile, "tempdir", str(tmp_path))
    for path in (path for path in made.rglob("*") if path.is_file()):
        storage.put(path, storage.join(s3_root, path.relative_to(made).as_posix()))
    (folder,) = (made / "prepare").iterdir()
    artifact = Artifact.open(storage.join(s3_root, "prepare", folder.name))
    storage.write_bytes(artifact.file_url("index.parquet"), b"other")
    for read in (read_file, read_all):
        with pytest.raises(
            InputError, match="index.parquet does not have the sha256 .* --run (first|RUN) --only prepare"
        ):
            read(artifact)


@pytest.mark.parametrize("stage", ["prepare", "teacher", "warmup", "alsn", "joint", "levels", "export", "report"])
def test_a_stages_words_name_a_task_and_a_module(stage: str, tmp_path: Path) -> None:
    found = COMMANDS.search(again(stage, "first"))
    assert found
    assert callable(importlib.import_module(found[3]).run)
    assert found[2] == f"submit.py --run first --only {stage}"
    assert stage in {task.name for task in tasks_of(resolve("tiny"))}


def test_an_evaluation_is_left_to_what_knows_its_task() -> None:
    assert "--run first --only TASK " in again("evaluate vqa on scenes of joint by kd", "first")
    assert "evaluate" not in {task.name for task in TASKS}
