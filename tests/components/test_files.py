"""The component files, and the pipeline that components/README.md makes of them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from cmapkd.pipelines.ir import command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd_core.stages.cli import parser

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "components"


def test_the_files_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "docs" / "tools"), *sys.path])
    written = importlib.import_module("component_files").texts()
    assert written == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}


def test_a_pipeline_of_ones_own_gives_stages_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_compile: None
) -> None:
    from kfp import compiler

    monkeypatch.chdir(REPOSITORY)
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "components/README.md", "exec", dont_inherit=True), names)
    compiler.Compiler().compile(names["how_good"], str(tmp_path / "own.yaml"))  # type: ignore[arg-type]
    spec, _ = load_package(tmp_path / "own.yaml")
    parameters = {"model": "s3://bucket/a-model", "root": "s3://bucket/cmapkd"}
    for step in steps(spec):
        inputs = resolve_inputs(step, parameters, {"prepare": {"artifact": "s3://bucket/shards"}}, "a-run")
        argv = command_line(step, executor_input(step, inputs, tmp_path))
        stage = importlib.import_module(argv[2])
        told = parser(stage.run).parse_args(argv[3:])
        assert (told.recipe, told.root) == ("paper", "s3://bucket/cmapkd")
        assert step.name == "prepare" or (told.shards, told.model) == ("s3://bucket/shards", "s3://bucket/a-model")
