"""What the fields of configurations say of their values, read from their annotations."""

from __future__ import annotations

import math
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from cmapkd_core.fields import is_part
from cmapkd_core.values import hints_of


def hints(part: Any, prefix: str = "") -> dict[str, Any]:
    """The annotation of every leaf, by dotted name."""
    found: dict[str, Any] = {}
    for item, hint in hints_of(part).items():
        value = getattr(part, item)
        found |= hints(value, f"{prefix}{item}.") if is_part(value) else {prefix + item: hint}
    return found


def kinds(hint: Any) -> set[type]:
    """What a leaf holds once bounds and tuples are taken off."""
    if get_origin(hint) is Annotated:
        return kinds(get_args(hint)[0])
    return {kind for part in get_args(hint) if part is not ... for kind in kinds(part)} or {hint}


def bounds(hint: Any) -> list[Ge | Gt | Le | Lt]:
    """The bounds of a number, or of the parts of a tuple."""
    extras = [
        extra for part in getattr(hint, "__metadata__", ()) if isinstance(part, FieldInfo) for extra in part.metadata
    ]
    own = [extra for extra in extras if isinstance(extra, Ge | Gt | Le | Lt)]
    return own or [bound for part in get_args(hint)[:1] if hint is not part for bound in bounds(part)]


def outside(bound: Any, kind: type) -> float:
    """The nearest number that a bound refuses."""
    if isinstance(bound, Gt | Lt):
        return kind(bound.gt if isinstance(bound, Gt) else bound.lt)
    edge, way = (bound.ge, -1) if isinstance(bound, Ge) else (bound.le, 1)
    return edge + way if kind is int else math.nextafter(edge, way * math.inf)
