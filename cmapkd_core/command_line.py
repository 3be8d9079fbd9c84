"""What commands have in common: argparse's parser, whose errors name the nearest option, and output to a pipe."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

_LIKE_AN_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")


class Parser(argparse.ArgumentParser):
    """As argparse's. The hint stands behind any error, since a misspelt option may first be seen as a missing one."""

    _words: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]  # of three overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As of argparse."""
        self._words = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage, message and hints, and exit with 2."""
        super().error(message + "".join(f" ({hint})" for hint in self._hints()))

    def _hints(self) -> Iterator[str]:
        known = [*self._option_string_actions]
        for word in self._words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if not _LIKE_AN_OPTION.fullmatch(name) or name in known or self._abbreviates(name):
                continue
            if close := difflib.get_close_matches(name, known, n=1):
                yield f"{name}: did you mean {close[0]}?"

    def _abbreviates(self, name: str) -> bool:
        return self.allow_abbrev and any(option.startswith(name) for option in self._option_string_actions)


@contextmanager
def until_enough() -> Iterator[None]:
    """Print what is only there to be read: who reads it through a pipe may have enough, as of `cmapkd rows | head`.

    What is printed afterwards goes nowhere.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
