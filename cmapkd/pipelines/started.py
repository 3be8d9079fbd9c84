"""What to type for the command that runs now, seen from the working directory: messages that can be pasted."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

CONSOLE = "cmapkd"  # the command that an installation brings (pyproject.toml)


def started_as() -> list[str]:
    """The words for `submit`: the console command, `python -m cmapkd` or the script, whichever was typed.

    With its interpreter, since another Python may lack what it needs. What no command has started, such as a notebook,
    gets the script of the checkout, or the module where there is none.
    """
    typed, interpreter = Path(sys.argv[0] or "-"), _seen_from_here(Path(sys.executable))
    if typed.stem == CONSOLE:
        return [*console_words(), "submit"]
    script = Path(__file__).resolve().parents[2] / "pipelines" / "submit.py"
    as_module = typed.name == "__main__.py" and typed.parent.name == CONSOLE
    if as_module or not script.is_file():
        return [interpreter, "-m", CONSOLE, "submit"]
    return [interpreter, _seen_from_here(script)]


def console_words() -> list[str]:
    """The words for the console command itself: the one that was typed, or that of the interpreter that runs."""
    typed, beside = Path(sys.argv[0] or "-"), Path(sys.executable).with_name(CONSOLE)
    if typed.stem == CONSOLE:
        return [_console(typed.absolute())]
    return [_console(beside)] if beside.is_file() else [_seen_from_here(Path(sys.executable)), "-m", CONSOLE]


def to_paste(*words: str) -> str:
    """That command with other options, as a line for a shell."""
    return shlex.join([*started_as(), *words])


def _console(path: Path) -> str:
    """Its name where that finds this very command, else its place."""
    executable = shutil.which(CONSOLE)
    return CONSOLE if executable and Path(executable).absolute() == path else _seen_from_here(path)


def _seen_from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
