"""CONTRIBUTING.md is followed: its rows and files are added as they stand there, and its errors are those that come."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import parser
from cmapkd.pipelines.tasks import tasks_of
from cmapkd_core.catalog import EVALUATIONS, SOURCES, EvaluationEntry, SourceEntry
from cmapkd_core.errors import InputError
from cmapkd_core.method_specs import METHODS, MethodSpec, document
from cmapkd_core.recipes import ABLATIONS, BASELINES, as_published, resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.view import UndeclaredReadError

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


class Chapter:
    """A thing that is added: the code of its row and of its file, and the errors on the way."""

    def __init__(self, title: str) -> None:
        (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
        self.row, *self.files = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        cells = re.findall(r"^\| (.*?) \| .*? \|$", text, re.MULTILINE)
        self.errors = [cell for cell in cells if cell != "error"]

    def rows(self) -> dict[str, Any]:
        names = {"MethodSpec": MethodSpec, "SourceEntry": SourceEntry, "EvaluationEntry": EvaluationEntry}
        return eval(f"{{{self.row}}}", names)  # the document's own code

    def says(self, error: object, of: set[str]) -> None:
        """Whether an error is one of those that the chapter tells; those that were met are kept in `of`."""
        met = [cell for cell in self.errors if re.match(".*".join(map(re.escape, cell.split(".."))), str(error), re.S)]
        assert met, f"CONTRIBUTING.md does not tell: {error}"
        of.update(met)


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`write(module, code)`: the file of a module, for the length of a test."""

    def put(name: str, code: str) -> None:
        module = ModuleType(name)
        module.__file__ = f"{name.replace('.', '/')}.py"
        exec(compile(code, module.__file__, "exec"), vars(module))
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture(autouse=True)
def _quiet(one_thread: None, own_signals: None) -> None:
    """Stages take over SIGTERM."""


@pytest.fixture
def regenerate(command):
    return command("regenerate")


def test_a_method(tmp_path, monkeypatch, regenerate, write, tiny_shards, tiny_teacher):
    chapter, met = Chapter("A method"), set()
    (name, spec), *none = chapter.rows().items()
    assert not none
    args = parser().parse_args(["--recipe", "tiny", "--method", name, "--dry-run", "--root", str(tmp_path)])
    for asked in (
        lambda: decide(args),
        lambda: resolve("tiny", overrides=f"method.name={name}"),
        lambda: resolve("tiny", overrides=f"method.weights.{name}=1"),
    ):
        with pytest.raises(InputError) as raised:
            asked()
        chapter.says(raised.value, met)

    monkeypatch.setitem(METHODS, name, spec)
    monkeypatch.setitem(BASELINES, name, as_published(name))  # as it is made when recipes.py is imported
    with pytest.raises(InputError) as raised:
        decide(args)
    chapter.says(raised.value, met)

    (code,) = chapter.files
    write(spec.code.partition(":")[0], code)
    assert resolve("tiny", name).method.weights.cosines == spec.terms["cosines"]
    assert resolve("tiny", name, f"method.weights.{name}=2").method.weights.cosines == 2.0
    assert decide(args).recipes["run"].method.name == name
    assert f"| {name} | {name} | task 1, cosines 10 |" in document()
    assert name in regenerate.curves()

    for part, wrong in ((', "cosines": apart', ""), ("apart = F", "self.recipe.method.kd_tau; apart = F")):
        assert part in code
        write(spec.code.partition(":")[0], code.replace(part, wrong))
        with pytest.raises((InputError, UndeclaredReadError)) as raised:
            regenerate.run_curve(name, str(tmp_path / f"{len(met)}"), tiny_shards, tiny_teacher)
        chapter.says(raised.value, met)

    doc = '    """L_clip and the distance of the cosines."""\n'
    lift = "import torch; self.lift = torch.nn.Linear(2, 2)"
    made = f"{doc}\n    def __init__(self, *given):\n        super().__init__(*given)\n        {lift}\n"
    frozen = made.replace(lift, f"{lift}.requires_grad_(False)")
    grouped = f"{made}\n    def groups(self, phase):\n        return {{'extra': list(self.lift.parameters())}}\n"
    assert doc in code
    for wrong in (made, grouped):  # of no group, and of a group that the row does not declare
        write(spec.code.partition(":")[0], code.replace(doc, wrong))
        with pytest.raises((InputError, UndeclaredReadError)) as raised:
            regenerate.run_curve(name, str(tmp_path / "ungrouped"), tiny_shards, tiny_teacher)
        chapter.says(raised.value, met)
    write(spec.code.partition(":")[0], code.replace(doc, frozen))
    with_frozen = regenerate.run_curve(name, str(tmp_path / "frozen"), tiny_shards, tiny_teacher)

    write(spec.code.partition(":")[0], code)
    with pytest.raises(InputError) as raised:
        regenerate.read_file(name, tmp_path)
    chapter.says(raised.value, met)
    curve = regenerate.run_curve(name, str(tmp_path), tiny_shards, tiny_teacher)
    assert regenerate.alike(with_frozen, curve)
    assert curve[0]["total"] == pytest.approx(curve[0]["task"] + 10 * curve[0]["cosines"], rel=1e-4)
    assert regenerate.write(name, curve, tmp_path) == f"{name}.json: written"
    assert regenerate.alike(curve, regenerate.read_file(name, tmp_path))
    assert [cell for cell in chapter.errors if cell not in met] == [KEYS]


KEYS = ".. keys have moved; where they must: python tests/golden/keys.py --write"  # test_keys.py


def test_an_ablation(tmp_path, monkeypatch, regenerate, tiny_shards, tiny_teacher):
    chapter, met = Chapter("An ablation"), set()
    ((name, changes),) = chapter.rows().items()
    for asked in (lambda: resolve("tiny", name), lambda: resolve("tiny", overrides="schedule.fine.lr.pyramids=0")):
        with pytest.raises(InputError) as raised:
            asked()
        chapter.says(raised.value, met)
    monkeypatch.setitem(ABLATIONS, name, changes)
    with pytest.raises(InputError) as raised:
        regenerate.read_file(name, tmp_path)
    chapter.says(raised.value, met)
    curve = regenerate.run_curve(name, str(tmp_path), tiny_shards, tiny_teacher)
    assert len(curve) >= 10
    assert not regenerate.alike(curve, regenerate.read_file("none"))
    assert len(met) == len(chapter.errors) - 1  # fields that are not declared: tests/stages/test_declared.py


def test_a_source(tmp_path, monkeypatch, write):
    chapter, met = Chapter("A source"), set()
    ((name, entry),) = chapter.rows().items()
    with pytest.raises(InputError) as raised:
        resolve("tiny", data=name)
    chapter.says(raised.value, met)
    monkeypatch.setitem(SOURCES, name, entry)
    with pytest.raises(InputError) as raised:
        prepare.run(Request("tiny", str(tmp_path / "none"), data=name))
    chapter.says(raised.value, met)
    (code,) = chapter.files
    write(entry.code.partition(":")[0], code.replace("file.getvalue()", "b''"))
    with pytest.raises(InputError) as raised:
        prepare.run(Request("tiny", str(tmp_path / "bad"), data=name, overrides="data.leakage=exact"))
    assert "no row can be used" in str(raised.value)
    write(entry.code.partition(":")[0], code.replace("file.getvalue()", "file.getvalue() if number % 8 else b''"))
    with pytest.raises(InputError) as raised:
        prepare.run(Request("tiny", str(tmp_path / "some"), data=name))
    chapter.says(raised.value, met)
    write(entry.code.partition(":")[0], code)
    artifact = Artifact.open(prepare.run(Request("tiny", str(tmp_path), data=name)))
    assert artifact.manifest["metrics"]["used"] == resolve("tiny").data.size
    assert len(met) == len(chapter.errors)


def test_an_evaluation(tmp_path, monkeypatch, write, tiny_shards):
    chapter, met = Chapter("An evaluation"), set()
    ((name, entry),) = chapter.rows().items()

    def measured(root: Path) -> str:
        return evaluate.run(Request("tiny", str(root)), model="recipe:student", shards=tiny_shards, task=name)

    with pytest.raises(InputError) as raised:
        resolve("tiny", overrides=f"evaluate.sets={name}")
    chapter.says(raised.value, met)
    monkeypatch.setitem(EVALUATIONS, name, entry)
    with pytest.raises(InputError) as raised:
        resolve("tiny", overrides=f"evaluate.sets={name}")
    chapter.says(raised.value, met)
    (code,) = chapter.files
    write(entry.code.partition(":")[0], code)
    recipe = resolve("tiny", overrides=f"evaluate.sets={name}")
    models = {f"{name}-{role}" for role in ("student", "reference", "teacher", "before")}
    assert models <= {task.name for task in tasks_of(recipe)}
    write(entry.code.partition(":")[0], code.replace("cosines = ", "subject.config.templates; cosines = "))
    with pytest.raises(UndeclaredReadError) as raised:
        measured(tmp_path / "undeclared")
    chapter.says(raised.value, met)
    write(entry.code.partition(":")[0], code.replace('"images"', '"pictures"'))
    with pytest.raises(InputError) as raised:
        measured(tmp_path / "facts")
    chapter.says(raised.value, met)
    write(entry.code.partition(":")[0], code)
    metrics = json.loads(Artifact.open(measured(tmp_path)).fetch("metrics.json").read_text())
    assert metrics[f"{name}/images"] > 1
    assert 0 < metrics[f"{name}/apart"] < 2
    assert len(met) == len(chapter.errors)
