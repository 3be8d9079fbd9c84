"""Every command, flag and field that the documents show is one that the parsers take."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cmapkd import console, listings, search
from cmapkd.pipelines import submit
from cmapkd.pipelines.site import load_site
from cmapkd.pipelines.submission import check_mode, cron, decide
from cmapkd_core import convert_weights, fetch_weights
from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import Recipe
from cmapkd_core.fields import choose, flatten
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.named import require_known
from cmapkd_core.models.open_clip_names import is_tag
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.recipes import resolve
from cmapkd_core.records import record_run
from cmapkd_core.request import DECIDING, Request
from cmapkd_core.stages import cli

REPOSITORY = Path(__file__).parents[1]
TEXTS = [
    REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "k8s/README.md", "site.example.toml", "Makefile")
]
TEXTS += sorted((REPOSITORY / "docs").rglob("*.md"))
CODE = [path for folder in ("cmapkd_core", "cmapkd", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")]
OURS = re.compile(
    r"(?:^\s*make|(?:^\s*|(?<=bin/))cmapkd(?= [a-z])|(?:^|\s|/)(?:submit\.py|-m (?:cmapkd_core|pytest)\S*"
    r"|(?<!:)(?:benchmarks|tests|docs)/\S+\.py))(?=\s|$)"
)
HOLES = {  # what a document leaves open: what stands there when somebody runs it
    r"^cmapkd search( --serve)?$": r"cmapkd search MODEL FOLDER\1",
    r"[\[\]]": "",
    r"--suite (NAME|\.\.)": "--suite smoke",
    r"make suite-NAME": "make suite-smoke",
    r"--ablation NAME": "--ablation no_alsn",
    r"--method NAME": "--method kd",
    r"regenerate.py NAME": "regenerate.py kd",
    r"--data NAME": "--data scenes",
    r"evaluate.sets=NAME": "evaluate.sets=vqa",
    r"--seeds n": "--seeds 2",
    r"SEEDS=n RECIPE=r": "SEEDS=2 RECIPE=tiny",
    r"--(retry|deliver)$": r"--\1 RUN",
    r"\bSTAGE\b": "joint",
    r"\bMODEL TAG\b": "ViT-L-14 openai",
}


def commands_of(text: str) -> Iterator[str]:
    """What stands between backticks, and indented lines, as far as one of our commands is in it."""
    text = re.sub(r"```.*?```|\\+\n\s*", "", text, flags=re.DOTALL)
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    spans = [span.replace("\n# ", " ").replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    for part in (part for code in indented + spans for part in re.split(r"\s#\s|&&|\s\|\s|;\s", code)):
        if found := OURS.search(part):  # behind wide space stands what it does
            command = re.split(r"\s{2,}", part[found.start() :].strip().lstrip("/"))[0]
            if not command.endswith(("...", "<stage>")):
                yield command


def docstring_of(path: Path) -> str:
    """As it is written, with the backslashes of lines that go on."""
    text = path.read_text()
    first = ast.parse(text).body[:1]
    return ast.get_source_segment(text, first[0]) or "" if first and isinstance(first[0], ast.Expr) else ""


def commands() -> list[str]:
    """Each once, with its holes filled."""
    texts = [path.read_text() for path in TEXTS] + [docstring_of(path) for path in CODE]
    return sorted({filled(one) for text in texts for one in commands_of(text)})


def filled(command: str) -> str:
    for hole, text in HOLES.items():
        command = re.sub(hole, text, command)
    return command


COMMANDS = commands()
TWINS = ("twin", "twin-student")  # folders of models that docs/howto/twins.md makes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site file whose root has the run RUN and the suite SUITE; beside it `pictures` and the models TWINS."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "pictures").mkdir()
    for name in TWINS:
        (folder / name).mkdir()
        (folder / name / "open_clip_config.json").write_text("{}")
    lines = [f'{{"file": "{number}.png", "caption": "a mug"}}' for number in range(20)]
    (folder / "pictures" / "captions.jsonl").write_text("\n".join(lines))
    request = dict.fromkeys(DECIDING, "") | {"recipe": "tiny", "ablation": "none"}
    record_run(str(folder), "RUN", request)
    record_run(str(folder), "SUITE", request | {"suite": "smoke", "seeds": "1"})
    (folder / "site.toml").write_text(f'root = "{folder}"\ndata = "folder:s3://bucket/pictures"\n')
    return folder / "site.toml"


def submits(argv: list[str], site: Path) -> None:
    """What a submission decides before it starts anything; of a suite with one seed, more are more of it."""
    pictures = str(site.with_name("pictures"))
    words = [re.sub("(?<=local-dir:)runs/twins(?=/)", str(site.parent), word) for word in argv]
    args = submit.parser().parse_args(
        [re.sub("/data/pictures|(?<=:)(FOLDER|pictures)$", pictures, word) for word in words]
    )
    check_mode(args)
    if args.site:
        load_site(str(REPOSITORY / args.site), required=True)
    if args.schedule:
        cron(args.schedule)
    if args.check is None and not args.retry:
        args.site, args.seeds = str(site), args.seeds and "1"
        decide(args)


def stage_takes(name: str, argv: list[str]) -> None:
    given = vars(cli.parser(importlib.import_module(name).run).parse_args(argv))
    Request(**{field: given[field] for field in Request.__dataclass_fields__}).resolved()
    assert given.get("task", "") in ("", *EVALUATIONS)
    if given.get("source"):
        resolve("paper", data=given["source"])
    named = named_model(given.get("model") or "")
    if named and given["model"] not in (RECIPE_STUDENT, "URL"):
        require_known(named[0])
        assert "@" not in named[1] or is_tag(named[0], named[1].partition("@")[0])


def make_takes(argv: list[str], site: Path) -> None:
    """`make` says nothing of a variable that it does not have."""
    declared = re.findall(r"^(\w+) \?=", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {word.partition("=")[0] for word in argv if "=" in word} <= {*declared}
    told = subprocess.run(["make", "-n", *argv], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    for line in told.stdout.splitlines():
        if "submit.py" in line:
            submits(shlex.split(line.partition("submit.py ")[2]), site)


def console_takes(words: list[str], site: Path) -> None:
    """What `cmapkd WORD ..` starts, with that one's parser."""
    name, argv = words[0], words[1:]
    command: console.Command = choose("command", name, console.commands())
    module = command.code.partition(":")[0]
    if isinstance(command, console.Submit):
        submits([*command.words, *argv], site)
    elif isinstance(command, console.Stage):
        stage_takes(module, argv)
    elif name in listings.TABLES:
        assert not argv or listings.one_row(listings.TABLES[name](), argv[0])
    else:
        importlib.import_module(module).parser().parse_args(argv)


def golden(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", REPOSITORY / script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_takes(script: str, argv: list[str]) -> None:
    module = golden(script)
    given = module.parser().parse_args(argv)
    if argv and hasattr(module, "chosen"):
        module.chosen(given.names)


def module_takes(name: str, argv: list[str]) -> None:
    """`python -m NAME`."""
    if name == "cmapkd_core.convert_weights":
        convert_weights.parser().parse_args(argv)
    elif name == "cmapkd_core.fetch_weights":
        given = fetch_weights.parser().parse_args(argv)
        fetch_weights._require_fetched(given.model, given.tag)
    elif name == "cmapkd_core.method_specs":
        assert argv in ([], [">", "docs/deviations.md"])
    elif name == "pytest":
        assert all((REPOSITORY / word).exists() for word in argv if "/" in word)
        assert "-m" not in argv or f'"{argv[argv.index("-m") + 1]}:' in (REPOSITORY / "pyproject.toml").read_text()
    else:
        stage_takes(name, argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_a_document_can_be_given(command: str, site: Path) -> None:
    head, *argv = shlex.split(command, comments=True)
    if head == "make":
        make_takes(argv, site)
    elif head.endswith("submit.py"):
        submits(argv, site)
    elif head == "cmapkd":
        console_takes(argv, site)
    elif head == "-m":
        module_takes(argv[0], argv[1:])
    elif head.startswith("benchmarks/"):
        importlib.import_module(head.removesuffix(".py").replace("/", ".")).parser().parse_args(argv)
    elif head.startswith("tests/golden/"):
        golden_takes(head, argv)
    else:
        assert (REPOSITORY / head).exists()
        assert not argv


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")
FIELD = re.compile(r"(?<![\w./-])([a-z_]+\.[a-z_.]*[a-z_]+)(?![\w/(-]|\.\w)")
FIELDS = flatten(Recipe())
ADDED = {"method.weights.cosines": 0.0, "schedule.fine.lr.pyramids": 0.0}  # by CONTRIBUTING.md: not there yet, or wrong
OTHERS = {
    # of other programs
    *("--check", "--clean", "--from-literal", "--prefix", "--selector", "--tail"),  # kubectl, pg_restore
    *("--read-only", "--rm", "--secret", "--tmpfs"),  # docker
    "--version",  # of `cmapkd` itself, which has no other flag
    *("--no-optional-locks", "--porcelain", "--short"),  # git
    *("--backend-store-uri", "--experiment-id", "--run-id", "--endpoint-url", "--recursive"),  # mlflow, aws
    *("--nproc-per-node", "--standalone", "--component_spec", "--executor_input"),  # torchrun, KFP's driver
    "--pack-destination",  # npm
    *("--caption_col", "--image_size", "--input_format", "--output_folder", "--output_format", "--processes_count"),
    *("--resize_mode", "--resize_only_if_bigger", "--thread_count", "--url_col", "--url_list"),  # img2dataset
}


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Of submit.py, of all stages, of the golden files and of the benchmarks."""
    yield submit.parser()
    yield search.parser()
    for path in sorted((REPOSITORY / "cmapkd_core/stages").glob("*.py")):
        if "sys.exit(main(run))" in path.read_text():
            yield cli.parser(importlib.import_module(f"cmapkd_core.stages.{path.stem}").run)
    for script in ("keys", "regenerate"):
        yield golden(f"tests/golden/{script}.py").parser()
    for path in sorted((REPOSITORY / "benchmarks").glob("*.py")):
        yield importlib.import_module(f"benchmarks.{path.stem}").parser()


PYTHON = re.compile(r"```python.*?```", re.DOTALL)  # attributes of objects are no fields


def shown() -> list[tuple[str, str]]:
    """Texts that somebody reads, each with its file's name: the documents, and the strings in the code."""
    found = [(path.name, path.read_text()) for path in TEXTS if path.name != "Makefile"]
    other = ("drawings.py", "components.py", "trainjob.py", "commit.py")  # CSS; told by a package, twice; git
    for path in (path for path in CODE if path.name not in other):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [(path.name, str(node.value)) for node in texts if id(node) not in docstrings]
    return found


def test_a_flag_in_a_document_or_a_message_is_one() -> None:
    known = {flag for one in parsers() for action in one._actions for flag in action.option_strings} | {*OTHERS}
    assert not {(where, flag) for where, text in shown() for flag in FLAG.findall(text) if flag not in known}


def test_a_field_in_a_document_or_a_message_is_one() -> None:
    sections = {name.partition(".")[0] for name in FIELDS if "." in name}
    named = {(where, name) for where, text in shown() for name in FIELD.findall(PYTHON.sub("", text))}
    named = {
        one for one in named if one[1].partition(".")[0] in sections and not one[1].endswith((".safetensors", ".md"))
    }
    assert not {one for one in named if not any(f"{field}.".startswith(f"{one[1]}.") for field in FIELDS | ADDED)}
    assert len(named) > 100


# A path of a file with a folder, without a capital as in NAME but for README; no URL, no pattern, no absolute path.
FILE = re.compile(r"(?<![\w./:{}<>*-])[\w.-]+(?:/[\w.-]+)+\.(?:py|md|toml|yaml|sh)(?![\w/])")
HOLE = re.compile(r"[A-Z]{2,}\.")
MADE = {  # by who follows CONTRIBUTING.md
    "cmapkd_core/data/sources/dots.py",
    "cmapkd_core/evaluate/spread.py",
    "cmapkd_core/methods/cosines.py",
}


def files_of(document: Path) -> Iterator[tuple[str, list[Path]]]:
    """Files with a folder that a document names between backticks, each with the places where it may be.

    Those are below the repository, the package, the tests, the document's folder, and a folder named before it.
    """
    folders = [REPOSITORY, REPOSITORY / "cmapkd_core", REPOSITORY / "tests", document.parent]
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)):
        for name in FILE.findall(span):
            if not HOLE.search(name.removesuffix("README.md")):
                yield name, [folder / name for folder in folders]
        named = REPOSITORY / span
        if "/" in span and " " not in span and named.is_dir():
            folders.append(named)


def test_a_file_that_a_document_names_is_there() -> None:
    documents = [path for path in TEXTS if path.suffix == ".md"]
    found = [(path.name, *one) for path in documents for one in files_of(path)]
    assert not {
        (where, name) for where, name, places in found if name not in MADE and not any(map(Path.exists, places))
    }
    assert {name for _, name, _ in found} >= MADE
    assert not [name for name in MADE if (REPOSITORY / name).exists()]
    assert len(found) > 60


def test_commands_are_found() -> None:
    """Of each kind, where they are known to stand."""
    for known in (
        "make demo",
        "submit.py --schedule '0 2 * * 1'",
        "submit.py --suite smoke --seeds 2 --local",
        "-m cmapkd_core.stages.prepare --recipe tiny --root /tmp/x",
        "-m cmapkd_core.fetch_weights hf-hub:ORG/NAME own s3://bucket/weights",
        "cmapkd submit --recipe demo --local",
    ):
        assert known in COMMANDS
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("suite", ["smoke", "baseline_weights"])
def test_make_runs_the_suite_of_its_targets_name(suite: str) -> None:
    told = subprocess.run(["make", "-n", f"suite-{suite}"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"submit.py --suite {suite} --recipe " in told.stdout
