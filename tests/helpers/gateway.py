"""A gateway before an S3 server: it may refuse a request, change what passes, or break off."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes = b""


Refuse = Callable[["Handler"], Reply | None]


class Gateway(ThreadingHTTPServer):
    """Before the S3 server: `refuse` looks at a request and may answer in the server's place."""

    daemon_threads = True

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream.removeprefix("http://")
        self.refuse: Refuse = lambda request: None
        self.mangle: Callable[[Handler, bytes], bytes] = lambda request, body: body
        self.buckets_host = ""  # the name under which buckets are hosts, for whom this is the proxy
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_port}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"  # else clients that send "Expect: 100-continue" wait for a second

    def answer(self) -> None:
        self.path = re.sub("^http://[^/]*", "", self.path)  # as it comes to a proxy
        reply = self.server.refuse(self)
        self.close_connection = True
        if reply is None:
            reply = self.forward(self.server.mangle(self, self.received()))
        elif "Expect" not in self.headers:
            self.received()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), "Connection": "close", **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def send_response(self, code: int, message: str | None = None) -> None:
        self.send_response_only(code, message)  # who answers is in the reply's headers

    def handle_expect_100(self) -> bool:
        """A refusal comes before the body, as real servers have it."""
        if self.server.refuse(self) is None:
            del self.headers["Expect"]
            return super().handle_expect_100()
        return True

    def received(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length + 2)[:-2]
        self.rfile.readline()
        return body

    @property
    def host(self) -> str:
        return self.headers.get("Host", "")

    def forward(self, body: bytes) -> Reply:
        name = self.server.buckets_host
        if name and self.host.endswith("." + name):
            self.path = f"/{self.host.removesuffix('.' + name)}{self.path}"
        upstream = http.client.HTTPConnection(self.server.upstream)
        left = ("host", "content-length", "transfer-encoding", "connection")
        kept = {name: value for name, value in self.headers.items() if name.lower() not in left}
        upstream.request(self.command, self.path, body, kept)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        headers = {n: v for n, v in answer.headers.items() if n.lower() not in ("connection", "transfer-encoding")}
        return Reply(answer.status, headers, data)

    def log_message(self, *args: object) -> None:
        """Nothing to print for a planned fault."""


for _method in ("GET", "PUT", "HEAD", "DELETE", "POST"):
    setattr(Handler, f"do_{_method}", lambda self: self.answer())
