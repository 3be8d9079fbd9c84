"""Stage export from a trained tiny student to the card, the lines that use it and MLflow's registry."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.models.build import load_model
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import cli, evaluate, export, train
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.exported import export_command, export_of, student_use


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_shards, tiny_teacher):
    """A root with a student after warm-up and its evaluation: (root, model, evaluation)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("root")
    request = Request("tiny", str(root), "kd")
    model = train.run(request, stage="warmup", shards=tiny_shards, teacher=tiny_teacher)
    return root, model, evaluate.run(request, model=model, shards=tiny_shards, task="retrieval")


@pytest.fixture(scope="module")
def exported(trained, tiny_shards, request):
    root, model, evaluation = trained
    told = Request("tiny", str(root), "kd", run="a run", tracking_uri=f"sqlite:///{root}/mlflow.db")
    given = {"model": model, "shards": tiny_shards, "evaluation": evaluation}  # in the order of export_of
    return told, given, Artifact.open(export.run(told, **given))


def read(artifact, name):
    return artifact.fetch(name).read_text(encoding="utf-8")


def test_the_three_formats_and_their_bounds(exported):
    _, _, artifact = exported
    found = json.loads(read(artifact, "parity.json"))
    assert list(found["formats"]) == ["open_clip", "huggingface", "onnx"]
    for name, entry in found["formats"].items():
        assert entry["image"]["max_difference"] <= found["tolerance"]
        assert artifact.manifest["metrics"][f"{name}/text/max_difference"] == entry["text"]["max_difference"]
    files = artifact.files()
    assert {"open_clip/model.safetensors", "huggingface/model.safetensors", "onnx/image.onnx", "onnx/text.onnx"} <= set(
        files
    )


def test_the_card_tells_how_the_student_came_about(exported, trained):
    _, _, artifact = exported
    card = read(artifact, "README.md")
    assert "trained by method `kd` from the teacher tiny-teacher (random)" in card
    assert "Recipe `tiny`, row `kd`" in card
    assert "| data: 96 pictures | CC0-1.0 | the data source |" in card
    assert "| student before training: tiny-student, random | none needed" in card
    assert re.search(r"\| retrieval/i2t/R@5 \| [\d.]+ \| [\d.]+ to [\d.]+ \| 3 \| [\d.]+ \|", card)
    stages = re.findall(r"^\| (prepare|teacher|warmup) \| \d+ \| 20", card, re.MULTILINE)
    assert stages == ["prepare", "teacher", "warmup"]
    assert json.loads(read(artifact, "training.json"))["fields"]["method.name"] == "kd"


RUN_BY_HAND = """
import sys, torch
from PIL import Image
picture = Image.new("RGB", (32, 32), (200, 40, 90))
kept = []
{code}
assert not [name for name in sys.modules if name.startswith("cmapkd")], "cmapkd was imported"
torch.save(kept, "found.pt")
"""
KEEP = "kept += [torch.as_tensor(x).detach().float() for x in (image, text)]\n"


@pytest.mark.heavy
def test_what_the_card_says_to_do_works_without_this_package(exported, tmp_path):
    _, _, artifact = exported
    for name in artifact.files():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(artifact.fetch(name).read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", read(artifact, "README.md"), re.DOTALL)
    assert len(blocks) == 3
    code = "".join(block + KEEP for block in blocks)
    subprocess.run([sys.executable, "-c", RUN_BY_HAND.format(code=code)], cwd=tmp_path, check=True, timeout=300)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    student = load_model(tmp_path / "open_clip")
    with torch.inference_mode():
        expected = student.encode_text(student.tokenize(["a caption"]))
    for image, text in zip(found[::2], found[1::2], strict=True):
        torch.testing.assert_close(text, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(image, found[0], atol=1e-4, rtol=0)  # one colour: no resampling can differ


@pytest.mark.parametrize("document", ["docs/howto/export.md", "docs/zh.md"])
def test_the_lines_of_the_documents_work_on_an_export(exported, tmp_path, monkeypatch, document):
    """Those for open_clip alone; of those that use our package test_api.py says whether they can be called so."""
    _, _, artifact = exported
    for name in (name for name in artifact.files() if name.startswith("open_clip/")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(artifact.fetch(name).read_bytes())
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    known = {"picture": Image.new("RGB", (32, 32), (200, 40, 90))}
    (code,) = re.findall(r"^```python\n(import open_clip\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(code, known)
    student = load_model(tmp_path / "open_clip")
    with torch.inference_mode():
        expected = student.encode_text(student.tokenize(["a red mug"]))
    torch.testing.assert_close(known["text"][:1].detach(), expected, atol=1e-5, rtol=0)
    assert known["image"].shape == expected.shape


def run_python(text):
    """What lines of Python print, each of them run as it stands."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "pasted", "exec"), {})
    return out.getvalue()


def test_the_lines_of_a_report_use_the_exported_student(exported):
    request, given, _ = exported
    use = student_use(export_of(request, *given.values()))
    assert use is not None
    assert Path(use.card).name == "README.md"
    assert Path(use.card).exists()
    assert (use.copy, use.reason) == ("", "")
    cosines = [float(value) for value in re.findall(r"-?\d\.\d+", run_python(use.python()))]
    assert len(cosines) == 2
    assert all(-1 <= one <= 1 for one in cosines)
    assert len(re.findall(r"-?\d+\.\d+", run_python(use.onnx()))) > 8  # an embedding
    assert len(use.python().splitlines()) <= 8


def test_without_an_export_there_is_its_command(exported):
    request, given, _ = exported
    assert student_use(f"{request.root}/export/000000000000") is None
    words = shlex.split(export_command(request, *given.values()))
    assert words[1:3] == ["-m", "cmapkd_core.stages.export"]
    asked = vars(cli.parser(export.run).parse_args(words[3:]))
    assert (asked["recipe"], asked["root"], asked["run"]) == ("tiny", request.root, "a run")
    assert {name: asked[name] for name in given} == given
    assert export_command(request, "", given["shards"], given["evaluation"]) == ""


def test_an_artifact_that_is_no_export_is_none(exported):
    found = exported[1]["evaluation"]
    assert Artifact.open(found).manifest["stage"].startswith("evaluate")
    assert student_use(found) is None


def test_it_is_a_version_in_the_registry_once(exported, capsys):
    from mlflow import MlflowClient

    told, given, artifact = exported
    client = MlflowClient(tracking_uri=told.tracking_uri)
    (version,) = client.search_model_versions("name = 'cmapkd-tiny'")
    assert version.source == storage.join(artifact.url, artifact.manifest["folder"])
    assert version.tags["cmapkd.run"] == "a run"
    assert version.tags["cmapkd.ablation"] == "kd"
    export.run(told, **given)
    assert len(client.search_model_versions("name = 'cmapkd-tiny'")) == 1
    out = capsys.readouterr().out
    assert "export: already complete" in out
    assert "version 1 of cmapkd-tiny" in out


@pytest.mark.parametrize(
    ("uri", "line"),
    [("", "no MLflow is given, so not registered"), ("http://127.0.0.1:9", "warning: not registered in MLflow")],
)
def test_without_a_registry_the_export_stands(exported, capsys, monkeypatch, uri, line):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told, given, artifact = exported
    again = Request("tiny", told.root, "kd", run="a run", tracking_uri=uri)
    assert export.run(again, **given) == artifact.url
    assert line in capsys.readouterr().out


def test_the_submit_command_knows_its_place(exported):
    from cmapkd_core.places import export_url

    told, given, artifact = exported
    recipe = resolve("tiny", "kd")
    assert export_url(told.root, given["model"], given["shards"], recipe, given["evaluation"]) == artifact.url
    assert export_url(told.root, given["model"], given["shards"], recipe) != artifact.url


def test_a_model_that_is_not_finished_or_no_student_is_an_error(exported, tiny_shards, tiny_teacher):
    told, _, _ = exported
    with pytest.raises(InputError, match="artifact of stage teacher: a student comes from one of warmup, alsn, joint"):
        export.run(told, model=tiny_teacher, shards=tiny_shards)
    with pytest.raises(InputError, match="has no manifest"):
        export.run(told, model=f"{told.root}/joint/000000000000", shards=tiny_shards)
