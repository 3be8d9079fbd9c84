"""`execute`: one commit point, an answer at once when done, a new run when something changed."""

import json
import random
import threading
from pathlib import Path

import pytest

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.places import evaluation_fields, evaluation_url
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.stages.manifest import DamagedError


@pytest.fixture
def stage(tmp_path):
    """`stage(**request fields)` runs a stage that writes what it was told; `.ran` counts its bodies."""

    class Stage:
        root = str(tmp_path / "root")
        ran = 0

        def body(self, context: Context) -> dict[str, float]:
            self.ran += 1
            (context.out / "deep").mkdir()
            (context.out / "deep" / "file.txt").write_text(f"attempt {self.ran}")
            storage.write_json(storage.join(context.workdir, "half.json"), 1)
            return {"answer": 42.0}

        def url(self, name: str = "thing") -> str:
            return f"{self.root}/{name}/0123"

        def __call__(self, name: str = "thing", inputs: dict | None = None, body=None, **fields: str) -> str:
            request = Request("tiny", fields.pop("root", self.root), **fields)
            return execute(
                request,
                name,
                url=self.url(name) if request.root == self.root else f"{request.root}/{name}/0123",
                fields={"seed": 0},
                inputs=inputs or {},
                body=body or self.body,
            )

    return Stage()


def test_a_stage_leaves_its_files_and_a_manifest_and_nothing_else(stage):
    url = stage(run="")
    artifact = Artifact.open(url)
    assert sorted(artifact.files()) == ["deep/file.txt", "journal.jsonl"]
    assert artifact.fetch("deep/file.txt").read_text() == "attempt 1"
    assert artifact.fetch_folder("deep") == artifact.fetch("deep/file.txt").parent
    manifest = artifact.manifest
    assert manifest["metrics"] == {"answer": 42.0}
    assert (manifest["stage"], manifest["recipe"], manifest["fields"]) == ("thing", "tiny", {"seed": 0})
    assert manifest["outputs"]["deep/file.txt"]["bytes"] == len("attempt 1")
    assert manifest["outputs"]["deep/file.txt"]["sha256"] == storage.sha256_file(artifact.fetch("deep/file.txt"))
    assert {name.split("/")[0] for name in storage.list_files(url)} == {"manifest.json", manifest["folder"]}


def test_what_cannot_be_cleared_after_the_commit_fails_no_stage(stage, monkeypatch, capsys):
    """Its artifact stands; the listing of what earlier attempts left is the first call that may fail."""
    create, listed = storage.create, storage.list_files

    def commit(url: str, data: bytes) -> bool:
        if url.endswith("/manifest.json"):
            monkeypatch.setattr(storage, "list_files", silent)
        return create(url, data)

    def silent(url: str) -> list[str]:
        raise storage.StorageError(f"cannot list {url}: it does not answer")

    monkeypatch.setattr(storage, "create", commit)
    url = stage()
    said = capsys.readouterr().out
    assert f"thing: done in 0 s: {url}" in said
    assert "thing: not all could be cleared, which the same command does again: cannot list" in said
    monkeypatch.setattr(storage, "list_files", listed)
    stage()
    assert stage.ran == 1


def test_a_complete_stage_answers_at_once_and_says_so(stage, capsys):
    first = stage()
    capsys.readouterr()
    assert stage() == first
    assert stage.ran == 1
    assert f"thing: already complete (0 s then): {first}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ("0a1b2c3d4e5f", "0a1b2c3d4e5f", ""),
        ("0a1b2c3d4e5f", "999999999999", "; made by 0a1b2c3d4e5f, this is 999999999999: `--only STAGE` runs it again"),
        ("", "999999999999", "; made by an unknown commit, this is 999999999999: `--only STAGE` runs it again"),
        ("0a1b2c3d4e5f", "", ""),
    ],
)
def test_a_result_of_other_code_stands_and_says_so(stage, monkeypatch, capsys, then, now, says):
    monkeypatch.setattr("cmapkd_core.stages.execute.commit", lambda: then)
    url = stage()
    assert Artifact.open(url).manifest["commit"] == then
    monkeypatch.setattr("cmapkd_core.stages.execute.commit", lambda: now)
    capsys.readouterr()
    stage()
    assert stage.ran == 1
    assert capsys.readouterr().out.endswith(f"thing: already complete (0 s then): {url}{says}\n")


def test_redo_runs_again_and_keeps_the_earlier_result(stage, capsys):
    url = stage()
    old = Artifact.open(url)
    stage(redo="yes")
    assert stage.ran == 2
    assert Artifact.open(url).fetch("deep/file.txt").read_text() == "attempt 2"
    assert "runs again as asked" in capsys.readouterr().out
    assert storage.read_json(f"{url}/retired/{old.digest[:8]}.json") == old.manifest
    assert old.fetch("deep/file.txt").read_text() == "attempt 1"


@pytest.mark.parametrize("redo", ["evaluate", "true", "Yes", "no"])
def test_redo_takes_yes_and_nothing_else(stage, redo):
    """`--redo evaluate` was once ignored: the stage answered that it is complete."""
    stage()
    with pytest.raises(InputError, match=f"^--redo {redo}: it takes yes, which runs this one stage again"):
        stage(redo=redo)
    stage(redo="yes")  # the way out that it names
    assert stage.ran == 2


def test_what_killed_attempts_left_is_gone_with_the_next_result(stage):
    """Killed in the middle of its uploads, or between its manifest and the deletion of its checkpoints."""
    url = stage()
    first = Artifact.open(url)
    stage(redo="yes")
    storage.write_json(f"{url}/out-killed/deep/file.txt", "half")
    stage(redo="yes")
    last = Artifact.open(url)
    assert first.fetch("deep/file.txt").read_text() == "attempt 1"  # retired, and kept
    found = {name.split("/")[0] for name in storage.list_files(url) if name.startswith("out-")}
    assert len(found) == 3
    assert last.manifest["folder"] in found
    assert "out-killed" not in found
    storage.write_json(f"{url}/work/checkpoint.json", 1)
    stage()
    assert not storage.list_files(f"{url}/work")


def test_changed_inputs_make_it_run_again(stage, capsys):
    source = stage("source")
    stage("thing", {"source": source})
    stage("thing", {"source": source})
    assert stage.ran == 2
    stage("source", redo="yes")
    capsys.readouterr()
    url = stage("thing", {"source": source})
    assert stage.ran == 4
    assert "its inputs have changed" in capsys.readouterr().out
    assert Artifact.open(url).manifest["inputs"]["source"] == {"url": source, "digest": Artifact.open(source).digest}


def test_an_input_that_is_not_complete_is_named(stage):
    missing = f"{stage.root}/warmup/9999"
    with pytest.raises(
        InputError, match=r"warmup/9999 has no manifest\.json: the stage that writes it has not finished"
    ):
        stage("thing", {"init": missing})
    assert stage.ran == 0


def test_a_file_that_was_changed_afterwards_is_refused(stage):
    url = stage()
    artifact = Artifact.open(url)
    storage.write_bytes(artifact.file_url("deep/file.txt"), b"something else")
    with pytest.raises(
        InputError, match=r"deep/file\.txt was changed .*: run stage thing again: .*submit.* --redo yes;"
    ):
        artifact.fetch("deep/file.txt")
    stage()  # it is complete, so this alone mends nothing
    with pytest.raises(InputError, match="was changed"):
        Artifact.open(url).fetch("deep/file.txt")
    stage(redo="yes")
    assert Artifact.open(url).fetch("deep/file.txt").read_text() == "attempt 2"


def test_a_file_that_is_not_there_is_named(stage):
    artifact = Artifact.open(stage())
    with pytest.raises(InputError, match=r"has no file model\.bin, but deep/file\.txt"):
        artifact.fetch("model.bin")
    with pytest.raises(InputError, match=r"has no folder model/"):
        artifact.fetch_folder("model")


def test_a_root_that_cannot_be_written_is_named(stage, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="file/below"):
        stage(root=str(tmp_path / "file" / "below"))
    assert stage.ran == 0


def test_a_body_that_fails_leaves_no_artifact_and_no_scratch(stage, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def body(context: Context) -> dict[str, float]:
        (context.out / "half.txt").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        stage(body=body)
    assert find(stage.url()) is None
    assert not list(tmp_path.glob("cmapkd-*"))
    stage()
    assert Artifact.open(stage.url()).files() == ["deep/file.txt", "journal.jsonl"]


def test_an_earlier_attempts_journal_is_gone_on_with(stage):
    def body(context: Context) -> dict[str, float]:
        context.tracker.log({"loss": 1.0}, 1)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        stage(body=body)
    lines = Artifact.open(stage()).fetch("journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"] for line in lines] == [{"loss": 1.0}, {"answer": 42.0}]


def race(stage, count: int) -> list[str]:
    """`count` threads that all have finished their body before one commits."""
    together, urls, errors = threading.Barrier(count, timeout=60), [], []

    def body(context: Context) -> dict[str, float]:
        (context.out / "mine.txt").write_text(threading.current_thread().name)
        storage.write_json(storage.join(context.workdir, f"{threading.current_thread().name}.json"), 1)
        together.wait()
        return {}

    def run() -> None:
        try:
            urls.append(stage(body=body))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, name=f"racer{i}") for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return urls


def held(stage) -> None:
    """One winner: its files and the manifest are there, nothing of the others."""
    artifact = Artifact.open(stage.url())
    assert artifact.fetch("mine.txt").read_text().startswith("racer")
    found = {name.split("/")[0] for name in storage.list_files(stage.url())}
    assert found == {"manifest.json", artifact.manifest["folder"]}


@pytest.mark.parametrize("count", [2, 3, pytest.param(5, marks=pytest.mark.heavy)])
def test_racing_executions_commit_once_and_the_losers_files_are_gone(stage, capsys, count):
    assert race(stage, count) == [stage.url()] * count
    held(stage)
    said = capsys.readouterr().out
    assert said.count("thing: done in") == 1
    assert said.count("another process finished it first") == count - 1


@pytest.mark.heavy
def test_racing_executions_on_s3(stage, s3_root):
    stage.root = s3_root
    race(stage, 3)
    held(stage)


def test_a_loser_that_comes_late_cleans_its_workdir(stage):
    """The winner deletes the workdir while the loser still writes checkpoints into it."""

    def late(context: Context) -> dict[str, float]:
        stage()  # somebody else starts, finishes and commits meanwhile
        storage.write_json(storage.join(context.workdir, "checkpoint.json"), 1)
        return {}

    stage(body=late)
    assert Artifact.open(stage.url()).fetch("deep/file.txt").read_text() == "attempt 1"
    assert not storage.list_files(f"{stage.url()}/work")


def test_a_runs_name_holds_one_recipe(stage):
    stage(run="first")
    stage("other", run="first", overrides="runtime.workers=3")  # changes no result
    with pytest.raises(InputError, match=r"run 'first' exists with another recipe .*\n  optim\.batch: 16 -> 8"):
        stage("third", run="first", overrides="optim.batch=8")
    assert stage.ran == 2


def test_copies_of_an_input_do_not_mix_over_contents(stage, tmp_path):
    url = stage()
    before = Artifact.open(url).cache
    stage(redo="yes")
    assert Artifact.open(url).cache != before
    assert isinstance(before, Path)


def test_a_relative_root_is_recorded_absolutely_and_answers_under_both_names(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = stage("first", root="root")
    assert first == str(tmp_path / "root/first/0123")
    url = stage("second", root="root", inputs={"init": "root/first/0123"})
    assert Artifact.open(url).manifest["inputs"]["init"]["url"] == first
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert stage("second", root=str(tmp_path / "root"), inputs={"init": first}) == url
    assert "already complete" in capsys.readouterr().out
    assert Artifact.open(url).source("init").url == first


def test_an_artifact_finds_what_it_was_made_from_below_a_moved_root(stage, tmp_path, monkeypatch):
    first = stage("first")
    url = stage("second", inputs={"init": first})
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = Artifact.open(str(tmp_path / "moved/second/0123"))
    assert moved.source("init").url == str(tmp_path / "moved/first/0123")
    manifest = storage.read_json(f"{moved.url}/manifest.json")  # as it was written before paths were made absolute
    manifest["inputs"]["init"]["url"] = "moved/first/0123"
    del manifest["sha256"], manifest["files"]
    storage.write_json(f"{moved.url}/manifest.json", manifest)
    monkeypatch.chdir("/")
    assert Artifact.open(moved.url).source("init").url == str(tmp_path / "moved/first/0123")
    stage("first", root=str(tmp_path / "moved"), redo="yes")
    with pytest.raises(InputError, match="has no manifest"):
        Artifact.open(moved.url).source("init")
    assert not storage.exists(f"{url}/manifest.json")


def test_an_evaluation_has_one_place_however_its_root_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, places = resolve("tiny"), set()
    for root in ("root", "./root/", f"{tmp_path}/root"):
        for below in ("root", str(tmp_path / "root")):
            url = evaluation_url(root, f"{below}/joint/0123", f"{below}/prepare/4567", recipe)
            places.add(storage.absolute(url))
    assert len(places) == 1
    s3 = evaluation_url("s3://box/root", "s3://box/root/joint/0123", "s3://box/root/prepare/4567", recipe)
    assert places.pop().rsplit("/", 1)[1] == s3.rsplit("/", 1)[1]
    named = evaluation_fields("root", "ViT-B-32:openai", "root/prepare/4567", recipe)
    assert (named["model"], named["shards"]) == ("ViT-B-32:openai", "prepare/4567")


DAMAGES = {
    "empty": (lambda raw: b"", "it is empty"),
    "torn": (lambda raw: raw[: len(raw) // 2], "it is no JSON"),
    "zeros": (lambda raw: b"\0" * len(raw), "it is empty"),
    "latin": (lambda raw: b"\xff\xfe" + raw, "it is no JSON"),
    "deep": (lambda raw: b"[" * 100_000, "it is no JSON"),
    "null": (lambda raw: b"null", "it is a NoneType and no object"),
    "list": (lambda raw: b"[1]", "it is a list and no object"),
    "number": (lambda raw: b"3", "it is a int and no object"),
    "nothing in it": (lambda raw: b"{}", "its stage is missing"),
    "no outputs": (lambda raw: edited(raw, outputs=None), "its outputs is of another kind"),
    "outputs of another shape": (lambda raw: edited(raw, outputs={"a": 1}), "its outputs say nothing .* of 'a'"),
    "inputs of another shape": (lambda raw: edited(raw, inputs={"a": {}}), "its inputs say nothing .* of 'a'"),
    "seconds in words": (lambda raw: edited(raw, seconds="long"), "its seconds is of another kind"),
    "leads out": (lambda raw: edited(raw, folder="../other"), r"its folder is '\.\./other'"),
    "a file leads out": (
        lambda raw: edited(raw, outputs={"../x": {"bytes": 1, "sha256": ""}}),
        "its outputs name '../x', which leads out",
    ),
    "no digest": (lambda raw: without(raw, "sha256"), "it has lost its sha256"),
    "a bit of the digest's name": (lambda raw: b"sha257".join(raw.rsplit(b"sha256", 1)), "it has lost its sha256"),
    "a bit": (lambda raw: raw.replace(b"42.0", b"40.0"), "it does not have the sha256 that it names"),
}


def without(raw: bytes, name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(raw).items() if key != name}).encode()


def edited(raw: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(raw), **fields}).encode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_set_aside_and_the_stage_runs(stage, capsys, damage):
    url = stage()
    change, why = DAMAGES[damage]
    raw = change(storage.read_bytes(f"{url}/manifest.json"))
    storage.write_bytes(f"{url}/manifest.json", raw)
    assert find(url) is None
    with pytest.raises(InputError, match=rf"^{url}/manifest\.json is damaged \({why}.*: start what made it once more"):
        stage("reader", {"thing": url})
    stage()
    assert stage.ran == 2
    (kept,) = (name for name in storage.list_files(url) if name.startswith("damaged/"))
    assert storage.read_bytes(f"{url}/{kept}") == raw
    assert f"so it runs again; the damaged one is kept as {url}/{kept}\n" in capsys.readouterr().out
    assert Artifact.open(url).fetch("deep/file.txt").read_text() == "attempt 2"
    stage("reader", {"thing": url})


MISFITS = {
    "folder": (Path.mkdir, "it is a folder"),
    "full folder": (lambda path: (path / "deep").mkdir(parents=True), "it is a folder"),
    "link to itself": (lambda path: path.symlink_to(path.name), "it is a link that leads nowhere"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "it is a link that leads nowhere"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_manifest_that_is_no_file_is_set_aside_and_the_stage_runs(stage, capsys, misfit):
    url = stage()
    place = Path(url, "manifest.json")
    place.unlink()
    lay, why = MISFITS[misfit]
    lay(place)
    assert find(url) is None
    with pytest.raises(DamagedError, match=rf"^{url}/manifest\.json is damaged \({why}\)"):
        Artifact.open(url)
    stage()
    assert stage.ran == 2
    assert Artifact.open(url).fetch("deep/file.txt").read_text() == "attempt 2"
    (kept,) = Path(url, "damaged").iterdir()
    assert f"its manifest is damaged ({why}), so it runs again; the damaged one is kept as {kept}\n" in (
        capsys.readouterr().out
    )


def test_no_flipped_bit_of_a_manifest_gives_other_values(stage):
    url = stage()
    raw, before = storage.read_bytes(f"{url}/manifest.json"), Artifact.open(url).manifest
    draw = random.Random(0)
    for _ in range(300):
        flipped = bytearray(raw)
        flipped[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        storage.write_bytes(f"{url}/manifest.json", bytes(flipped))
        found = find(url)
        assert found is None or {k: found.manifest[k] for k in before if k != "sha256"} == {
            k: before[k] for k in before if k != "sha256"
        }


def test_a_manifest_of_before_which_has_no_digest_stands(stage, capsys):
    url = stage()
    manifest = Artifact.open(url).manifest
    del manifest["sha256"], manifest["files"]
    storage.write_json(f"{url}/manifest.json", manifest)
    stage()
    assert stage.ran == 1
    assert "already complete" in capsys.readouterr().out


def test_a_damaged_retired_manifest_ends_nothing_and_loses_no_result(stage):
    url = stage()
    first = Artifact.open(url)
    stage(redo="yes")
    storage.write_bytes(f"{url}/retired/{first.digest[:8]}.json", b"{")
    stage(redo="yes")
    assert stage.ran == 3
    assert first.fetch("deep/file.txt").read_text() == "attempt 1"
