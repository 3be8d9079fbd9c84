"""What a storage call raises: who answered, what, and the way out, in words a user can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import responses
from typing import Any
from urllib.parse import urlsplit

from cmapkd_core.errors import OutsideError
from cmapkd_core.logins import without_login
from cmapkd_core.storage.causes import CAUSES, CHECKSUM_CODES, CUT, ENDS, KEYS, REGION, STYLE

PART = "CMAPKD_S3_PART_MIB"
SMALLEST_PART = 5  # MiB; S3 takes no smaller part but the last
_MIB = 1 << 20
_WRITES = ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload")
_READS = ("GetObject", "HeadObject")
_CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
WITHOUT = f"set {_CHECKSUMS} for a server without S3's newer checksums (older Ceph, OSS, GCS, R2 ..)"
_API = "set AWS_ENDPOINT_URL to the address of S3's API, which is not that of its console or of another service"


class StorageError(OutsideError):
    """A place cannot be reached, read or written; the message names the URL, the cause and the way out."""


@dataclass(frozen=True)
class Call:
    """What was tried, and by what settings.

    Attributes:
        action: "read", "write", "list" or "delete".
        style: "virtual" where the bucket is a part of the host's name.
        calculates: checksums go with what is written.
        validates: they are asked for with what is read.
        proxied: the environment names a proxy for the endpoint.
        part: MiB that the largest request may have.
        names: AWS's variables -> those that count in their place, such as AWS_ENDPOINT_URL_S3 for AWS_ENDPOINT_URL.
    """

    action: str
    url: str
    endpoint: str
    style: str = ""
    calculates: bool = False
    validates: bool = False
    proxied: bool = False
    part: int = 0
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> dict[str, str]:
        """What messages call the endpoint's parts."""
        parts = urlsplit(self.endpoint)
        return {
            "endpoint": self.endpoint,
            "host": parts.hostname or self.endpoint,
            "proxy": "HTTP_PROXY" if parts.scheme == "http" else "HTTPS_PROXY",
            "with_tls": parts._replace(scheme="https").geturl(),
            "without_tls": parts._replace(scheme="http").geturl(),
        }

    @property
    def bucket(self) -> str:
        """Of `url`."""
        return self.url.removeprefix("s3://").partition("/")[0]


@dataclass(frozen=True)
class ServerAnswer:
    """What another server than S3 said: `text` is its page's title or words, `sent` the request's length in bytes."""

    status: int
    server: str
    text: str
    location: str
    sent: int

    def __str__(self) -> str:
        reason = responses.get(self.status, "")
        known = self.text.lower() in ("", reason.lower(), f"{self.status} {reason}".lower())
        return f"{self.status} {reason}" + ("" if known else f' ("{self.text}")')


def s3_failure(call: Call, error: Exception) -> StorageError:
    """The StorageError for `error`, met in `call`."""
    error = getattr(error, "last_exception", error)  # what lies behind s3transfer's RetriesExceededError
    response = getattr(error, "response", None) or {}
    answer = getattr(error, "answer", None) or response.get("Answer")
    if answer is not None and answer.location and 300 <= answer.status < 400:
        cause, way_out = _redirected(call, answer, getattr(error, "operation_name", ""))
    elif answer is not None:
        cause, way_out = _foreign(call, answer)
    else:
        cause, way_out = _refused(call, error, response)
    cause, way_out = without_login(cause).removeprefix(": "), without_login(way_out)
    for name, counts in call.names.items():
        way_out = re.sub(rf"\b{name}\b", counts, way_out)
    failure = StorageError(f"cannot {call.action} {call.url}: {cause}" + (f"; {way_out}" if way_out else ""))
    failure.end = _end(answer, error, response)
    return failure


def _end(answer: ServerAnswer | None, error: Exception, response: dict[str, Any]) -> str:
    """Of exits.ENDS."""
    if answer is not None:
        return {401: "login", 403: "denied", 407: "login", 507: "full"}.get(answer.status, "server")
    return ENDS.get(_by_name(error, response), "server")


def _redirected(call: Call, answer: ServerAnswer, operation: str) -> tuple[str, str]:
    """The same request elsewhere, or a page for people."""
    to = urlsplit(without_login(answer.location))
    shown = f"{to.scheme}://{to.netloc}{to.path}"
    cause = f"{call.endpoint} redirects {operation} in bucket {call.bucket} to {shown} ({answer.status})"
    base, named, _ = f"{to.path}/".partition(f"/{call.bucket}/")
    host = to.netloc.removeprefix(f"{call.bucket}.")
    address = f"{to.scheme}://{host}{base.rstrip('/') if named else ''}"
    same = named or host != to.netloc or to.path in ("", "/")
    if not same or address == call.endpoint.rstrip("/"):
        return cause, _API
    return cause, f"set AWS_ENDPOINT_URL={address}"


def _foreign(call: Call, answer: ServerAnswer) -> tuple[str, str]:
    """What a proxy, a gateway or another web server said."""
    who = answer.server or "a proxy or web server"
    cause = f"not S3 but {who} answers at {call.endpoint}: {answer}"
    direct = f", or put {call.words['host']} into NO_PROXY" if call.proxied else ""
    if answer.status == 413:
        return cause, _smaller(call, answer.sent)
    if answer.status == 407:
        proxy = call.words["proxy"]
        return cause, f"write the proxy's login into {proxy}, as user:password@ before its host{direct}"
    if answer.status in (401, 403):
        return cause, f"set AWS_ENDPOINT_URL to an address where S3's signed requests are let through unchanged{direct}"
    if answer.status == 400 and "https" in answer.text.lower() and call.endpoint.startswith("http:"):
        return cause, f"set AWS_ENDPOINT_URL={call.words['with_tls']}"
    if answer.status == 411 and call.calculates and call.action == "write":
        return cause, WITHOUT
    if answer.status in (408, 429) or answer.status >= 500:
        return cause, f"see whether the S3 server behind it runs, and try again{direct}"
    return cause, f"{_API}{direct}"


def _smaller(call: Call, sent: int) -> str:
    """The way out of a limit for bodies."""
    let = f"let it take bodies of {call.part} MiB (nginx: client_max_body_size {call.part}m)"
    if sent <= SMALLEST_PART * _MIB:
        return f"{let}; this one had {sent} bytes, and S3's parts have {SMALLEST_PART} MiB at least"
    return f"{let}, or set {PART} to what it takes ({SMALLEST_PART} at least); this one had {-(-sent // _MIB)} MiB"


@dataclass(frozen=True)
class _Refusal:
    """What S3 itself, or botocore, said: `names` are the error's code ("" where there is none) and its classes."""

    names: list[str]
    detail: str
    operation: str
    response: dict[str, Any]
    by_name: tuple[str, str]  # cause and way out by the names alone

    @property
    def code(self) -> str:
        return self.names[0]

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = self.response.get("Error", {})
        return error


def _refused(call: Call, error: Exception, response: dict[str, Any]) -> tuple[str, str]:
    """Cause and way out where S3 or botocore raised `error`."""
    answer = response.get("Error", {})
    code, detail = answer.get("Code", ""), answer.get("Message") or str(error).strip()
    names = [code, *(kind.__name__ for kind in type(error).__mro__)]
    by_name = _by_name(error, response)
    refusal = _Refusal(names, detail or code or names[1], getattr(error, "operation_name", ""), response, by_name)
    words = {**call.words, "code": code, "detail": refusal.detail}
    cause, way_out = (text.format(**words) for text in _sharpened(call, refusal) or by_name)
    return cause, way_out


def _by_name(error: Exception, response: dict[str, Any]) -> tuple[str, str]:
    """Cause and way out by the names alone."""
    names = (response.get("Error", {}).get("Code", ""), *(kind.__name__ for kind in type(error).__mro__))
    return next((CAUSES[name] for name in names if name in CAUSES), ("{code}: {detail}", ""))


def _sharpened(call: Call, refusal: _Refusal) -> tuple[str, str] | None:
    """Cause and way out where the error's name alone says too little."""
    code, detail = refusal.code, refusal.detail
    if code in ("EntityTooLarge", "413"):
        return "the server takes no body of this size ({detail})", _smaller(call, int(refusal.response.get("Sent", 0)))
    if region := _region(refusal):
        return "the bucket is in another region ({detail})", f"set AWS_REGION={region}"
    elsewhere = refusal.error.get("Endpoint", "").removeprefix(f"{call.bucket}.")
    if re.fullmatch(r"[\w.:-]+", elsewhere):
        scheme = urlsplit(call.endpoint).scheme or "https"
        return "the bucket is at another address ({detail})", f"set AWS_ENDPOINT_URL={scheme}://{elsewhere}"
    if "SSLError" in refusal.names:
        return _tls(call, detail)
    if "FlexibleChecksumError" in refusal.names:
        return refusal.by_name[0], f"try again; where it stays so, {WITHOUT}"
    if _is_about_checksums(call, refusal):
        if code in ("SignatureDoesNotMatch", "Unauthorized", "401"):
            cause = "the credentials are wrong, or the server does not know S3's newer checksums ({code}: {detail})"
            return cause, f"{KEYS}; where they are right, {WITHOUT}"
        return "the server refuses the request, perhaps for its checksums ({code}: {detail})", WITHOUT
    if call.style == "virtual" and (code == "NoSuchBucket" or "EndpointConnectionError" in refusal.names):
        advice = f"a server that does not take the bucket as a part of its host's name wants {STYLE}=path"
        return refusal.by_name[0], f"{refusal.by_name[1]}; {advice}"
    return _cut(call) if refusal.by_name is CUT else None


def _region(refusal: _Refusal) -> str:
    """The region that the server itself names."""
    if refusal.by_name is not REGION:
        return ""
    headers = refusal.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    expected = re.search(r"expecting '([\w-]+)'", refusal.detail)
    named = headers.get("x-amz-bucket-region") or refusal.error.get("Region") or (expected[1] if expected else "")
    return named if re.fullmatch(r"[\w-]+", named) else ""


def _is_about_checksums(call: Call, refusal: _Refusal) -> bool:
    """Whether a refusal can be of the checksums, which newer versions of botocore send and ask for by default."""
    reads = call.validates and refusal.operation in _READS
    asked = call.calculates if refusal.operation in _WRITES else reads
    words = refusal.detail.lower()
    if not asked or "if-none-match" in words or "conditional" in words:
        return False
    return refusal.code in CHECKSUM_CODES or any(word in words for word in ("checksum", "aws-chunked", "trailer"))


def _tls(call: Call, detail: str) -> tuple[str, str]:
    """What is wrong with a certificate, or with the expectation of one."""
    if "WRONG_VERSION_NUMBER" in detail or "RECORD_LAYER" in detail:
        return "{endpoint} does not speak TLS ({detail})", "set AWS_ENDPOINT_URL={without_tls}"
    if "No such file" in detail:
        return "there is no certificate where AWS_CA_BUNDLE says ({detail})", "correct AWS_CA_BUNDLE"
    if "mismatch" in detail.lower() or "not valid for" in detail:
        style = f", and {STYLE}=path if only the bucket before it is missing there" if call.style == "virtual" else ""
        return (
            "the certificate at {endpoint} is another host's ({detail})",
            f"write into AWS_ENDPOINT_URL the host's name that stands in the certificate{style}",
        )
    return CAUSES["SSLError"]


def _cut(call: Call) -> tuple[str, str]:
    """A connection that ends in the middle: by chance, or since TLS, or less, was expected at the other end."""
    more = []
    if call.endpoint.startswith("http:"):
        more.append("set AWS_ENDPOINT_URL={with_tls} if the server wants TLS")
    if call.action == "write":
        more.append(f"set {PART} if a proxy limits bodies to less than {call.part} MiB")
    return CUT[0], "; ".join((CUT[1], *(f"where it stays so, {way}" for way in more)))
