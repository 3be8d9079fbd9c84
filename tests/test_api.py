"""From Python: the notebook of examples/ is run once, cell by cell, and what its cells leave is looked at.

One tiny run serves the notebook and the interface. It is stopped on its way as Ctrl-C stops it, and goes on.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

import cmapkd
from cmapkd import DataSet, Run, Student, api, distil, evaluate, load_student, prepare
from cmapkd.pipelines import submit
from cmapkd.pipelines.submission import Submission, decide
from cmapkd.students import as_rgb
from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.records import read_record
from cmapkd_core.stages.artifact import Artifact, find

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "examples/own_pictures.ipynb"


@dataclass
class Ran:
    """The notebook after its last cell. names: what its cells defined. stopped: teacher's artifact at the stop."""

    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    stopped: Artifact | None = None


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    return ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory, quick_pdf: None) -> Iterator[Ran]:
    """All cells in their order; that which distils is stopped in the warm-up first, and run again."""
    import matplotlib as mpl

    mpl.use("Agg")
    before = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(1)
    ran = Ran(tmp_path_factory.mktemp("notebook"))
    with contextlib.chdir(ran.folder):
        for number, cell in enumerate(cells()):
            code = compile(cell, f"{NOTEBOOK.name}, cell {number}", "exec")
            if "distil(" in cell:
                ran.stopped = stopped(code, ran)
            exec(code, ran.names)
        yield ran
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGTERM)) == (1, before[1])
    signal.signal(signal.SIGINT, interrupt)
    torch.set_num_threads(before[0])


def stopped(code: Any, ran: Ran) -> Artifact:
    """Ctrl-C in the warm-up's third update; gives the teacher's artifact, which is complete by then."""
    from cmapkd_core.engine.runtime import StopRequest

    original, updates = StopRequest.flags, []

    def flags(self: StopRequest, due: bool) -> tuple[bool, bool]:
        if list(ran.folder.glob("own_run/teacher/*/manifest.json")):
            updates.append(due)
        if len(updates) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, due)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "flags", flags)
        with pytest.raises(KeyboardInterrupt):
            exec(code, dict(ran.names))
    (teacher,) = ran.folder.glob("own_run/teacher/*")
    return Artifact.open(str(teacher))


# ---- the notebook ---------------------------------------------------------------------------------


def test_the_notebook_shows_what_it_says(notebook: Ran) -> None:
    names = notebook.names
    assert names["data"].counts["used"] == 96
    assert isinstance(names["run"], Run)
    assert names["zeroshot"].metrics["zeroshot/images"] == names["data"].counts["test"]
    titles = [axis.get_title() for axis in names["axes"].flat]
    assert {*titles} <= {*names["texts"]}
    colours = [title.split()[1] == text.split()[1] for title, text in zip(titles, captions(notebook), strict=False)]
    assert sum(colours) >= 6  # of twelve, where chance is two


def captions(notebook: Ran) -> list[str]:
    return [row["captions"][0] for row in notebook.names["rows"]]


def test_the_notebook_holds_no_output_that_could_be_old() -> None:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")


# ---- a run ----------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_and_the_same_call_goes_on(notebook: Ran) -> None:
    stopped, run = notebook.stopped, notebook.names["run"]
    assert stopped is not None
    assert Artifact.open(run.artifacts["teacher"]).digest == stopped.digest
    assert Artifact.open(run.artifacts["warmup"])


def test_a_run_has_the_numbers_of_its_artifacts(notebook: Ran) -> None:
    run: Run = notebook.names["run"]
    assert run.metrics == Artifact.open(run.artifacts["evaluate-student"]).manifest["metrics"]
    assert run.compared["teacher"] == Artifact.open(run.artifacts["evaluate-teacher"]).manifest["metrics"]
    assert [*run.compared] == ["teacher", "before", "reference"]
    assert "distilled student" in run.outcome
    assert "<html" in Path(run.report).read_text(encoding="utf-8")[:200]
    assert Artifact.open(run.student).manifest["stage"] == "export"
    assert "retrieval" not in repr(run)  # a notebook shows what stands in its last line


def test_the_command_line_has_the_same_run(notebook: Ran) -> None:
    """Its name and the places of its artifacts."""
    run, fields = notebook.names["run"], notebook.names["fields"]
    words = ["--recipe", "tiny", "--data", "folder:own_pictures", "--root", "own_run", "--local"]
    words += [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    job = decide(submit.parser().parse_args(words))
    assert read_record("own_run", run.name)["recipe"] == "tiny"
    assert (job.run, {name: storage.absolute(url) for name, url in job.urls.items()}) == (run.name, run.artifacts)


def test_an_evaluation_of_a_run_is_of_its_model_and_compares_the_data(notebook: Ran) -> None:
    run, found = notebook.names["run"], Artifact.open(notebook.names["zeroshot"].url)
    assert found.manifest["inputs"]["model"]["url"] == run.artifacts["joint"]
    assert api._measurable(run.student) == run.artifacts["joint"]  # and of its export
    assert api._measurable("ViT-B-32:openai") == "ViT-B-32:openai"
    folder = Artifact.open(run.student).fetch_folder("open_clip")
    assert api._measurable(folder) == f"local-dir:{folder}"


# ---- a student ------------------------------------------------------------------------------------


def test_a_student_gives_the_embeddings_of_open_clip(notebook: Ran) -> None:
    student: Student = load_student(notebook.names["run"].student)
    folder = Artifact.open(student.url).fetch_folder("open_clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    files = [Path("own_pictures") / f"{number}.png" for number in range(40)]  # more than go through a tower at once
    texts = ["a red circle", "", "a blue square " * 30]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(file)) for file in files])
        theirs = model.eval().encode_image(pixels, normalize=True), model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(torch.stack([student.preprocess(file) for file in files]), pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(student.encode_image(files), theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(student.encode_text(texts), theirs[1], rtol=0, atol=1e-6)


def test_one_is_a_batch_of_one_and_none_is_none(notebook: Ran) -> None:
    student, picture = notebook.names["student"], Path("own_pictures/0.png")
    width = student.encode_text("a").shape[1]
    assert student.encode_image(picture).shape == student.encode_image([str(picture)]).shape == (1, width)
    assert student.encode_image([]).shape == student.encode_text([]).shape == (0, width)
    assert student.encode_text(["a", "b"]).norm(dim=1).allclose(torch.ones(2))


def test_a_student_is_found_wherever_it_lies(notebook: Ran) -> None:
    run, expected = notebook.names["run"], notebook.names["student"].encode_text("a red circle")
    export = Artifact.open(run.student)
    inside = export.fetch_folder("open_clip")
    for place in (run, run.student, run.artifacts["joint"], inside, inside.parent, str(inside)):
        assert torch.equal(load_student(place).encode_text("a red circle"), expected), place
    with pytest.raises(InputError, match="is of stage prepare and holds no model: give that of stage export"):
        load_student(run.artifacts["prepare"])
    with pytest.raises(InputError, match="nowhere"):
        load_student("nowhere/at/all")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda student: student.encode_text(None), "texts=None is of type NoneType: give a text or a list of them"),
        (lambda student: student.encode_text(["a", 3]), r"texts\[1\]=3 is of type int: give a text"),
        (lambda student: student.encode_image(None), "pictures=None is of type NoneType: give a picture of PIL or"),
        (lambda student: student.encode_image([None]), "picture=None is of type NoneType: give a picture of PIL or"),
        (lambda student: student.encode_image("no.png"), "picture no.png cannot be read: No such file or directory"),
        (lambda student: student.preprocess("own_pictures"), "picture own_pictures cannot be read: Is a directory"),
    ],
)
def test_what_is_no_picture_or_text_is_refused_by_name(notebook: Ran, call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call(notebook.names["student"])


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert as_rgb(palette).getpixel((0, 0)) == (9, 8, 7)


# ---- what is refused, and what a name costs -------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ("emoji", "emoji"),
        ("coco:s3://b/coco", "coco:s3://b/coco"),
        ("folder:x", "folder:x"),
        (Path("x"), "folder:x"),
        ("/data/x", "folder:/data/x"),
        ("s3://b/x", "folder:s3://b/x"),
        ("~/x", f"folder:{Path.home()}/x"),
        ("fodler:/x", "fodler:/x"),  # for the error that names the nearest source
    ],
)
def test_data_may_be_a_place(given: str | Path, data: str) -> None:
    assert api._data(given) == data


def test_errors_are_those_of_the_stages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        prepare("emoji", recipe="tinny", out=tmp_path)
    with pytest.raises(InputError, match="names no weights: write NAME:WEIGHTS, such as ViT-L-14:openai"):
        distil("emoji", "ViT-L-14", out=tmp_path)
    with pytest.raises(InputError, match="did you mean 'optim.batch'"):
        distil("scenes", recipe="tiny", out=tmp_path, fields={"optim.batsch": 1})
    with pytest.raises(InputError, match="did you mean 'retrieval'"):
        evaluate("ViT-B-32", "scenes", "retrival", recipe="tiny", out=tmp_path)
    with pytest.raises(InputError, match="unknown model 'ViT-B-61': did you mean 'ViT-B-16'"):
        evaluate("ViT-B-61:openai", "scenes", "retrieval", recipe="tiny", out=tmp_path)
    with pytest.raises(InputError, match="nowhere has no open_clip_config.json"):
        evaluate("local-dir:nowhere", "scenes", "retrieval", recipe="tiny", out=tmp_path)
    with pytest.raises(InputError, match="unknown weights 'opnai' of ViT-B-16: did you mean 'openai'"):
        distil("scenes", student="ViT-B-16:opnai", recipe="tiny", out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: prepare(None), "data=None is of type NoneType: give a folder of pictures or SOURCE"),
        (lambda: prepare("emoji", fields=["a=1"]), r"fields=\['a=1'\] is of type list: give a dict, such as"),
        (lambda: prepare("emoji", out=None), "out=None is of type NoneType: give a folder or s3:// prefix"),
        (lambda: distil(123), "data=123 is of type int: give a folder of pictures"),
        (lambda: distil("emoji", teacher=Path("m")), r"teacher=PosixPath\('m'\) is of type PosixPath: give a model's"),
        (lambda: distil("emoji", recipe=None), "recipe=None is of type NoneType: give the name of a recipe"),
        (lambda: distil("emoji", seed="x"), "seed='x' is of type str: give a whole number, or None"),
        (lambda: distil("emoji", run=7), "run=7 is of type int: give a text"),
        (lambda: evaluate(None, "emoji"), "model=None is of type NoneType: give a Run, or a model's name or folder"),
        (lambda: evaluate("ViT-B-32", None), "data=None is of type NoneType: give a Run, what prepare gave, or a fol"),
        (lambda: evaluate("ViT-B-32", "emoji", None), "task=None is of type NoneType"),
        (lambda: load_student(None), "model=None is of type NoneType: give a Run, or a model's name or folder"),
        (lambda: load_student("x", device="cudaa"), "device='cudaa': .*: give 'cpu', or 'cuda' where torch sees a GPU"),
        (lambda: load_student("x", device="cuda:99"), "device='cuda:99': .*: give 'cpu'"),
        (lambda: load_student("x", device=None), "device=None is of type NoneType: give 'cpu'"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def decided(monkeypatch: pytest.MonkeyPatch, *given: Any, **more: Any) -> Submission:
    """What a call of `distil` would run."""
    from cmapkd.pipelines import in_process

    class Seen(Exception):
        pass

    def see(job: Submission) -> None:
        raise Seen(job)

    monkeypatch.setattr(in_process, "run_in_process", see)
    with pytest.raises(Seen) as found:
        distil(*given, **more)
    job: Submission = found.value.args[0]
    return job


def test_a_folder_is_of_recipe_own_and_other_data_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps({"file": f"{number}.png", "caption": "a mug"}) for number in range(60)]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    recipe = decided(monkeypatch, tmp_path, out=tmp_path / "out").recipes["run"]
    assert (recipe.name, recipe.data.test_share, recipe.optim.batch) == ("own", 0.4, 8)
    assert decided(monkeypatch, "emoji", out=tmp_path / "out").recipes["run"].name == "demo"
    assert decided(monkeypatch, tmp_path, recipe="demo", out=tmp_path / "out").recipes["run"].name == "demo"


def test_models_and_fields_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    job = decided(
        monkeypatch,
        "scenes",
        teacher="ViT-L-14:openai",
        student=f"local-dir:{tmp_path}",
        recipe="tiny",
        ablation="no_alsn",
        out=tmp_path,
        seed=3,
        run="a run",
        fields={"pyramid.vision_levels": ["P4", "P5"], "optim.batch": 8},
    )
    recipe = job.recipes["run"]
    assert (recipe.teacher.model, recipe.teacher.weights) == ("ViT-L-14", "openai")
    assert (recipe.student.model, recipe.student.weights) == (f"local-dir:{tmp_path}", "own")
    assert (recipe.pyramid.vision_levels, recipe.optim.batch, recipe.seed) == (("P4", "P5"), 8, 3)
    assert (recipe.selector.kind, job.run, job.arguments["tracking_uri"]) == ("fixed", "a run", "")


def test_another_thread_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            prepare("scenes", recipe="tiny", out=tmp_path)
        except InputError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "the main thread: call it there" in str(caught[0])
    assert not list(tmp_path.iterdir())


def test_to_import_the_package_costs_nothing() -> None:
    heavy = "torch", "numpy", "pydantic", "kfp", "PIL", "cmapkd.api"
    code = f"import sys, cmapkd; print(dir(cmapkd), [name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "load_student" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'distill'"):
        cmapkd.distill  # noqa: B018
    for name in cmapkd.__all__:
        assert not isinstance(getattr(cmapkd, name), ModuleType)


@pytest.mark.slow  # mypy reads torch's types
def test_a_type_checker_sees_the_types(tmp_path: Path) -> None:
    """As a user has it: strict, with the packages as installed ones."""
    (tmp_path / "mine.py").write_text(
        "from cmapkd import Run, distil, load_student, prepare\n"
        "run: Run = distil('folder:/x', fields={'optim.batch': 8})\n"
        "student = load_student(run)\n"
        "reveal_type(run.metrics)\n"
        "reveal_type(student.encode_image('a.png'))\n"
        "reveal_type(prepare('emoji').counts)\n"
        "distil(3)\n"
        "import cmapkd\n"
        "cmapkd.distill\n"
    )
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"),
        "--ignore-missing-imports",
        "mine.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={"MYPYPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False
    )
    said = done.stdout.splitlines()
    assert [line.partition("note: ")[2] for line in said if "Revealed" in line] == [
        'Revealed type is "typing.Mapping[str, float]"',
        'Revealed type is "torch._tensor.Tensor"',
        'Revealed type is "typing.Mapping[str, int]"',
    ]
    errors = [line.rpartition("[")[2].rstrip("]") for line in said if "error: " in line]
    assert errors == ["arg-type", "attr-defined"]


def test_a_run_as_data_is_its_test_pictures_and_its_settings(notebook: Ran) -> None:
    run: Run = notebook.names["run"]
    assert evaluate(run, run).url == run.artifacts["evaluate-student"]  # the very one, so nothing is measured again
    other = Artifact.open(evaluate("tiny-student:random", run, "retrieval").url)
    assert other.manifest["inputs"]["shards"]["url"] == run.artifacts["prepare"]
    assert other.url.startswith(f"{run.out}/evaluate/")
    elsewhere = evaluate(run, run, "retrieval", out="elsewhere", fields={"evaluate.split": "val"})
    assert elsewhere.url.startswith(storage.absolute("elsewhere"))
    assert Artifact.open(elsewhere.url).manifest["fields"]["evaluate.split"] == "val"


def test_all_of_them_divide_a_folder_as_the_command_does(notebook: Ran, tmp_path: Path) -> None:
    words = ["--recipe", "own", "--data", "folder:own_pictures", "--root", str(tmp_path), "--local"]
    job = decide(submit.parser().parse_args([*words, "--set", "data.leakage=ids"]))
    given: dict[str, Any] = {"out": tmp_path, "fields": {"data.leakage": "ids"}}
    data = prepare("own_pictures", **given)
    assert data.url == job.urls["prepare"]
    found = Artifact.open(evaluate("tiny-student:random", "own_pictures", "retrieval", **given).url)
    assert found.manifest["inputs"]["shards"]["url"] == data.url


def test_a_data_set_is_taken_as_it_was_prepared(notebook: Ran) -> None:
    data: DataSet = notebook.names["data"]
    assert find(data.url) is not None
    assert notebook.names["run"].artifacts["prepare"] == data.url


# ---- the documents --------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["README.md", "docs/howto/evaluate.md", "docs/howto/export.md", "docs/zh.md"])
def test_a_document_calls_what_there_is_as_it_is_called(document: str) -> None:
    """Functions by their names, with arguments that they take; methods and attributes of what they give."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(from cmapkd import .*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        tree = ast.parse(block)
        gives: dict[str, Any] = {}  # variable -> the class of its value
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(hasattr(cmapkd, alias.name) for alias in node.names)
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and isinstance(node.value.func, ast.Name)
            ):
                result = inspect.signature(getattr(cmapkd, node.value.func.id)).return_annotation
                gives[ast.unparse(node.targets[0])] = getattr(cmapkd, result)
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if isinstance(node.func, ast.Name) and hasattr(cmapkd, node.func.id):
                given = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(getattr(cmapkd, node.func.id)).bind(*node.args, **given)
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
            if (owner := gives.get(ast.unparse(node.value))) is not None:
                assert hasattr(owner, node.attr) or node.attr in owner.__dataclass_fields__, node.attr
