"""What a local run says at its end, from artifacts that are made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines.closing import closing
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context, execute

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


def test_what_came_out_how_it_is_used_and_where_the_page_is(tmp_path: Path, report: Artifact) -> None:
    export = export_of(tmp_path)
    folder = export.file_url("README.md").rpartition("/")[0]
    lines = closing({"prepare": "x", "report": report.url}, {"export": export.url}).splitlines()
    assert lines[:2] == ["", "The distilled student is better."]
    assert f"The student: {folder} (README.md there is its card)" in lines
    start = lines.index("import open_clip")
    compile("\n".join(lines[start:-2]), "pasted", "exec")  # as they stand, without a blank before them
    assert f'"local-dir:{folder}/open_clip"' in "\n".join(lines[start:-2])
    assert lines[-2:] == ["", f"The report: {report.file_url('report.html')}"]


def test_a_student_that_open_clip_cannot_have_goes_with_onnx(tmp_path: Path, report: Artifact) -> None:
    told = closing({"report": report.url}, {"export": export_of(tmp_path, reason="no class for it").url})
    assert "open_clip cannot have it: no class for it." in told
    assert "create_model" not in told
    assert "import json, onnxruntime" in told


def test_without_an_export_a_suite_and_a_single_stage(tmp_path: Path, report: Artifact) -> None:
    told = closing({"report": report.url}, {"export": str(tmp_path / "export" / "gone")})
    assert "The student:" not in told
    assert "The distilled student is better." in told
    suite = made(tmp_path, "suite_report", {"suite.json": {"text": "of an earlier code"}, "suite.html": "<html>"})
    assert closing({"suite-report": suite.url}, {}) == f"\nThe report: {suite.file_url('suite.html')}"
    assert closing({"joint": "/root/joint/0"}, {}) == "joint: /root/joint/0"
    assert closing({}, {}) == ""
