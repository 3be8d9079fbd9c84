"""What a local run says at its end, from artifacts that are made for it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmapkd import search
from cmapkd.console import DEMO
from cmapkd.pipelines import submit
from cmapkd.pipelines.closing import closing
from cmapkd.pipelines.submission import decide
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.stages.searched import first_caption

TABLE = {"text": "a table", "outcome": {"sentence": "The distilled student is better."}}


def made(root: Path, stage: str, files: dict[str, Any]) -> Artifact:
    """A complete artifact of a stage that writes these files."""

    def body(context: Context) -> dict[str, float]:
        for name, value in files.items():
            (context.out / name).parent.mkdir(parents=True, exist_ok=True)
            (context.out / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return {}

    url = str(root / stage / "0")
    execute(Request("tiny", str(root)), stage, url=url, fields={}, inputs={}, body=body)
    return Artifact.open(url)


def export_of(root: Path, **found: Any) -> Artifact:
    files = {
        "README.md": "# card",
        "parity.json": {"formats": {"open_clip": found}},
        "open_clip/open_clip_config.json": {"model_cfg": {"text_cfg": {}}},
    }
    return made(root, "export", files)


@pytest.fixture
def report(tmp_path: Path) -> Artifact:
    """A run's report."""
    return made(tmp_path, "report", {"table.json": TABLE, "report.html": "<html>"})


def test_how_the_student_is_used_and_where_the_page_is(tmp_path: Path, report: Artifact) -> None:
    export = export_of(tmp_path)
    folder = export.file_url("README.md").rpartition("/")[0]
    lines = closing({"prepare": "x", "report": report.url}, {"export": export.url}).splitlines()
    assert not [line for line in lines if "is better" in line]  # stage report has just said so
    assert f"The student: {folder} (README.md there is its card)" in lines
    start = lines.index("import open_clip")
    compile("\n".join(lines[start:-2]), "pasted", "exec")  # as they stand, without a blank before them
    assert f'"local-dir:{folder}/open_clip"' in "\n".join(lines[start:-2])
    assert lines[-2:] == ["", f"The report: {report.file_url('report.html')}"]


def test_a_student_that_open_clip_cannot_have_goes_with_onnx(tmp_path: Path, report: Artifact) -> None:
    told = closing({"report": report.url}, {"export": export_of(tmp_path, reason="no class for it").url})
    assert "open_clip cannot have it: no class for it." in told
    assert "create_model" not in told
    assert "import onnxruntime" in told


def test_without_an_export_a_suite_and_a_single_stage(tmp_path: Path, report: Artifact) -> None:
    told = closing({"report": report.url}, {"export": str(tmp_path / "export" / "gone")})
    assert told == f"\nThe report: {report.file_url('report.html')}"
    suite = made(tmp_path, "suite_report", {"suite.json": {"text": "of an earlier code"}, "suite.html": "<html>"})
    assert closing({"suite-report": suite.url}, {}) == f"\nThe report: {suite.file_url('suite.html')}"
    assert closing({"joint": "/root/joint/0"}, {}) == "joint: /root/joint/0"
    assert closing({}, {}) == ""


@pytest.mark.parametrize("here", [True, False], ids=["a folder of this machine", "pictures of elsewhere"])
def test_the_search_can_be_pasted_as_it_stands(
    here: bool, tmp_path: Path, report: Artifact, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = export_of(tmp_path)
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    monkeypatch.setattr(sys, "argv", ["pipelines/submit.py"])
    data = f"folder:{pictures}" if here else "scenes"
    told = closing({"report": report.url}, {"export": export.url, "prepare": tiny_shards}, data).splitlines()
    (line,) = [line for line in told if " search " in line]
    words = shlex.split(line)
    asked = search.parser().parse_args(words[words.index("search") + 1 :])
    shards = open_shards(Artifact.open(tiny_shards))
    assert (asked.model, asked.folder) == (export.url, str(pictures) if here else tiny_shards)
    assert " ".join(asked.query) == shards.captions("test", 0)[0]
    assert Path(words[0]).name == "cmapkd" or words[1:3] == ["-m", "cmapkd"]
    assert told[told.index(line) - 1] == told[told.index(line) + 1] == ""


def test_a_caption_as_a_query_is_short_and_no_option(tmp_path: Path) -> None:
    def asked(**captions: list[str]) -> str:
        table = pa.table({"split": [*captions], "captions": pa.array([*captions.values()], pa.list_(pa.string()))})
        pq.write_table(table, tmp_path / "index.parquet")
        return first_caption(SimpleNamespace(fetch=tmp_path.joinpath))  # type: ignore[arg-type]

    assert asked(train=["a cup"], test=["-5 degrees\nin the park"]) == "5 degrees in the park"
    assert asked(train=["a cup"], test=[]) == "a cup"
    assert asked(test=[]) == "a red mug"
    assert asked(test=["word " * 40]) == " ".join(["word"] * 12)


def test_the_tutorial_has_the_demos_own_search() -> None:
    job = decide(submit.parser().parse_args([*DEMO]))
    tutorial = Path(__file__).parents[2] / "docs/tutorial/demo.md"
    (line,) = [line for line in tutorial.read_text().splitlines() if line.startswith("    ") and " search " in line]
    asked = search.parser().parse_args(shlex.split(line)[2:])
    assert (asked.model, asked.folder) == (job.urls["export"], job.urls["prepare"])
