"""URLs with a user and password in them: shown without, and refused where everyone could read them."""

from __future__ import annotations

import re

from cmapkd_core.errors import InputError

# user:password@ up to the last @ before the path. After a colon that begins no port, slashes belong to the password:
# S3's secret keys have them.
LOGIN = re.compile(r"://(?:[^/\s]+|[^/\s:]+:(?!\d+/)\S+)@")
WAY_OUT = "give them as environment variables, on a cluster from a Kubernetes secret in [[secrets]] of the site file"


def without_login(text: str) -> str:
    """`text` with its URLs without their user:password@ part."""
    return LOGIN.sub("://", text)


def refuse_login(name: str, text: str, way_out: str = WAY_OUT) -> None:
    """Refuse a text that is recorded or shown, such as a pipeline's parameter, when a URL in it has a login.

    Args:
        name: what the text is called.
        way_out: where user and password belong.

    Raises:
        InputError: there is one; the message does not repeat it.
    """
    if LOGIN.search(text):
        raise InputError(f"{name} has a user and password in its URL: leave them out and {way_out}")
