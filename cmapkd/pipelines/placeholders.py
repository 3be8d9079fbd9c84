"""What nobody has filled in: a site file's placeholders, and the fields that a package is compiled without."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cmapkd.pipelines.site import Site
from cmapkd_core.errors import InputError

# `<bucket>`, a digest of dots, and the hosts that RFC 2606 keeps for examples, so that none of them is anybody's.
_LEFT = re.compile(r"<[^<>]*>|sha256:(\.|$)|(^|[/.@])example\.(com|net|org)\b|\.example([:/]|$)")


def refuse_placeholders(site: Site, **given: str) -> None:
    """Refuse a site file that still says what site.example.toml says.

    Args:
        given: fields that the command line gives in place of the site's.

    Raises:
        InputError: names the fields and their values.
    """
    fields = {**vars(site), **given, "local": None}  # of this machine: no pod reads it
    if os.environ.get("KF_PIPELINES_ENDPOINT"):
        fields["endpoint"] = ""
    if left := [f'{name} = "{text}"' for name, text in _texts(fields, "") if _LEFT.search(text)]:
        raise InputError(f"the site file still has placeholders, put in what is yours: {'; '.join(left)}")


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every text in tables, lists and dataclasses."""
    if isinstance(value, str):
        yield name, value
    elif dataclasses.is_dataclass(value):
        yield from _texts(vars(value), name)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part, name)


def empty_in_form(arguments: Mapping[str, str]) -> str:
    """A note on what whoever starts a run of a compiled package has to fill in; "" where nothing is missing."""
    empty = [name for name in ("image", "root") if not arguments.get(name)]
    if not empty:
        return ""
    are = "are" if len(empty) > 1 else "is"
    return (
        f"note: {' and '.join(empty)} {are} empty in this package, and without {'them' if len(empty) > 1 else 'it'} no "
        "run of it starts: fill in the run's form, or copy site.example.toml to site.toml, fill it in and compile again"
    )
