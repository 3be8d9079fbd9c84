"""Configuration fields by dotted name: reading, overriding, comparing, and finding the nearest name. No torch."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cmapkd_core.errors import InputError


def nearest(word: str, choices: list[str] | tuple[str, ...]) -> str:
    """' Did you mean 'x'?' for the closest of `choices`, or a list of them where none is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"one of: {', '.join(choices)}"


def choose(kind: str, name: str, table: Mapping[str, Any], new: str = "") -> Any:
    """`table[name]`, or an InputError that names the nearest row, and where a new one is written."""
    if name not in table:
        place = f"; a new one is a row of {new}" if new else ""
        raise InputError(f"unknown {kind} '{name}': {nearest(name, tuple(table))}{place}")
    return table[name]


class FromTable:
    """A part of a recipe whose fields a table lists; else as a frozen dataclass.

    Each made is given values by name; others have the table's. `new` says where another field is written, `each` what
    each of them may be.
    """

    new = "a row of its table"
    each: Any = Any

    def __init__(self, **given: Any) -> None:
        known = self.defaults()
        for name in given:
            choose("field", name, known)
        vars(self).update(known | given)

    @staticmethod
    def defaults() -> dict[str, Any]:
        """Every field and its value where none is given."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:  # of what is not in `vars`: of a view, or younger than this
        known = {} if name.startswith("_") else self.defaults()
        if name not in known:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        try:
            return vars(self)[name]
        except KeyError:
            return known[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field '{name}'")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FromTable) and other.__class__ is self.__class__ and flatten(self) == flatten(other)

    def __hash__(self) -> int:
        return hash(tuple(flatten(self).items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def names_of(part: Any) -> tuple[str, ...]:
    """Names of the fields of a part of a recipe, or of its class, in order of definition."""
    if issubclass(part if isinstance(part, type) else type(part), FromTable):
        return tuple(part.defaults())
    return _field_names(part if isinstance(part, type) else type(part))


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields: a suite asks for them millions of times."""
    return tuple(item.name for item in dataclasses.fields(kind))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, whose annotations Python compiles at each question."""
    return get_type_hints(kind)


def is_part(value: Any) -> bool:
    """Whether a value of a recipe has fields of its own."""
    kind: Any = type(value)
    return _has_fields(kind)


@functools.cache
def _has_fields(kind: Any) -> bool:
    return hasattr(kind, "__dataclass_fields__") or issubclass(kind, FromTable)


def replaced(part: Any, name: str, value: Any) -> Any:
    """A copy of a part of a recipe with one field replaced."""
    if isinstance(part, FromTable):
        return part.__class__(**{**vars(part), name: value})
    return dataclasses.replace(part, **{name: value})


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested parts by dotted name, in order of definition."""
    leaves: dict[str, Any] = {}
    _flatten(config, prefix, leaves)
    return leaves


def _flatten(part: Any, prefix: str, leaves: dict[str, Any]) -> None:
    for item in names_of(part):
        value, name = getattr(part, item), prefix + item
        if is_part(value):
            _flatten(value, name + ".", leaves)
        else:
            leaves[name] = value


def below(prefixes: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """Those of the dotted names that are one of the prefixes, or a field inside one."""
    whole = frozenset(prefixes)
    inside = tuple(f"{prefix}." for prefix in whole)
    return frozenset(name for name in names if name in whole or name.startswith(inside))


def _parse(text: Any, current: Any, kind: Any, name: str) -> Any:
    """`text` as the type of the field it replaces; typed values pass through when they fit."""
    given = text
    if kind is bool:  # of the texts that pydantic takes for one, those that `as_text` writes
        given = {"true": True, "false": False}.get(str(text).lower())
    elif isinstance(current, tuple):
        given = [part for part in (_parts(text) if isinstance(text, str) else text) if part != ""]
    try:
        return _reader(kind).validate_python(given)
    except ValidationError:
        wanted = type(current).__name__
        raise InputError(f"{name}={text}: expected {wanted}, such as {name}={as_text(current)}") from None


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    """Of a tuple as many as there are: how many there must be is a bound, and values.py looks at those."""
    if get_origin(kind) is tuple:
        kind = GenericAlias(tuple, (get_args(kind)[0], ...))
    return TypeAdapter(kind)


def override(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of `config` with dotted fields replaced; strings are read as the field's type.

    Raises:
        InputError: unknown field (names the nearest one) or a value of the wrong type.
    """
    known = flatten(config)
    for name, value in changes.items():
        if name not in known:
            raise InputError(
                f"unknown field '{name}': {nearest(name, tuple(known))}; a new one is {_place(config, name)}"
            )
        config = _replace(config, name.split("."), value, name)
    return config


def _place(config: Any, name: str) -> str:
    """Where a field of this name would be written."""
    for part in name.split(".")[:-1]:
        config = getattr(config, part, None)
    return config.new if isinstance(config, FromTable) else "a field in cmapkd_core/config.py"


def _replace(config: Any, path: list[str], value: Any, name: str) -> Any:
    head, *rest = path
    current = getattr(config, head)
    if rest:
        return replaced(config, head, _replace(current, rest, value, name))
    owner: Any = type(config)
    kind = type(current) if isinstance(config, FromTable) else _hints(owner)[head]
    return replaced(config, head, _parse(value, current, kind, name))


def _parts(text: str) -> list[str]:
    """The parts of a tuple between commas; a part with a comma in it stands in double quotes, as in CSV."""
    return next(csv.reader(io.StringIO(text, newline="")), [])


def parse_overrides(text: str) -> dict[str, str]:
    """`"a.b=1 c=x"` (spaces or new lines between) as a dict.

    A value with a blank in it stands in quotes as in a shell: `'data.url=/my pictures' optim.batch=8`.

    Raises:
        InputError: a part without `=`, or a quote that is not closed.
    """
    try:
        parts = shlex.split(text)
    except ValueError:
        raise InputError(
            f"overrides {text}: a quote is not closed; a value with one in it stands in quotes of the other kind, such "
            'as "data.url=/tom\'s pictures"'
        ) from None
    changes = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(
                f"override '{part}' has no '=': write field=value, such as optim.batch=64, and a value with a blank in "
                "it in quotes, such as 'data.url=/my pictures'"
            )
        changes[name] = value
    return changes


def as_text(value: Any) -> str:
    """A field's value as an override spells it."""
    if isinstance(value, tuple):
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(value)
        return line.getvalue()
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_overrides(changes: dict[str, Any]) -> str:
    """The inverse of `parse_overrides`."""
    return " ".join(shlex.quote(f"{name}={as_text(value)}") for name, value in changes.items())


def joined(settings: Sequence[str]) -> str:
    """The overrides of several `--set`, each one field=value (a shell has taken its quotes off) or several of them."""
    return " ".join(one if _several(one) else shlex.quote(one) for one in settings)


def _several(setting: str) -> bool:
    """Whether `field=value field=value` stands in one `--set`, and not one value with a blank in it."""
    try:
        parts = shlex.split(setting)
    except ValueError:
        return False
    return len(setting.split()) > 1 and all(re.match(r"[a-z_][\w.]*=", part) for part in parts)


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """`field: before -> now` for every leaf in which two flattened configurations differ."""
    names = [*before, *(name for name in now if name not in before)]
    return [f"{n}: {before.get(n)} -> {now.get(n)}" for n in names if plain(before.get(n)) != plain(now.get(n))]


def plain(value: Any) -> Any:
    """A field's value as JSON holds it: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value
