"""What a report has no section for because nobody asked for it, in a line each, and the commands that would add it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cmapkd_core.config import Recipe
from cmapkd_core.report.read.artifacts import Commands
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.sections.section import Section

SETS = {"vqa": "vqa=easy_vqa", "captioning": "captioning", "efficiency": "efficiency"}  # as evaluate.sets names them


@dataclass(frozen=True)
class Command:
    """A command for the shell, whole, and what it does."""

    words: str
    command: str


@dataclass(frozen=True)
class LeftOut:
    """sentences: what is not in the report, and why where that is known."""

    sentences: tuple[str, ...]
    commands: tuple[Command, ...]


def left_out(
    sections: Mapping[str, Section], results: Results, recipe: Recipe, commands: Commands, table4: bool
) -> LeftOut:
    """Of the sections that hold nothing but sentences those, and what would fill them.

    Args:
        table4: whether the report is of a run, which has no table of ablations.
    """
    sentences = [s for one in sections.values() if one.bare for made in one.tables for s in made.missing]
    return LeftOut(tuple(dict.fromkeys(sentences)), tuple(_commands(results, recipe, commands, table4)))


def _commands(results: Results, recipe: Recipe, commands: Commands, table4: bool) -> Iterator[Command]:
    asked = {task for task, _ in recipe.evaluate.own()}
    wanted = [form for task, form in SETS.items() if not results.names(task) and task not in asked]
    if wanted and commands.start:
        every = ",".join((*recipe.evaluate.sets, *wanted))
        yield Command("These evaluations too; what is done already is not done again:", _joined(commands.start, every))
    if table4 and commands.suite:
        yield Command(
            "Every part of the method left out in turn, with five seeds each:",
            shlex.join([*commands.suite, "--suite", "table4", "--seeds", "5"]),
        )


def _joined(start: tuple[str, ...], sets: str) -> str:
    """The start without another value of the field, which the command would give twice."""
    kept = [word for word in start if not word.startswith("evaluate.sets=")]
    kept = [w for i, w in enumerate(kept) if w != "--set" or (i + 1 < len(kept) and not kept[i + 1].startswith("--"))]
    return shlex.join([*kept, "--set", f"evaluate.sets={sets}"])
