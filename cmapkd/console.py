"""The command `cmapkd`: a row of COMMANDS for each word that may follow it. What a row starts is imported with it.

    cmapkd demo                                   the whole pipeline on real pictures, here
    cmapkd submit --recipe demo --local           as pipelines/submit.py of a checkout
    cmapkd recipes                                what there is to choose from
    cmapkd prepare --recipe demo --root runs/p    one stage, as python -m cmapkd_core.stages.prepare

`--help` behind a word has its own options.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROG = "cmapkd"
HELP = ("-h", "--help", "help")


@dataclass(frozen=True)
class Command:
    """A word behind `cmapkd`. text: what help says of it. code: MODULE:NAME of what takes the other words, as is."""

    text: str
    code: str

    @property
    def installed(self) -> bool:
        """Whether its module is installed."""
        return importlib.util.find_spec(self.code.partition(":")[0]) is not None

    def start(self, name: str, argv: list[str]) -> int:
        """Run it; returns the exit code."""
        module, _, function = self.code.partition(":")
        exit_code: int = getattr(importlib.import_module(module), function)(argv)
        return exit_code


@dataclass(frozen=True)
class Submit(Command):
    """`submit` with words before those that are given."""

    code: str = "cmapkd.pipelines.submit:main"
    words: tuple[str, ...] = ()

    def start(self, name: str, argv: list[str]) -> int:
        """As above; its help says what it is short for."""
        from cmapkd.pipelines import submit

        if self.words and {*argv} & {*HELP[:2]}:
            print(f"{PROG} {name}: {self.text}\nShort for: {PROG} submit {' '.join(self.words)}\n")
        return submit.main([*self.words, *argv], f"{PROG} submit")


@dataclass(frozen=True)
class Stage(Command):
    """A stage with its own parser; `code` is its `run`."""

    def start(self, name: str, argv: list[str]) -> int:
        """As above."""
        from cmapkd_core.stages import cli

        module, _, function = self.code.partition(":")
        return cli.main(getattr(importlib.import_module(module), function), argv, f"{PROG} {name}")


def stage(name: str, text: str) -> Stage:
    """The row of a stage's module."""
    return Stage(text, f"cmapkd_core.stages.{name}:run")


DEMO = ("--recipe", "demo", "--local", "--root", "runs/demo")  # as `make demo`

COMMANDS: dict[str, dict[str, Command]] = {
    "runs": {
        "demo": Submit("the whole pipeline on real pictures, here, in minutes", words=DEMO),
        "submit": Submit("a run or a suite: here (--local), or on the site's cluster"),
        "verify": Submit("are the stored files (of a RUN, or all) as they were written?", words=("--verify",)),
        "check-site": Submit("is the cluster ready? each line says ok, or what to do", words=("--check",)),
    },
    "what there is to choose from": {
        "recipes": Command("full sets of settings (--recipe)", "cmapkd.listings:recipes"),
        "rows": Command("methods, ablations, suites (--method, --ablation, --suite)", "cmapkd.listings:rows"),
        "sources": Command("where pictures come from (--data)", "cmapkd.listings:sources"),
        "evaluations": Command("what a model can be measured on (--task)", "cmapkd.listings:evaluations"),
    },
    "single stages of a run": {
        "prepare": stage("prepare", "pictures with captions become checked shards"),
        "prepare-part": stage("prepare_part", "the same for a part of the rows, on one of several machines"),
        "teacher": stage("teacher", "fits the levels of the frozen teacher"),
        "train": stage("train", "trains a student: warmup, alsn or joint"),
        "evaluate": stage("evaluate", "measures any model on held-out pictures"),
        "levels": stage("levels", "compares the levels of teacher and student"),
        "export": stage("export", "writes a student for open_clip, transformers and ONNX"),
        "report": stage("report", "writes the page of a run or of a suite"),
    },
    "models": {
        "search": Command("finds pictures of a folder by words, with an exported student", "cmapkd.search:main"),
        "fetch-weights": Command("a hub's weights to a place that pods can reach", "cmapkd_core.fetch_weights:main"),
        "convert-weights": Command("a .pt, .pth or .bin file to safetensors", "cmapkd_core.convert_weights:main"),
    },
}


def commands() -> Mapping[str, Command]:
    """Every command that is installed, by name."""
    return {name: one for group in COMMANDS.values() for name, one in group.items() if one.installed}


def overview() -> str:
    """What `cmapkd --help` prints."""
    known = commands()
    lines = [f"usage: {PROG} COMMAND [options]    (COMMAND --help: its options; --version)"]
    for title, group in COMMANDS.items():
        lines += ["", title, *(f"  {name:16}{one.text}" for name, one in group.items() if name in known)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in HELP:
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        from cmapkd_core import __version__

        print(f"{PROG} {__version__}")
        return 0
    if (command := commands().get(words[0])) is None:
        from cmapkd_core.fields import nearest  # which takes as long to import as all the rest

        print(f"error: unknown command '{words[0]}': {nearest(words[0], tuple(commands()))}", file=sys.stderr)
        return 2
    return command.start(words[0], words[1:])
