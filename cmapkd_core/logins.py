"""Logins in URLs, before a host or in a query: shown without, and refused where everyone could read them."""

from __future__ import annotations

import re
from urllib.parse import unquote

from cmapkd_core.errors import InputError

# user:password@ up to the last @ before the path. After a colon that begins no port, slashes belong to the password:
# S3's secret keys have them.
LOGIN = re.compile(r"://(?:[^/\s]+|[^/\s:]+:(?!\d+/)\S+)@")
# A parameter of a query, a path or a fragment, and which ones are of a login: by a part of the name, or by all of it.
_PARAMETER = re.compile(r"(?P<name>[?&;#][^=&?;#\s]+=)[^&;#\s]+")
_PART = re.compile(r"pass|pwd|token|secret|signature|credential|auth(?!or(?!i[sz]))|odbc_connect", re.IGNORECASE)
_WHOLE = re.compile(
    r"(.*[_-])?key|(api|access|secret|private)key(id)?|.*accesskeyid|sig|user(name)?|login", re.IGNORECASE
)
WAY_OUT = "give them as environment variables, on a cluster from a Kubernetes secret in [[secrets]] of the site file"


def without_login(text: str) -> str:
    """`text` with its URLs without their user:password@ part, and with `***` for a login's values in their queries."""
    return _PARAMETER.sub(_hidden, LOGIN.sub("://", text))


def _hidden(match: re.Match[str]) -> str:
    return f"{match['name']}***" if _is_login(match["name"]) else match[0]


def _is_login(parameter: str) -> bool:
    """Whether `?name=`, `&name=`, `;name=` or `#name=` says who calls."""
    name = unquote(parameter[1:-1])
    return bool(_PART.search(name) or _WHOLE.fullmatch(name))


def refuse_login(name: str, text: str, way_out: str = WAY_OUT) -> None:
    """Refuse a text that is recorded or shown, such as a pipeline's parameter, when a URL in it has a login.

    Args:
        name: what the text is called.
        way_out: where user and password belong.

    Raises:
        InputError: there is one; the message does not repeat it.
    """
    refuse_password(name, text, way_out)
    for match in _PARAMETER.finditer(text):
        if _is_login(match["name"]):
            raise InputError(f"{name} has a login in its URL ({match['name']}..): leave it out and {way_out}")


def refuse_password(name: str, text: str, way_out: str = WAY_OUT) -> None:
    """As `refuse_login`, of a place without a query, in whose name `?key=` says nothing: user:password@ alone.

    Raises:
        InputError: there is one; the message does not repeat it.
    """
    if LOGIN.search(text):
        raise InputError(f"{name} has a user and password in its URL: leave them out and {way_out}")
