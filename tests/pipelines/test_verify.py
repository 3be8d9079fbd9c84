"""`submit.py --verify`: what is stored against the manifests, and commands that make anew what is damaged."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cmapkd.pipelines.started import started_as
from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import main, parser
from cmapkd_core import storage
from cmapkd_core.records import record_run
from cmapkd_core.request import DECIDING, Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context, execute


def _toy(root: Path | str, run: str = "") -> str:
    def body(context: Context) -> dict[str, float]:
        (context.out / "deep").mkdir()
        (context.out / "deep" / "file.txt").write_text("hello")
        return {}

    request = Request("tiny", str(root), run=run)
    url = storage.join(request.root, "levels", "0123")
    return execute(request, "levels", url=url, fields={}, inputs={}, body=body)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the data set of run `first`, and what a stage has made by hand."""
    root = tmp_path_factory.mktemp("made")
    prepare.run(Request("tiny", str(root), overrides="data.size=60", run="first"))
    _toy(root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def damage(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return path


def verified(capsys: pytest.CaptureFixture[str], root: Path | str, *run: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["--verify", *run, "--root", str(root)])
    said = capsys.readouterr()
    return code, (said.out + said.err).splitlines()


def test_a_root_as_it_was_written_is_well(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = next((root / "prepare").iterdir()).name
    storage.write_json(f"{root}/joint/1/work/checkpoints/a/manifest.json", {})  # no artifact
    ok = [f"ok      prepare/{key}", "ok      levels/0123"]
    assert verified(capsys, root) == (0, [*ok, "2 artifacts, 0 damaged"])
    code, lines = verified(capsys, root, "first")
    assert (code, lines[0]) == (1, ok[0])
    assert lines[1].startswith("missing teacher/")  # and all that the run has still to make
    assert "--run first --only teacher" in lines[2]
    assert lines[-1] == "1 artifacts, 0 damaged, 13 missing: first ones first, what follows runs again"


def test_a_run_that_was_stopped_before_its_first_artifact_lacks_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Request("tiny", str(tmp_path), overrides="data.size=60")
    record_run(str(tmp_path), "begun", {name: getattr(request, name) for name in DECIDING})
    code, lines = verified(capsys, tmp_path, "begun")
    assert (code, lines[-1]) == (1, "0 artifacts, 0 damaged, 14 missing: first ones first, what follows runs again")
    assert lines[0].startswith("missing prepare/")
    assert "--run begun --only prepare" in lines[1]


def test_a_damaged_file_and_the_command_that_makes_it_anew(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damage(root, "prepare/*/out-*/train-00000.tar")
    (path.parent / "index.parquet").unlink()
    code, lines = verified(capsys, root, "first")
    assert code == 1
    assert lines[:3] == [
        f"damaged prepare/{path.parents[1].name}",
        "        index.parquet: it is gone",
        "        train-00000.tar: it is not what was written",
    ]
    assert lines[-1] == "1 artifacts, 1 damaged, 13 missing: first ones first, what follows runs again"
    command = shlex.split(lines[3].removeprefix("        then: "))
    assert command[:2] == started_as()
    job = decide(parser().parse_args(command[2:]))  # starting the stage as a process would take many seconds more
    assert [(task.name, job.urls[task.name]) for task in job.plan.tasks] == [("prepare", str(path.parents[1]))]
    prepare.run(Request(run=job.run, root=job.arguments["root"], redo=job.plan.redo, **job.request))
    assert verified(capsys, root, "first")[1][0] == f"ok      prepare/{path.parents[1].name}"


@pytest.mark.parametrize("name", ["manifest.json", "out-*/deep/file.txt"])
def test_what_no_run_made_names_the_stages_own_command(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = damage(root, f"levels/0123/{name}")
    code, lines = verified(capsys, root)
    assert (code, lines[1]) == (1, "damaged levels/0123")
    assert re.match(rf" +{path.name if name == 'manifest.json' else 'deep/file.txt'}: its? ", lines[2])
    assert "python -m cmapkd_core.stages.levels with its arguments and --redo yes" in lines[3]
    assert lines[-1].startswith("2 artifacts, 1 damaged")


def test_remote_files_are_read_and_none_is_kept(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = Artifact.open(_toy(s3_root))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert verified(capsys, s3_root) == (0, ["ok      levels/0123", "1 artifacts, 0 damaged"])
    storage.write_bytes(artifact.file_url("deep/file.txt"), b"hallo")
    code, lines = verified(capsys, s3_root)
    assert (code, lines[1]) == (1, "        deep/file.txt: it is not what was written")
    assert not list(tmp_path.iterdir())


def test_nothing_to_verify_and_no_such_run_say_so(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = verified(capsys, tmp_path / "empty")
    assert (code, lines) == (2, [f"error: nothing to verify: the root has no complete artifact below {tmp_path}/empty"])
    code, lines = verified(capsys, root, "frist")
    assert code == 2
    assert "did you mean 'first'" in lines[0]
    assert main(["--verify", "--recipe", "tiny", "--root", str(root)]) == 2
    assert "--verify checks what is there: leave out --recipe" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_ends_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "runs/first/run.json").write_text("{")
    code, lines = verified(capsys, root)
    assert code == 0
    assert "run.json cannot be read, so no command names that run: " in lines[0]
