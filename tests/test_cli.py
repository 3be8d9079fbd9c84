"""The command `cmapkd`: every word behind it starts what it names, with its own options; lists equal the tables."""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cmapkd import console, listings
from cmapkd.pipelines import submit
from cmapkd_core import catalog, recipes
from cmapkd_core.method_specs import METHODS
from cmapkd_core.stages import cli

REPOSITORY = Path(__file__).parents[1]
STAGES = {name: one for name, one in console.commands().items() if isinstance(one, console.Stage)}
LISTS = {
    "recipes": [recipes.RECIPES],
    "rows": [
        {**recipes.BASELINES, recipes.FULL: {}},
        *recipes.CHANGES.values(),
        recipes.SUITES,
    ],
    "sources": [catalog.SOURCES],
    "evaluations": [catalog.EVALUATIONS],
}


def described(parser: argparse.ArgumentParser) -> list[dict[str, object]]:
    """What a parser takes, its name aside."""
    return [{name: value for name, value in vars(one).items() if name != "container"} for one in parser._actions]


def test_an_installation_brings_the_command_and_its_types() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    module, _, function = settings["project"]["scripts"]["cmapkd"].partition(":")
    assert getattr(sys.modules[module], function) is console.main
    for package, patterns in settings["tool"]["setuptools"]["package-data"].items():
        assert all([*(REPOSITORY / package).glob(pattern)] for pattern in patterns)
        assert "py.typed" in patterns


def test_help_fits_a_screen_and_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(console.commands())


def test_a_word_that_is_none_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["sumbit", "--local"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'sumbit': did you mean 'submit'?\n"


def test_a_command_that_is_not_installed_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = console.Command("of another package", "cmapkd.not_there:main")
    monkeypatch.setitem(console.COMMANDS, "more", {"other": row, "demo": console.commands()["demo"]})
    assert "other" not in console.commands()
    assert "  other" not in console.overview()


# ---- what the words start -------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["submit"], ["demo"], ["verify"], ["check-site"]], ids=" ".join)
def test_words_of_submit_are_those_of_the_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script hands its argv to the same `main`; here it is seen what comes to it, and that the parser takes it."""
    given: list[list[str]] = []
    monkeypatch.setattr(submit, "main", lambda argv, prog: given.append(argv) or 0)
    command = console.commands()[words[0]]
    assert isinstance(command, console.Submit)
    assert console.main([*words, "--root", "r"]) == 0
    assert given == [[*command.words, "--root", "r"]]
    assert submit.parser().parse_args(given[0]).root == "r"


def test_the_demo_is_that_of_make() -> None:
    told = subprocess.run(["make", "-n", "demo"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert f"submit.py {' '.join(console.DEMO)}" in " ".join(told.split())


def test_the_console_and_the_script_say_the_same(tmp_path: Path) -> None:
    """As processes from an empty folder, where messages have the command that was typed."""
    words = ["--recipe", "tiny", "--ablation", "no_alsn", "--local", "--root", "r", "--dry-run"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    starts = ["-m", "cmapkd", "submit"], [str(REPOSITORY / "pipelines/submit.py")]
    said = [
        subprocess.run(
            [sys.executable, *start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for start in starts
    ]
    assert said[0] == said[1]
    assert "changed by no_alsn" in said[0]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_its_own_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = STAGES[name].code.partition(":")
    with pytest.raises(SystemExit):
        console.main([name, "--help"])
    run = getattr(sys.modules[module], function)
    assert capsys.readouterr().out == cli.parser(run, f"cmapkd {name}").format_help()
    assert described(cli.parser(run, f"cmapkd {name}")) == described(cli.parser(run))


def test_every_stage_that_people_start_has_a_word() -> None:
    files = (REPOSITORY / "cmapkd_core/stages").glob("*.py")
    found = {path.stem for path in files if "sys.exit(main(run))" in path.read_text()}
    # a gate waits for other runs of a suite in a cluster
    assert {one.code.rpartition(".")[2].removesuffix(":run") for one in STAGES.values()} == found - {"gate"}


def test_every_option_says_what_it_is() -> None:
    parsers = [submit.parser(), *(cli.parser(sys.modules[one.code.partition(":")[0]].run) for one in STAGES.values())]
    silent = [(one.prog, action.option_strings) for one in parsers for action in one._actions if not action.help]
    assert not silent
    for one in parsers:
        assert [action.dest for action in one._optionals._group_actions] == ["help"]  # all others are in groups


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--recipie", "demo"], "unrecognized arguments: --recipie demo (--recipie: did you mean --recipe?)"),
        (["submit", "--ablatoin=kd"], "(--ablatoin: did you mean --ablation?)"),
        (["submit", "-recipe", "demo"], "(-recipe: did you mean --recipe?)"),
        (["evaluate", "--modle", "m"], "required: --model, --recipe, --root (--modle: did you mean --model?)"),
        (["search", "m", "f", "mug", "--topp", "3"], "(--topp: did you mean --top?)"),
        (["recipes", "--hlep"], "(--hlep: did you mean --help?)"),
        (["submit", "--ablat", "kd", "--check", "soon"], "such as 30, and less than a day\n"),  # short for --ablation
        (["submit", "--xyzzy"], "unrecognized arguments: --xyzzy\n"),
    ],
)
def test_an_option_that_is_none_is_answered_with_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        console.main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_parser_is_that_one() -> None:
    files = [path for place in ("cmapkd", "cmapkd_core", "pipelines") for path in (REPOSITORY / place).rglob("*.py")]
    made = [path.name for path in files if "ArgumentParser(" in path.read_text(encoding="utf-8")]
    assert not made


# ---- what there is --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_has_every_row_of_its_tables_and_says_something(kind: str) -> None:
    lines = [line for table in listings.TABLES[kind]().values() for line in table.items()]
    assert sorted(name for name, _ in lines) == sorted(name for table in LISTS[kind] for name in table)
    assert not [name for name, text in lines if not text]


def test_methods_say_what_their_files_say_and_variants_how_they_differ() -> None:
    rows = next(iter(listings.row_tables().values()))
    assert rows["clip_kd"].startswith("CLIP-KD: features, contrast with the teacher")
    assert rows["scratch"].endswith("; with student.weights=random schedule.frozen_quarters=0")
    assert "; without schedule.coarse.terms" in rows["fitnet_joint"]
    assert len(rows) == len(recipes.BASELINES) + 1
    assert listings.documented(METHODS["kd"].code, file=True)
    assert listings.documented("not_there:at_all", file=True) == ""


def test_one_row_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["recipes", "tiny"]) == 0
    assert "  optim.batch: 256 -> 16" in capsys.readouterr().out.splitlines()
    assert console.main(["rows", "one_stage_uniform"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("selector.kind=fixed")
    assert console.main(["sources", "fodler"]) == 2
    assert "did you mean 'folder'?" in capsys.readouterr().err


def test_lines_have_room_where_they_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert console.main(["rows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 60
    assert [line for line in lines if line.endswith(" ..")]


@pytest.mark.parametrize("words", [["rows"], ["submit", "--recipe", "tiny", "--dry-run"]])
def test_what_is_only_read_ends_in_silence_where_nobody_reads_on(words: list[str]) -> None:
    """As of `cmapkd rows | head -1`: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    listed = subprocess.run(
        [sys.executable, "-m", "cmapkd", *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (listed.returncode, listed.stderr) == (0, "")


def loaded(code: str, *heavy: str) -> str:
    """Which of the libraries an interpreter has loaded once it has run the code, as a list is printed."""
    code = f"import sys; {code}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_lists_load_no_library() -> None:
    code = (
        "from cmapkd.console import main\n"
        "for words in (['--help'], ['recipes'], ['rows'], ['sources'], ['evaluations']): assert main(words) == 0"
    )
    assert loaded(code, "torch", "kfp", "open_clip", "mlflow", "boto3", "pyarrow", "PIL") == "[]"


def test_a_dry_run_loads_none_of_the_stages_libraries() -> None:
    """Each of them is a tenth of a second or more of its start; kfp, which writes the package, is needed."""
    code = "from cmapkd.pipelines.submit import main\nassert main(['--recipe', 'demo', '--dry-run']) == 0"
    assert loaded(code, "torch", "open_clip", "mlflow", "boto3", "pyarrow", "PIL", "numpy") == "[]"


# ---- how messages spell them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["pipelines/submit.py"], ".venv/bin/python pipelines/submit.py --retry 'a b'"),  # a checkout
        (["pipelines/submit.py", "cmapkd-0.dist-info/METADATA"], ".venv/bin/python pipelines/submit.py --retry 'a b'"),
        (["cmapkd-0.dist-info/METADATA"], "cmapkd submit --retry 'a b'"),  # pip's
        ([], ".venv/bin/python pipelines/submit.py --retry 'a b'"),  # the container image
    ],
)
def test_a_message_has_the_command_that_is_there(there: list[str], said: str, tmp_path: Path) -> None:
    """In an interpreter that sees nothing else."""
    for name in ("cmapkd_core/commands.py", *there):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Metadata-Version: 2.1\nName: cmapkd\nVersion: 0\n")
    shutil.copy(REPOSITORY / "cmapkd_core/commands.py", tmp_path / "cmapkd_core")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from cmapkd_core.commands import submit; "
    code += "print(submit('--retry', 'a b'))"
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


def test_no_message_spells_the_command_itself() -> None:
    """Docstrings and comments may; what a person is told comes from commands.py."""
    files = [path for package in ("cmapkd", "cmapkd_core") for path in (REPOSITORY / package).rglob("*.py")]
    for path in files:
        if path.name in ("commands.py", "submit.py"):
            continue
        tree = ast.parse(path.read_text())
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        owned = [node for node in ast.walk(tree) if isinstance(node, owners) and ast.get_docstring(node) is not None]
        documents = {id(node.body[0].value) for node in owned if isinstance(node.body[0], ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        wrong = [node.lineno for node in texts if "submit.py" in node.value and id(node) not in documents]
        assert not wrong or path.name == "started.py", f"{path}: lines {wrong}"
