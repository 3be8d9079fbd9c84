"""What a person types here for this project's commands: the one place that spells them for messages and reports.

In a checkout that is the environment's Python with the script, as in the documents. Where pip has installed the package
and no checkout is around it, it is the console command. A container image has neither; who runs it has the checkout
that it was built from.
"""

from __future__ import annotations

import shlex
from pathlib import Path

SCRIPT = "pipelines/submit.py"


def _of_checkout(root: Path) -> bool:
    if (root / SCRIPT).is_file():
        return True
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return not distribution("cmapkd")
    except PackageNotFoundError:
        return True


CHECKOUT = _of_checkout(Path(__file__).resolve().parents[1])
PYTHON = ".venv/bin/python" if CHECKOUT else "python"  # as `make install` leaves it
CONSOLE = ".venv/bin/cmapkd" if CHECKOUT else "cmapkd"
SUBMIT = (PYTHON, SCRIPT) if CHECKOUT else (CONSOLE, "submit")


def submit(*words: str) -> str:
    """The command that starts runs, with these words, as a line for a shell."""
    return shlex.join([*SUBMIT, *words])
