"""What a field of a configuration may hold, said at the field: `batch: Count = 256`. pydantic holds values to it.

A new bound is an `Annotated` type, here or where it is used; what is said of a value that breaks it is the sentence of
pydantic's error in SENTENCES, or the `Must` beside the bound. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from cmapkd_core.catalog import TableEntry, require_file
from cmapkd_core.errors import InputError
from cmapkd_core.fields import FromTable, as_text, choose, is_part, names_of

EXACT = ConfigDict(strict=True, allow_inf_nan=False)  # no text is a number, and nan is none either
SENTENCES = {  # by pydantic's type of error, with the values of its context
    "finite_number": "it must be a finite number",
    "greater_than": "it must be above {gt:g}",
    "greater_than_equal": "it must be at least {ge:g}",
}


@dataclass(frozen=True)
class Must:
    """What is said of a value out of the bounds beside it, in place of the bound's own sentence."""

    text: str


@dataclass(frozen=True, eq=False)
class Named:
    """The name of one of `table`. kind: what its rows are, as errors say it. new: where another row is written."""

    kind: str
    table: Collection[str]
    new: str = ""

    def __call__(self, name: str) -> str:
        """`name`, or an InputError with the nearest of the table, or with the file that its row names and lacks."""
        choose(self.kind, name, dict.fromkeys(self.table), self.new)
        if isinstance(self.table, Mapping) and isinstance(self.table[name], TableEntry):
            require_file(self.kind, name, self.table)
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))


_NOT_BELOW = Must("it cannot be below 0")
Whole = Annotated[int, Field(ge=0), _NOT_BELOW]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0), _NOT_BELOW]
AnyNumber = Annotated[float, Field(allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1), Must("it must be from 0 to 1")]


def check_values(config: Any, prefix: str = "") -> None:
    """Hold every field of nested parts to its annotation.

    Raises:
        InputError: names the first that breaks it by its dotted name, its value, and what it must be.
    """
    for item, hint in hints_of(config).items():
        value, name = getattr(config, item), prefix + item
        if is_part(value):
            check_values(value, name + ".")
            continue
        try:
            _adapter(hint).validate_python(value)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            cause = fault.get("ctx", {}).get("error")  # of a name, with its own sentence
            message = cause if isinstance(cause, InputError) else f"{name}={as_text(value)}: {sentence(fault, hint)}"
            raise InputError(str(message)) from None


def sentence(fault: Mapping[str, Any], hint: Any) -> str:
    """What a value must be that pydantic refused. fault: one of its `errors()`. hint: the field's annotation."""
    kind, context = fault["type"], fault.get("ctx", {})
    own = "" if kind == "finite_number" else _must(hint)
    return own or SENTENCES.get(kind, "").format(**context) or str(fault["msg"])


def hints_of(part: Any) -> dict[str, Any]:
    """The annotations of the fields of a part of a configuration, with their bounds."""
    kind: Any = type(part)
    return dict.fromkeys(names_of(part), kind.each) if isinstance(part, FromTable) else _hints(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _must(hint: Any) -> str:
    """The sentence beside a bound; of a tuple's parts too."""
    own = (extra.text for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Must))
    return next(own, "") or next(filter(None, map(_must, get_args(hint))), "")


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=EXACT)
