"""A recipe as a stage is given it: the fields that the stage declared, and no others. No torch.

What a stage reads and where its artifact lies follow from one declaration (fingerprints.py, places.py); reading a field
that is not in it would let two recipes that differ in that field share the artifact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

from cmapkd_core.fields import flatten, is_part, names_of

C = TypeVar("C")
# Of which no result depends: speed, safety and memory.
NO_RESULT = ("runtime.", "data.partitions")
FREE = (*NO_RESULT, "evaluate.batch")  # so that every stage reads them and no declaration names them


class UndeclaredReadError(Exception):
    """A fault of the code: a stage reads a field of the recipe that it has not declared."""


@dataclass(frozen=True)
class Declared:
    """What of a recipe a stage reads. names: of fields, dotted. where: how to declare one, {} stands for its name."""

    stage: str
    names: frozenset[str]
    where: str

    def has(self, name: str) -> bool:
        """Whether the stage may read a field."""
        return name in self.names or name.startswith(FREE)

    def missing(self, name: str) -> UndeclaredReadError:
        """What is raised where it reads a field that it may not, with the line to add."""
        return UndeclaredReadError(
            f"stage {self.stage} reads {name}, which it has not declared, so recipes that differ in it would share one "
            f"artifact. Do not read it, or declare it: {self.where.format(name)}"
        )


def view(config: C, declared: Declared, prefix: str = "") -> C:
    """`config` with the fields that are declared; reading another raises UndeclaredReadError.

    Parts that are declared whole are handed on as they are. Of the others, `isinstance`, `vars` (what is declared),
    `dataclasses.replace` (of what is declared or replaced) and pickle work; whatever reads each field, such as
    `flatten` and `==`, raises.
    """
    if all(declared.has(name) for name in flatten(config, prefix)):
        return config
    kept = {}
    for field in names_of(config):
        value, name = getattr(config, field), prefix + field
        if is_part(value):
            kept[field] = view(cast(Any, value), declared, name + ".")
        elif declared.has(name):
            kept[field] = value
    return cast(C, _view(config.__class__, kept, declared, prefix))


def with_part(whole: C, name: str, part: Any) -> C:
    """`whole`, a view or not, with one of its parts replaced; nothing is read."""
    if not isinstance(vars(whole), _Fields):
        return cast(C, dataclasses.replace(cast(Any, whole), **{name: part}))
    fields = cast(_Fields, vars(whole))
    return cast(C, _view(whole.__class__, {**fields, name: part}, fields.declared, fields.prefix))


def _view(kind: type, kept: Mapping[str, Any], declared: Declared, prefix: str) -> Any:
    made: Any = object.__new__(_class(kind))
    object.__setattr__(made, "__dict__", _Fields(kept, declared, prefix))
    return made


class _Fields(dict[str, Any]):
    """The fields of a view by name, which `vars` gives; one that is not declared raises here too."""

    def __init__(self, kept: Mapping[str, Any], declared: Declared, prefix: str) -> None:
        super().__init__(kept)
        self.declared, self.prefix = declared, prefix

    def __missing__(self, name: str) -> Any:
        raise self.declared.missing(self.prefix + name)


class _Undeclared:
    """In the place of a field's default in a view's class; what the view holds stands before it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, made: Any, owner: type) -> Any:
        return self if made is None else vars(made)[self.name]


@cache
def _class(kind: type) -> type:
    """The class of views of a dataclass; to whoever asks an instance it is the dataclass itself."""

    def shown(made: Any) -> str:
        return f"{kind.__name__}({', '.join(f'{name}={value!r}' for name, value in vars(made).items())}, ..)"

    def packed(made: Any) -> Any:
        fields = vars(made)
        return _view, (kind, dict(fields), fields.declared, fields.prefix)

    absent = {name: _Undeclared(name) for name in names_of(kind)}
    own = {"__class__": property(lambda made: kind), "__repr__": shown, "__reduce__": packed}
    return type(f"{kind.__name__}View", (kind,), {**absent, **own})
