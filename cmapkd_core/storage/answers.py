"""Who answers at an S3 endpoint: what a proxy, a console or another web server says never passes for S3's word.

botocore sees a status and, where there is XML, a code. A web page with status 200 it takes for an object, one with
404 for "no such object", and a redirect sends it round until Python's stack ends. Here each answer is looked at once
more before botocore decides on another try.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sized
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

from botocore.exceptions import BotoCoreError

from cmapkd_core.storage.failures import ServerAnswer

_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>|<h1[^>]*>(.*?)</h1>", re.IGNORECASE | re.DOTALL)
_ELSEWHERE = re.compile(rb"<Endpoint>\s*([^<\s]+)\s*</Endpoint>")
_SHOWN = 80  # letters of a page's title or text


class NotS3(BotoCoreError):  # type: ignore[misc]  # botocore has no types
    """An answer that ends the call at once: a redirect, or a success that is not S3's."""

    fmt = "{answer}"

    def __init__(self, operation: str, answer: ServerAnswer) -> None:
        super().__init__(answer=answer)
        self.answer = answer
        self.operation_name = operation


def watch(client: Any) -> None:
    """Look at every answer that `client` gets, before anything of botocore decides on another try."""

    def look(response: Any, operation: Any, request_dict: dict[str, Any], **_: Any) -> None:
        if response is not None:  # else there was no answer: the exception says why
            _look(operation.name, request_dict, *response)

    client.meta.events.register_first("needs-retry.s3", look)


def _look(operation: str, request: dict[str, Any], http: Any, parsed: dict[str, Any]) -> None:
    status = http.raw.status  # what came; botocore makes 500 of a 200 whose body it cannot read
    if status < 300:
        if not _is_success(operation, status, http, parsed):
            page = b"" if operation == "GetObject" else http.content  # an object's bytes are the caller's to read
            raise NotS3(operation, _answer(request, http, page))
        return
    answer = _answer(request, http, http.content)
    if _leads_away(operation, http, parsed):
        raise NotS3(operation, answer)
    if not _is_s3_error(operation, http):
        parsed["Answer"] = answer
    parsed["Sent"] = answer.sent
    parsed.setdefault("Error", {})  # botocore promises one, but has none where the XML is another's


def _is_success(operation: str, status: int, http: Any, parsed: dict[str, Any]) -> bool:
    """Whether S3 can have said so. A write that a login page "accepts" would be lost in silence."""
    page = http.headers.get("content-type", "").lower().startswith("text/html")
    if operation in ("GetObject", "HeadObject"):
        return "etag" in http.headers or not page
    if status == 200 and b"<Error" in http.content:  # S3 begins some answers before it knows: botocore sees to it
        return True
    if operation in ("PutObject", "UploadPart"):
        return "etag" in http.headers
    if operation == "ListObjectsV2":
        return b"ListBucketResult" in http.content
    if operation == "CreateMultipartUpload":
        return "UploadId" in parsed
    return not (page and http.content)


def _is_marked(http: Any) -> bool:
    return any(name.lower().startswith("x-amz-") for name in http.headers)


def _is_s3_error(operation: str, http: Any) -> bool:
    """HEAD has no body to tell by, so there only a page's content type betrays another server."""
    if b"<Error" in http.content or _is_marked(http):
        return True
    return operation.startswith("Head") and "html" not in http.headers.get("content-type", "").lower()


def _leads_away(operation: str, http: Any, parsed: dict[str, Any]) -> bool:
    """A redirect that names no region: botocore would ask the bucket's HEAD for one, by the same redirect, for ever.

    To another region S3 redirects by naming it, or at HEAD: that much botocore follows.
    """
    if http.status_code not in (301, 302, 303, 307, 308):
        return False
    named = "x-amz-bucket-region" in http.headers or parsed.get("Error", {}).get("Region")
    return not named and (operation == "HeadBucket" or not _is_marked(http) or "location" not in http.headers)


def _answer(request: dict[str, Any], http: Any, page: bytes) -> ServerAnswer:
    headers, title = http.headers, _TITLE.search(page)
    shown = b" ".join(part for part in title.groups() if part) if title else b"" if b"<" in page else page
    text = " ".join(unescape(shown.decode("utf-8", "replace")).split())
    elsewhere = _ELSEWHERE.search(page)
    location = urljoin(http.url, headers.get("location", ""))
    if elsewhere:
        location = f"{urlsplit(http.url).scheme}://{elsewhere[1].decode('ascii', 'replace')}"
    return ServerAnswer(
        status=http.raw.status,
        server=headers.get("server", "")[:_SHOWN],
        text="".join(letter for letter in text if letter.isprintable())[:_SHOWN],
        location=location if elsewhere or "location" in headers else "",
        sent=_length(request),
    )


def _length(request: dict[str, Any]) -> int:
    """Bytes that a request carries; a body in chunks declares its own length, one that was read stands at its end."""
    body, decoded = request.get("body"), request.get("headers", {}).get("X-Amz-Decoded-Content-Length")
    if decoded:
        return int(decoded)
    if isinstance(body, io.BytesIO):
        return body.getbuffer().nbytes
    if isinstance(body, io.BufferedReader):
        return os.fstat(body.fileno()).st_size
    return len(body) if isinstance(body, Sized) else 0
