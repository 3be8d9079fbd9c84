"""The commands of a report: what can be pasted is run as it stands, or parsed whole.

The lines that use a student are run in tests/export/test_export_stage.py, which has one that is exported.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import html
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cmapkd import search
from cmapkd.pipelines import submit
from cmapkd.pipelines.submission import decide
from cmapkd_core import storage
from cmapkd_core.commands import CONSOLE
from cmapkd_core.report.read.artifacts import Commands
from cmapkd_core.report.read.run_inputs import RunInputs
from cmapkd_core.report.reports import of_run
from cmapkd_core.request import Request, recipe_of
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.exported import start_words
from cmapkd_core.stages.searched import search_command
from cmapkd_core.usage import CONFIG, HERE, TEXT_FOLDER, StudentUse, copy_command, load_lines

ASKED = Request("tiny", "", overrides="'data.url=/my pictures' optim.batch=8", seed="3", run="try one")


def run_python(text: str) -> str:
    """What lines of Python print, each of them run as it stands."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "pasted", "exec"), {})
    return out.getvalue()


def test_a_command_keeps_what_the_run_was_asked_for(tmp_path: Path) -> None:
    request = dataclasses.replace(ASKED, root=str(tmp_path / "a root"))
    words = start_words(request)
    given = submit.parser().parse_args(list(words[2:]))
    assert (given.recipe, given.seed, given.root, given.local) == ("tiny", "3", request.root, True)
    assert given.set == ["data.url=/my pictures", "optim.batch=8"]
    assert "--seed" not in start_words(request, row=False)
    assert "--local" not in start_words(dataclasses.replace(request, root="s3://bucket/x"))


def test_every_command_of_a_page_can_be_started(make_inputs: Callable[..., RunInputs], tmp_path: Path) -> None:
    request = Request("tiny", str(tmp_path / "root"), overrides="evaluate.sets=efficiency optim.batch=8")
    commands = Commands(start_words(request), start_words(request, row=False))
    made = of_run(dataclasses.replace(make_inputs(), recipe=request.resolved(), commands=commands))
    lines = re.findall(r"^\.venv/bin/python pipelines/submit\.py .*$", made.markdown, re.MULTILINE)
    assert len(lines) == 2
    jobs = [decide(submit.parser().parse_args(shlex.split(line)[2:])) for line in lines]
    assert recipe_of(jobs[0].request).evaluate.sets == ("efficiency", "vqa=easy_vqa", "captioning")
    assert jobs[0].request["overrides"].count("evaluate.sets") == 1
    assert (jobs[1].request["suite"], jobs[1].request["seeds"]) == ("table4", "5")


def test_a_folder_with_signs_of_its_own_stays_a_string(tmp_path: Path) -> None:
    """Quotes and a backslash in a path end no string of the lines."""
    folder = tmp_path / 'a "b" \\n c'
    code = ast.parse(load_lines({"hf_model_name": "x"}, str(folder)))
    strings = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    assert {f"local-dir:{folder}", f"{folder}/{CONFIG}", f"{folder}/{TEXT_FOLDER}"} <= strings


def test_what_lies_on_s3_is_copied_first(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3_root}/x/open_clip/deep/file", b"1")
    storage.write_bytes(f"{s3_root}/x/README.md", b"2")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(copy_command(f"{s3_root}/x"))
    monkeypatch.setattr("sys.argv", ["-c", *words[3:]])
    run_python(words[2])
    assert (tmp_path / HERE / "open_clip" / "deep" / "file").read_bytes() == b"1"
    assert (tmp_path / HERE / "README.md").read_bytes() == b"2"
    use = StudentUse("s3://b/x", "s3://b/x/README.md", {}, "", "cp")
    assert f'"local-dir:{HERE}/open_clip"' in use.python()


def test_the_page_links_the_export_and_shows_its_lines(make_inputs: Callable[..., RunInputs]) -> None:
    inputs = make_inputs(without=("warmup", "alsn", "joint", "levels", "teacher", "shards"))  # nothing slow is drawn
    use = StudentUse("/root/x y/out", "/root/x y/out/README.md", {})
    made = of_run(dataclasses.replace(inputs, use=use))
    assert '<a href="file:///root/x%20y/out">/root/x y/out</a>' in made.html
    assert "create_model_and_transforms(&#34;local-dir:/root/x y/out/open_clip&#34;)" in made.html
    assert made.html.index('id="use"') > made.html.index('id="retrieval"')
    assert f"```\n{use.python()}```" in made.markdown
    refused = of_run(dataclasses.replace(inputs, use=dataclasses.replace(use, reason="no class")))
    assert "open_clip cannot have it: no class." in refused.html
    assert "create_model" not in refused.html
    assert "import onnxruntime" in refused.markdown
    assert max(map(len, use.onnx().splitlines())) <= 100  # as wide as a page shows it
    none = of_run(dataclasses.replace(inputs, commands=Commands(export="python -m x --root '/a b'")))
    assert "python -m x --root &#39;/a b&#39;" in none.html
    assert "```\npython -m x --root '/a b'\n```" in none.markdown
    assert 'id="use"' not in of_run(inputs).html


@pytest.mark.parametrize("root", ["here", "s3"])
def test_the_page_has_the_search_of_its_pictures(
    root: str,
    make_inputs: Callable[..., RunInputs],
    tiny_shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the end of a local run prints it, to be pasted as it stands; none where no data can be read."""
    export = "s3://b/export/0" if root == "s3" else str(tmp_path / "x y" / "export" / "0")
    line = search_command(export, tiny_shards, "scenes")
    asked = search.parser().parse_args(shlex.split(line)[2:])
    assert (asked.model, asked.folder) == (export, tiny_shards)
    assert shlex.split(line)[:2] == [CONSOLE, "search"]
    assert " ".join(asked.query) == open_shards(Artifact.open(tiny_shards)).captions("test", 0)[0]
    inputs = make_inputs(without=("warmup", "alsn", "joint", "levels", "teacher", "shards"))
    use = StudentUse(f"{export}/out", f"{export}/out/README.md", {}, copy="cp" if root == "s3" else "", search=line)
    made = of_run(dataclasses.replace(inputs, use=use))
    assert f"<pre><code>{html.escape(line)}</code></pre>".replace("&#x27;", "&#39;") in made.html
    assert (
        f"finds pictures of the data by words, in a shell; other words may stand at its end:\n\n```\n{line}\n```"
        in (made.markdown)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pictures").mkdir()
    assert str(tmp_path / "my pictures") in shlex.split(search_command(export, tiny_shards, "folder:my pictures"))
    nothing = search_command(export, str(tmp_path / "prepare" / "gone"), "scenes")
    assert (nothing, search_command(export, "", "")) == ("", "")
    assert (
        "finds pictures of the data"
        not in of_run(dataclasses.replace(inputs, use=dataclasses.replace(use, search=""))).markdown
    )
