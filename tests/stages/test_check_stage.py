"""`--check` of a stage: what it says of a pod, of the inputs that arrive, and of a result that is there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from manifests import TORN

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.places import check_url
from cmapkd_core.request import Request
from cmapkd_core.stages import check
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.prepare import run

GIVEN = {"stage": "check:stage", "shards": "check:shards", "teacher": "check:teacher", "init": "check:init"}

_STRANGE = ("[1]", '[{"ok": true}]', '["ok"]', '{"ok": 1}')  # lines that no check has written
DAMAGED = TORN | {lines: f'{{"check": "train:0:4", "lines": {lines}}}'.encode() for lines in _STRANGE}


def request(root: Path, asked: str = "train:0:4", **more: str) -> Request:
    return Request(**({"recipe": "tiny", "root": str(root), "run": "c", "check": asked} | more))


def lines(root: Path, task: str = "train") -> dict[str, tuple[bool, str]]:
    """ok and text of every line of a result."""
    stored = json.loads(Path(check_url(str(root), "c", task)).read_text())
    return {line["name"]: (line["ok"], line["text"]) for line in stored["lines"]}


def test_a_good_pod(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run(request(tmp_path), GIVEN) == check_url(str(tmp_path), "c", "train")
    found = lines(tmp_path)
    assert list(found) == ["image", "root", "arguments", "MLflow", "GPUs"]
    assert all(ok for ok, _ in found.values())
    assert found["arguments"] == (True, "all 4 inputs arrive")
    assert f"ok      root       {tmp_path} can be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": ""}, "3 of 4 inputs arrive: stage, shards, init"),
        ({"teacher": "check:init", "init": "check:teacher"}, "--teacher arrives as check:init, sent was check:teacher"),
        ({"shards": "None"}, "--shards arrives as None, sent was check:shards"),
        ({"evaluations": {"a/0": "check:evaluations"}}, "5 of 4 inputs arrive"),
    ],
)
def test_an_input_that_got_lost_or_came_to_another(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match="not ok: arguments"):
        check.run(request(tmp_path), GIVEN | change)
    ok, text = lines(tmp_path)["arguments"]
    assert not ok
    assert text.startswith(says)


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_an_earlier_result_that_is_damaged_is_made_anew(tmp_path: Path, raw: bytes) -> None:
    storage.write_bytes(check_url(str(tmp_path), "c", "train"), raw)
    check.run(request(tmp_path), GIVEN)
    assert list(lines(tmp_path)) == ["image", "root", "arguments", "MLflow", "GPUs"]


def test_results_of_other_tasks_are_looked_for(tmp_path: Path) -> None:
    theirs = check.run(request(tmp_path, "prepare:0:0"), {"source": ""})
    given = {"shards": theirs, "evaluations": {"a/0": theirs, "b/0": theirs}, "html": str(tmp_path / "page")}
    check.run(request(tmp_path, "report:0:3"), given)
    assert lines(tmp_path, "report")["arguments"][1] == "all 3 inputs arrive, and what 1 other tasks wrote can be read"
    page = (tmp_path / "page").read_text()
    assert page.startswith("<p>ok image: cmapkd")
    nowhere = check_url(str(tmp_path), "c", "never")
    with pytest.raises(InputError, match="not ok: arguments"):
        check.run(request(tmp_path, "other:0:1"), {"shards": nowhere})
    said = lines(tmp_path, "other")["arguments"][1]
    assert said.startswith(f"{nowhere}: written by another pod, not seen in this one: `root` must be one place for all")


def test_what_a_page_shows_is_text(tmp_path: Path) -> None:
    root = tmp_path / "a<b>&c"
    check.run(request(root), {**GIVEN, "html": str(tmp_path / "page")})
    assert f"{tmp_path}/a&lt;b&gt;&amp;c can be listed" in (tmp_path / "page").read_text()


def test_what_was_well_is_said_again_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the launcher of a TrainJob, whose own pod has no GPU."""
    with pytest.raises(InputError, match="not ok: GPUs"):
        check.run(request(tmp_path, "train:99:4"), GIVEN)
    with pytest.raises(InputError, match="not ok: GPUs"):  # a failure is found out anew
        check.run(request(tmp_path, "train:99:4"), GIVEN)
    place = Path(check_url(str(tmp_path), "c", "train"))
    stored = json.loads(place.read_text())
    for line in stored["lines"]:
        line |= {"ok": True, "text": f"{line['name']} of the pods"}
    place.write_text(json.dumps(stored))
    capsys.readouterr()
    check.run(request(tmp_path, "train:99:4"), {**GIVEN, "html": str(tmp_path / "page")})
    assert "ok      GPUs       GPUs of the pods" in capsys.readouterr().out
    assert "GPUs of the pods" in (tmp_path / "page").read_text()
    with pytest.raises(InputError, match="not ok: GPUs"):  # asked for something else
        check.run(request(tmp_path, "train:98:4"), GIVEN)


def test_an_unknown_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not ok: arguments"):
        check.run(request(tmp_path, recipe="tinny"), GIVEN)
    assert "tinny" in lines(tmp_path)["arguments"][1]


@pytest.mark.parametrize("asked", ["x", "here", ":0", "a/b:0", "../x:0", "here:one", "here:0:"])
def test_another_form_is_refused(tmp_path: Path, asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run, ["--recipe", "tiny", "--root", str(tmp_path / "r"), "--check", asked]) == 2
    assert f"error: --check {asked}: TASK:GPUS, such as here:0" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_first_of_two_attempts_fails_on_purpose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = request(tmp_path, "twice:0:once")
    with pytest.raises(InputError, match="this attempt fails on purpose"):
        check.run(asked, GIVEN)
    assert not Path(check_url(str(tmp_path), "c", "twice")).exists()
    assert check.run(asked, GIVEN) == check_url(str(tmp_path), "c", "twice")
    assert lines(tmp_path, "twice") == {"retries": (True, "started again")}
    assert "a container that failed was started again" in capsys.readouterr().out
    with pytest.raises(InputError, match="on purpose"):  # of another check
        check.run(request(tmp_path, "twice:0:once", run="d"), GIVEN)
