"""What is given from Python: a value of another type is refused by its argument's name, before it is read as a text."""

from __future__ import annotations

import reprlib

from cmapkd_core.errors import InputError


def require(kinds: type | tuple[type, ...], right: str, **given: object) -> None:
    """Refuse arguments of another type.

    Args:
        right: what each of them may be, for the message.
        given: the arguments by name.

    Raises:
        InputError: names the first of another type, what came and what is right.
    """
    for name, value in given.items():
        if not isinstance(value, kinds):
            raise InputError(f"{name}={reprlib.repr(value)} is of type {type(value).__name__}: give {right}")
