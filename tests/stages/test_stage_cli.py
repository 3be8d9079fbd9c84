"""Every stage's command line is its function: names, defaults, exit codes."""

import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.fields import parse_overrides
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, export, levels, prepare, report, teacher, train
from cmapkd_core.stages.cli import main, parser

STAGES = [prepare, teacher, train, evaluate, levels, export, report]
SEVERAL = Mapping[str, str]  # artifacts by key
FIELDS = [field.name for field in dataclasses.fields(Request)]


def options(run) -> dict[str, type]:
    """Name -> str or SEVERAL."""
    kinds = inspect.signature(run, eval_str=True).parameters.values()
    own = {p.name: p.annotation for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return dict.fromkeys(FIELDS, str) | own


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__.split(".")[-1])
def test_a_stage_accepts_each_field_of_the_request_and_its_own_strings(stage):
    words = {str: lambda name: [f"value of {name}"], SEVERAL: lambda name: ["a/0", f"first {name}", "b/0", "{last}"]}
    values = {str: lambda name: f"value of {name}", SEVERAL: lambda name: {"a/0": f"first {name}", "b/0": "{last}"}}
    argv = [part for name, kind in options(stage.run).items() for part in (flag(name), *words[kind](name))]
    found = vars(parser(stage.run).parse_args(argv))
    assert found == {name: values[kind](name) for name, kind in options(stage.run).items()} | {"artifact": ""}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__.split(".")[-1])
def test_empty_strings_pass_through(stage):
    """A pipeline passes "" for what was not given: an option, never a missing one."""
    argv = [part for name, kind in options(stage.run).items() for part in (flag(name), *([""] if kind is str else []))]
    found = vars(parser(stage.run).parse_args(argv))
    assert found == {name: "" if kind is str else {} for name, kind in options(stage.run).items()} | {"artifact": ""}


def test_what_messages_offer_to_submit_is_taken_by_a_stage_too():
    argv = ["--recipe", "tiny", "--root", "r", "--set", "optim.batch=8", "--overrides"]
    argv += ["seed=1 'data.url=/my pictures'", "--set", "data.against=a b", "--set=data.fraction=0.5"]
    found = parser(prepare.run).parse_args(argv).overrides
    expected = {
        "optim.batch": "8",
        "seed": "1",
        "data.url": "/my pictures",
        "data.against": "a b",
        "data.fraction": "0.5",
    }
    assert parse_overrides(found) == expected


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__.split(".")[-1])
def test_every_parameter_is_a_string_or_several_and_described(stage):
    for name, parameter in inspect.signature(stage.run, eval_str=True).parameters.items():
        assert name == "request" or parameter.annotation in (str, SEVERAL)
        assert parameter.default is inspect.Parameter.empty or isinstance(parameter.default, str | Mapping)
    assert inspect.getdoc(stage.run)
    parser(stage.run).format_help()


def told(request: Request, *, thing: str, other: str = "x") -> str:
    """A stage."""
    if thing == "bad":
        raise InputError("thing=bad: give another thing")
    if thing == "stop":
        raise Interrupted("told was asked to stop; saved at step 3")
    return f"{request.root}/{thing}/{other}"


BASE = ["--recipe", "tiny", "--root", "r"]


def test_the_url_goes_to_the_artifact_file(tmp_path):
    file = tmp_path / "deep" / "url"
    assert main(told, [*BASE, "--thing", "t", "--artifact", str(file)]) == 0
    assert file.read_text() == os.path.abspath("r/t/x")


def test_a_stage_that_is_stopped_says_its_name_however_it_was_started(tmp_path):
    """As a module it is `__main__`."""
    package = tmp_path / "stopped_stages"
    package.mkdir()
    (package / "thing.py").write_text(
        "import signal, sys\n"
        "from cmapkd_core.request import Request\n"
        "from cmapkd_core.stages.cli import main\n\n\n"
        "def run(request: Request) -> str:\n"
        '    """A stage."""\n'
        "    signal.raise_signal(signal.SIGTERM)\n\n\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main(run))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), *filter(None, sys.path)))}
    done = subprocess.run(
        [sys.executable, "-m", "stopped_stages.thing", *BASE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 143
    assert done.stderr.startswith("thing was asked to stop; the same command goes on")


def test_bad_input_exits_2_with_the_message_alone(tmp_path, capsys):
    file = tmp_path / "url"
    assert main(told, [*BASE, "--thing", "bad", "--artifact", str(file)]) == 2
    assert capsys.readouterr().err == "error: thing=bad: give another thing\n"
    assert not file.exists()


@pytest.mark.parametrize("words", [["teacher"], ["teacher", "u", "teacher", "v"]])
def test_a_key_without_a_url_or_twice_exits_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(report.run, [*BASE, "--suite", "smoke", "--artifacts", *words])
    assert stopped.value.code == 2
    assert "--artifacts KEY VALUE KEY VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["--thing", "--overrides"])
def test_a_placeholder_that_was_not_filled_in_is_no_value(place, capsys):
    """Of an artifact it would read as one that is not there."""
    nested = "{{$.inputs.parameters['pipelinechannel--evaluate-artifact']}}"
    assert main(told, [*BASE, "--thing", "t", place, nested]) == 2
    assert f"{place} holds a placeholder that KFP did not fill in: {nested}" in capsys.readouterr().err


def test_a_stop_exits_143(capsys):
    assert main(told, [*BASE, "--thing", "stop"]) == 143
    assert "saved at step 3" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--root", "r", "--thing", "t"], BASE, [*BASE, "--thing", "t", "--oth", "x"]])
def test_a_missing_or_shortened_option_exits_2(argv):
    with pytest.raises(SystemExit) as stopped:
        main(told, argv)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            "schedule.coarse.lr.student=0 schedule.coarse.lr.pyramid=0",
            "phase schedule.coarse has 1 epochs and trains nothing",
        ),
        ("selector.toward=fd", "selector.toward=fd has no term with a weight"),
        ("optim.btach=3", "did you mean 'optim.batch'"),
    ],
)
def test_a_recipe_that_cannot_run_exits_2_before_anything_is_written(tmp_path, capsys, overrides, says):
    argv = ["--recipe", "tiny", "--root", str(tmp_path / "r"), "--overrides", overrides]
    assert main(train.run, [*argv, "--stage", "warmup", "--shards", "s", "--teacher", "t"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
