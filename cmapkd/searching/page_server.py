"""The search as a page of this machine: Python's own http.server, no script, nothing from the internet.

/?q=a+red+mug&top=5        the page with what was found; also ?like=NUMBER
/search.json?q=..          the same as JSON
/thumbnail/NUMBER          a picture of the folder, by its place in the list: no path ever comes from a request
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from torch import Tensor

from cmapkd.searching import MOST
from cmapkd.searching.nearest_page import Asked, Column, agreed, page, thumbnail
from cmapkd.searching.picture_folder import shown
from cmapkd.searching.picture_index import PictureIndex
from cmapkd_core.errors import BadImageError, InputError, OutsideError

LONGEST = 1000  # characters of a query
_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Side:
    """A model's index and what it is on the page, such as student."""

    role: str
    index: PictureIndex

    def column(self, query: Tensor | None, top: int, seconds: float = 0.0) -> Column:
        """The nearest pictures of a query [E]; none of a picture that this model has no embedding of."""
        matches = [] if query is None else self.index.nearest(query, top)
        return Column(self.index.model.name, self.role, matches, seconds)


def answer(sides: Sequence[Side], asked: Asked) -> list[Column]:
    """What each model finds nearest."""
    return [_timed(side, asked) for side in sides]


def _timed(side: Side, asked: Asked) -> Column:
    start = time.monotonic()
    query = side.index.text(asked.query) if asked.number is None else side.index.picture(asked.number)
    column = side.column(query, asked.top)
    return Column(column.name, column.role, column.found, time.monotonic() - start)


def serve(sides: Sequence[Side], host: str, port: int, top: int = 5) -> ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers until it is shut down.

    Args:
        port: 0 takes a free one.
        top: pictures of an answer where a request does not say how many.

    Raises:
        OutsideError: the port cannot be had.
    """
    try:
        server = ThreadingHTTPServer((host, port), partial(_Handler, sides, top))
    except OSError as error:
        why = error.strerror or error
        raise OutsideError(f"{host}:{port} cannot be served: {why}; --serve=0 takes a free port") from error
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    """Of one request."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a silent connection may last

    def __init__(self, sides: Sequence[Side], top: int, *given: Any) -> None:
        self.sides, self.folder, self.top = sides, sides[0].index.folder, top
        super().__init__(*given)

    def do_GET(self) -> None:
        """Answer, whatever was asked."""
        if not self._is_meant():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to localhost only\n")
            return
        url = urlsplit(self.path)
        if url.path.startswith("/thumbnail/"):
            self._thumbnail(url.path.removeprefix("/thumbnail/"))
        elif url.path in ("/", "/search.json"):
            self._search(url.query, as_json=url.path != "/")
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")

    def _is_meant(self) -> bool:
        """A page of another site cannot ask under its own name, even where that leads here (DNS rebinding)."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return not ipaddress.ip_address(self.connection.getsockname()[0]).is_loopback or host in _LOCAL

    def _search(self, query: str, *, as_json: bool) -> None:
        try:
            asked, message = read_query(query, len(self.folder.pictures), self.top), ""
        except ValueError as error:  # InputError, and more fields than parse_qs takes
            asked, message = Asked(top=self.top), str(error)
        columns = answer(self.sides, asked) if asked.query or asked.number is not None else []
        status = HTTPStatus.BAD_REQUEST if message else HTTPStatus.OK
        if as_json:
            self._send(status, "application/json", _json(asked, columns, message))
            return
        left_out = len(self.sides[0].index.broken)
        source = "/thumbnail/{}".format
        text = page(self.folder, asked, columns, source, left_out=left_out, live=True, message=message)
        self._send(status, "text/html; charset=utf-8", text.encode())

    def _thumbnail(self, number: str) -> None:
        if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(self.folder.pictures)):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such picture\n")
            return
        try:
            with self.folder.read(self.folder.pictures[int(number)]) as image:
                self._send(HTTPStatus.OK, "image/jpeg", thumbnail(image))
        except BadImageError as error:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", f"{error}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": _POLICY}
        for name, value in (headers | {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: queries are nobody else's, and the terminal says where the page is."""


def read_query(text: str, pictures: int, top: int) -> Asked:
    """The part of a URL behind `?`; `top` where it names none, of a folder with as many pictures.

    Raises:
        InputError: a number that is none or too large, or words that are too many.
    """
    given = {name: values[-1] for name, values in parse_qs(text, errors="replace", max_num_fields=10).items()}
    count = _number(given.get("top", str(top)), "top", 1, MOST)
    if "like" in given:
        return Asked(number=_number(given["like"], "like", 0, pictures - 1), top=count)
    query = given.get("q", "").strip()
    if len(query) > LONGEST:
        raise InputError(f"a query of {len(query)} characters: give at most {LONGEST}")
    return Asked(query, top=count)


def _number(text: str, name: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise InputError(f"{name}={shown(text[:20])}: give a number from {least} to {most}")
    return int(text)


def _json(asked: Asked, columns: Sequence[Column], message: str) -> bytes:
    both = sorted(agreed(columns))
    payload = {"asked": asdict(asked), "sides": [asdict(column) for column in columns], "both": both, "error": message}
    return json.dumps(payload).encode()
