"""What stands between us and S3, or answers in its place: the message says who and what, and its advice leads out.

Each fault is a gateway before a real server that refuses until the very settings that the message offers are made.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, Handler, Reply

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.exits import ENDS
from cmapkd_core.stages import prepare
from cmapkd_core.stages.cli import main

OFFERED = re.compile(r"\b([A-Z][A-Z0-9_]+)=([^\s;,)]+)")
PAGE = "<!DOCTYPE html><html><head><title>{}</title></head><body><hr>nginx/1.25.3</body></html>"
HTML = {"Content-Type": "text/html", "Server": "nginx/1.25.3"}
XML = {"Content-Type": "application/xml", "x-amz-request-id": "4711"}


def page(status: int, title: str) -> Reply:
    return Reply(status, HTML, PAGE.format(title).encode())


def error(status: int, code: str, message: str = "refused", more: str = "") -> Reply:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    return Reply(status, XML, body.encode())


@pytest.fixture(scope="module")
def shared_gateway(s3_endpoint: str) -> Iterator[Gateway]:
    """And botocore reads its model of S3 once: each environment here is a new client."""
    import botocore.session

    with Gateway(s3_endpoint) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def bucket(s3_client: Any) -> str:
    s3_client.create_bucket(Bucket="gated")
    s3_client.put_object(Bucket="gated", Key="root/there", Body=b"there")
    return "s3://gated/root"


@pytest.fixture
def gateway(shared_gateway: Gateway, s3_root: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """In its first state, one try a call, and the environment leads to it."""
    from cmapkd_core.storage import s3

    for name in ("AWS_CA_BUNDLE", *(n for n in os.environ if n.lower().endswith("_proxy"))):
        monkeypatch.delenv(name, raising=False)
    once = s3.Limits(connect=2, read=5, attempts=1)
    monkeypatch.setattr(s3, "BRIEF", once)
    monkeypatch.setattr(s3, "_pause", lambda attempt: None)
    token = s3._limits.set(once)
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared_gateway.url)
    shared_gateway.refuse, shared_gateway.mangle = (lambda request: None), (lambda request, body: body)
    shared_gateway.buckets_host = ""
    yield shared_gateway
    s3._limits.reset(token)


def there(root: str) -> object:
    assert storage.read_bytes(storage.join(root, "there")) == b"there"
    return None


def written(root: str) -> object:
    storage.write_bytes(url := storage.join(root, "new"), b"new")
    assert storage.read_bytes(url) == b"new"
    return None


def message_of(call: Callable[[str], object], root: str) -> str:
    with pytest.raises(storage.StorageError) as caught:
        call(root)
    text = str(caught.value)
    assert root in text
    assert "test-secret-key" not in text
    return text


def follow(message: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Set what the message offers, word by word."""
    offered = dict(OFFERED.findall(message))
    assert offered, message
    for name, value in offered.items():
        monkeypatch.setenv(name, value)
    return offered


# ---- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_the_address_to_set(
    status: int, gateway: Gateway, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway.refuse = lambda request: Reply(status, HTML | {"Location": f"{s3_endpoint}{request.path}"})
    for verb, operation in VERBS.values():
        message = message_of(lambda root, verb=verb: verb(root, tmp_path), bucket)  # type: ignore[misc]
        assert f"{gateway.url} redirects {operation} in bucket gated to {s3_endpoint}/gated" in message
        assert message.endswith(f"({status}); set AWS_ENDPOINT_URL={s3_endpoint}")
    follow(message, monkeypatch)
    there(bucket)


def test_a_redirect_to_another_path_or_to_the_buckets_host(
    gateway: Gateway, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = s3_endpoint.removeprefix("http://")
    for prefix, address in ((f"{host}/s3/gated", f"http://{host}/s3"), (f"gated.{host}", f"http://{host}")):
        gateway.refuse = lambda request, prefix=prefix: Reply(  # type: ignore[misc]
            307, {"Location": f"http://{prefix}{request.path.removeprefix('/gated')}?X-Amz-Signature=abc"}
        )
        message = message_of(written, bucket)
        assert message.endswith(f"set AWS_ENDPOINT_URL={address}")
        assert "Signature" not in message
    follow(message, monkeypatch)
    written(bucket)


def test_the_variable_that_is_in_force_is_the_one_to_set(
    gateway: Gateway, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_ENDPOINT_URL_S3 goes before AWS_ENDPOINT_URL."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gateway.url)
    gateway.refuse = lambda request: Reply(301, {"Location": f"{s3_endpoint}{request.path}"})
    assert follow(message_of(there, bucket), monkeypatch) == {"AWS_ENDPOINT_URL_S3": s3_endpoint}
    there(bucket)


@pytest.mark.parametrize("location", ["/login?next=/gated", "https://console.example.org/ui/", ""])
def test_a_redirect_to_a_page_is_no_address(location: str, gateway: Gateway, bucket: str) -> None:
    gateway.refuse = lambda request: Reply(302, {"Location": location} if location else {})
    assert "set AWS_ENDPOINT_URL to the address of S3's API, which is not that of its console" in message_of(
        storage.exists, bucket
    )


def test_a_bucket_in_another_region_is_followed_or_named(
    gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(request: Handler) -> Reply | None:
        if "/eu-central-1/s3/" in request.headers["Authorization"]:
            return None
        return Reply(*error(301, "PermanentRedirect")[:2], error(301, "PermanentRedirect").body) if named else hint

    hint = error(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-central-1'")
    named = False
    gateway.refuse = elsewhere
    message = message_of(there, bucket)
    assert message.endswith("expecting 'eu-central-1'); set AWS_REGION=eu-central-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    follow(message, monkeypatch)
    there(bucket)
    monkeypatch.delenv("AWS_REGION")
    hint = Reply(301, XML | {"x-amz-bucket-region": "eu-central-1"}, error(301, "PermanentRedirect").body)
    there(bucket)


def test_a_server_that_names_the_buckets_endpoint(
    gateway: Gateway, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alibaba's OSS refuses so; AWS redirects so."""
    place = f"<Endpoint>gated.{s3_endpoint.removeprefix('http://')}</Endpoint>"
    for status, code in ((301, "PermanentRedirect"), (403, "AccessDenied")):
        gateway.refuse = lambda request, s=status, c=code: error(s, c, more=place)  # type: ignore[misc]
        message = message_of(there, bucket)
        assert message.endswith(f"set AWS_ENDPOINT_URL={s3_endpoint}")
    follow(message, monkeypatch)
    there(bucket)


# ---- checksums ------------------------------------------------------------------------------------

REFUSALS = [
    (400, "InvalidArgument"),
    (400, "XAmzContentSHA256Mismatch"),
    (400, "InvalidRequest"),
    (501, "NotImplemented"),
    (411, "MissingContentLength"),
    (403, "SignatureDoesNotMatch"),
    (401, "Unauthorized"),
]


def sums_sent(request: Handler) -> bool:
    sent = any(name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum")) for name in request.headers)
    return sent or "aws-chunked" in request.headers.get("Content-Encoding", "")


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_server_without_the_newer_checksums(
    status: int, code: str, gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway.refuse = lambda request: error(status, code) if sums_sent(request) else None
    (tmp_path / "file").write_bytes(b"put")
    for verb in (written, there, lambda root: storage.put(tmp_path / "file", storage.join(root, "put"))):
        message = message_of(verb, bucket)
        assert f"({code}: refused)" in message
    assert ("correct AWS_ACCESS_KEY_ID" in message) == (code in ("SignatureDoesNotMatch", "Unauthorized"))
    assert follow(message, monkeypatch) == {
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    for verb in (written, there, lambda root: storage.put(tmp_path / "file", storage.join(root, "put"))):
        verb(bucket)
    gateway.refuse = lambda request: error(status, code)  # and then it is not offered again
    assert "CHECKSUM" not in message_of(written, bucket)


def test_large_files_go_without_checksums_too(
    gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway.refuse = lambda request: error(501, "NotImplemented") if sums_sent(request) else None
    (tmp_path / "file").write_bytes(bytes(6 << 20))
    monkeypatch.setenv("CMAPKD_S3_PART_MIB", "5")
    put = lambda root: storage.put(tmp_path / "file", storage.join(root, "large"))  # noqa: E731
    follow(message_of(put, bucket), monkeypatch)
    put(bucket)
    assert storage.size(storage.join(bucket, "large")) == 6 << 20
    assert storage.fetch(storage.join(bucket, "large"), tmp_path / "back").stat().st_size == 6 << 20


def test_checksums_that_do_not_fit_the_bytes(gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = Reply(200, {"ETag": '"1"', "x-amz-checksum-crc32": "AAAAAA=="}, b"there")
    gateway.refuse = lambda request: reply
    message = message_of(there, bucket)
    assert "the bytes do not have the checksum that the server gives" in message
    follow(message, monkeypatch)
    there(bucket)


def test_a_missing_conditional_write_is_no_matter_of_checksums(gateway: Gateway, bucket: str) -> None:
    gateway.refuse = lambda request: error(501, "NotImplemented", "header If-None-Match is not implemented")
    message = message_of(storage.check_writable, bucket)
    assert "CHECKSUM" not in message
    assert "use one that has S3's PUT with If-None-Match" in message


# ---- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with key and certificate for 127.0.0.1, signed by itself."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "S3 for tests")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, *plain) + certificate.public_bytes(pem))
    return file


@pytest.fixture
def tls(gateway: Gateway, certificate: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Gateway(s3_endpoint, context) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
        server.shutdown()


def test_tls_of_an_own_authority_and_checksums_in_trailers(
    tls: Gateway, bucket: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls.refuse = lambda request: error(411, "MissingContentLength") if sums_sent(request) else None
    message = message_of(written, bucket)
    assert f"{tls.url} has no valid certificate" in message
    assert "set AWS_CA_BUNDLE to a file" in message
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    assert "correct AWS_CA_BUNDLE" in message_of(written, bucket)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    follow(message_of(written, bucket), monkeypatch)
    written(bucket)


def test_a_server_that_keeps_the_trailers_in_the_object(
    tls: Gateway, bucket: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written in chunks is stored as it came: chunk lengths, bytes, checksum."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))

    def keep(request: Handler, body: bytes) -> bytes:
        for name in ("Content-Encoding", "X-Amz-Trailer", "X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Content-SHA256"):
            del request.headers[name]
        return body

    tls.mangle = keep
    message = message_of(storage.check_writable, bucket)
    assert re.search(rf"{bucket}/\.probe-\w+ holds other bytes than were sent, 6 times in a row", message)
    follow(message, monkeypatch)
    storage.check_writable(bucket)


def test_a_limit_for_bodies_over_tls(
    tls: Gateway, bucket: str, certificate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There bodies go in chunks, whose length stands in no Content-Length."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    tls.refuse = lambda request: page(413, "413 Request Entity Too Large") if request.command == "PUT" else None
    (tmp_path / "file").write_bytes(bytes(7 << 20))
    for verb in (
        lambda root: storage.put(tmp_path / "file", storage.join(root, "large")),
        lambda root: storage.write_bytes(storage.join(root, "large"), bytes(7 << 20)),
    ):
        assert "this one had 7 MiB" in message_of(verb, bucket)


def test_http_where_tls_is_and_the_other_way_round(
    tls: Gateway, gateway: Gateway, bucket: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("AWS_ENDPOINT_URL", tls.url.replace("https", "http"))
    message = message_of(there, bucket)
    assert f"where it stays so, set AWS_ENDPOINT_URL={tls.url} if the server wants TLS" in message
    follow(message, monkeypatch)
    there(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url.replace("http", "https"))
    message = message_of(there, bucket)
    assert f"{gateway.url.replace('http', 'https')} does not speak TLS" in message
    follow(message, monkeypatch)
    there(bucket)
    gateway.refuse = lambda request: page(400, "400 The plain HTTP request was sent to HTTPS port")
    assert message_of(there, bucket).endswith(f"set AWS_ENDPOINT_URL={gateway.url.replace('http', 'https')}")


# ---- the bucket's place ---------------------------------------------------------------------------


@pytest.fixture
def named(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The gateway is s3.test and BUCKET.s3.test: a proxy stands for the names that no DNS has here."""
    gateway.buckets_host = "s3.test"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.test")
    monkeypatch.setenv("HTTP_PROXY", gateway.url)
    return gateway


@pytest.mark.parametrize("code", ["SecondLevelDomainForbidden", "PathStyleDomainForbidden", "InvalidPathAccess"])
def test_a_server_that_wants_the_bucket_in_the_hosts_name(
    code: str, named: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named.refuse = lambda request: None if request.host == "gated.s3.test" else error(403, code)
    for verb in (written, there, storage.list_files):
        message = message_of(verb, bucket)
        assert "the server refuses the bucket in the path" in message
    assert follow(message, monkeypatch) == {"AWS_S3_ADDRESSING_STYLE": "virtual"}
    written(bucket)
    storage.check_writable(bucket)


def test_a_config_file_says_it_too(
    named: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named.refuse = lambda request: None if request.host == "gated.s3.test" else error(403, "SecondLevelDomainForbidden")
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    there(bucket)


def test_a_server_that_wants_the_bucket_in_the_path(
    named: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "virtual")
    named.refuse = lambda request: error(404, "NoSuchBucket") if request.host.startswith("gated.") else None
    assert follow(message_of(there, bucket), monkeypatch) == {"AWS_S3_ADDRESSING_STYLE": "path"}
    there(bucket)
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "hosts")
    with pytest.raises(InputError, match="AWS_S3_ADDRESSING_STYLE is 'hosts': set it to auto, path or virtual"):
        there(bucket)


def test_a_host_with_the_bucket_that_no_dns_has(gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "virtual")
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url.replace("127.0.0.1", "localhost"))
    real = socket.getaddrinfo

    def unknown(host: str, *args: Any, **more: Any) -> Any:
        if host != "localhost" and host != "127.0.0.1":
            raise socket.gaierror(-2, "Name or service not known")
        return real("127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert follow(message_of(there, bucket), monkeypatch) == {"AWS_S3_ADDRESSING_STYLE": "path"}
    there(bucket)


# ---- proxies and gateways -------------------------------------------------------------------------


def test_a_limit_for_bodies(gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    too_large = page(413, "413 Request Entity Too Large")
    limit = 5 << 20
    gateway.refuse = lambda request: too_large if int(request.headers.get("Content-Length", 0)) > limit else None
    data = bytes(7 << 20)
    (tmp_path / "file").write_bytes(data)
    verbs = (
        lambda root: storage.write_bytes(storage.join(root, "large"), data),
        lambda root: storage.put(tmp_path / "file", storage.join(root, "large")),
    )
    for verb in verbs:
        message = message_of(verb, bucket)
        assert f"not S3 but nginx/1.25.3 answers at {gateway.url}: 413 Request Entity Too Large" in message
        assert "let it take bodies of 64 MiB (nginx: client_max_body_size 64m)" in message
        assert "or set CMAPKD_S3_PART_MIB to what it takes (5 at least); this one had 7 MiB" in message
    monkeypatch.setenv("CMAPKD_S3_PART_MIB", "5")
    for verb in verbs:
        verb(bucket)
        assert storage.size(storage.join(bucket, "large")) == len(data)
        storage.delete(storage.join(bucket, "large"))
    limit = 1
    message = message_of(written, bucket)
    assert "let it take bodies of 5 MiB" in message
    assert "or set CMAPKD_S3_PART_MIB" not in message


@pytest.mark.parametrize("given", ["4", "5001", "8MB", "-5"])
def test_a_part_that_s3_would_not_take(
    given: str, gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMAPKD_S3_PART_MIB", given)
    with pytest.raises(InputError, match=f"CMAPKD_S3_PART_MIB is '{given}': set it to whole MiB, 5 to 5000"):
        written(bucket)


FOREIGN = [
    (401, "401 Authorization Required", "where S3's signed requests are let through unchanged"),
    (403, "Blocked by policy", "where S3's signed requests are let through unchanged"),
    (404, "404 Not Found", "the address of S3's API"),
    (405, "Not Allowed", "the address of S3's API"),
    (200, "MinIO Console", "the address of S3's API"),
    (502, "502 Bad Gateway", "see whether the S3 server behind it runs"),
    (503, "503 Service Temporarily Unavailable", "see whether the S3 server behind it runs"),
    (504, "504 Gateway Time-out", "see whether the S3 server behind it runs"),
]


@pytest.mark.parametrize(("status", "title", "way_out"), FOREIGN)
def test_a_page_is_not_s3s_word(
    status: int, title: str, way_out: str, gateway: Gateway, bucket: str, tmp_path: Path
) -> None:
    """Every verb says so: a page with 404 is no missing object, and one with 200 neither an object nor a write."""
    gateway.refuse = lambda request: page(status, title)
    for verb, operation in VERBS.values():
        message = message_of(lambda root, verb=verb: verb(root, tmp_path), bucket)  # type: ignore[misc]
        assert f"not S3 but nginx/1.25.3 answers at {gateway.url}: {status} " in message
        assert way_out in message
        assert title.removeprefix(f"{status} ") in message or (status == 200 and operation == "GetObject")
        assert '("")' not in message
    gateway.refuse = lambda request: None
    there(bucket)


def test_a_proxy_that_wants_a_login(gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", gateway.url.replace("://", "://me:secret@"))

    def locked(request: Handler) -> Reply | None:
        given = request.headers.get("Proxy-Authorization", "Basic bWU6c2VjcmV0")
        return None if given == "Basic bWU6c2VzYW1l" or not locked_now else page(407, "Proxy Authentication Required")

    locked_now = True
    gateway.refuse = locked
    message = message_of(there, bucket)
    assert "write the proxy's login into HTTP_PROXY, as user:password@ before its host" in message
    assert "put 127.0.0.1 into NO_PROXY" in message
    assert "secret" not in message
    monkeypatch.setenv("HTTP_PROXY", gateway.url.replace("://", "://me:sesame@"))
    there(bucket)


def test_a_proxy_that_blocks_the_server(
    gateway: Gateway, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.refuse = lambda request: page(403, "Access denied by policy")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("HTTP_PROXY", gateway.url)
    assert "or put 127.0.0.1 into NO_PROXY" in message_of(there, bucket)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    there(bucket)
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    message = message_of(there, bucket)
    assert "the proxy does not lead to" in message
    assert "correct HTTP_PROXY, or put 127.0.0.1 into NO_PROXY" in message
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    there(bucket)


# ---- what S3 itself refuses -----------------------------------------------------------------------

SAID = [
    (403, "RequestTimeTooSkewed", "the clocks of this machine and of", "set this machine's clock"),
    (403, "RequestExpired", "the clocks of this machine and of", "set this machine's clock"),
    (400, "ExpiredToken", "the credentials have expired", "renew them"),
    (400, "IllegalLocationConstraintException", "in another region", "set AWS_REGION to the bucket's"),
    (404, "NoSuchBucket", "the bucket does not exist", "create it, or correct the URL"),
    (403, "InvalidAccessKeyId", "the credentials are wrong", "correct AWS_ACCESS_KEY_ID"),
    (403, "AccessDenied", "access is denied", "these credentials need s3:GetObject"),
    (400, "EntityTooLarge", "takes no body of this size", "let it take bodies of 64 MiB"),
    (507, "XMinioStorageFull", "quota is full", "free some space there"),
    (503, "SlowDown", "is overloaded", "try again later"),
    (500, "InternalError", "failed (refused)", "try again later"),
    (418, "Teapot", "Teapot: refused", ""),
]


@pytest.mark.parametrize(("status", "code", "cause", "way_out"), SAID)
def test_what_s3_says_itself(
    status: int, code: str, cause: str, way_out: str, gateway: Gateway, bucket: str, tmp_path: Path
) -> None:
    gateway.refuse = lambda request: error(status, code)
    for name in ("list_files", "write_bytes", "read_bytes", "delete"):
        message = message_of(lambda root, name=name: VERBS[name][0](root, tmp_path), bucket)  # type: ignore[misc]
        assert cause in message
        assert way_out in message
        assert "not S3 but" not in message


@pytest.mark.parametrize(
    ("status", "code", "end"),
    [
        (400, "ExpiredToken", "login"),
        (403, "InvalidAccessKeyId", "login"),
        (403, "AccessDenied", "denied"),
        (507, "XMinioStorageFull", "full"),
        (500, "InternalError", "server"),
        (404, "NoSuchBucket", "server"),
    ],
)
def test_a_stage_ends_with_the_code_of_what_s3_said(
    status: int, code: str, end: str, gateway: Gateway, bucket: str
) -> None:
    gateway.refuse = lambda request: error(status, code)
    assert main(prepare.run, ["--recipe", "tiny", "--root", bucket]) == ENDS[end].code


def test_deleting_what_is_not_there_is_no_error(gateway: Gateway, bucket: str) -> None:
    """Google's S3 answers 404."""
    gateway.refuse = lambda request: error(404, "NoSuchKey")
    storage.delete(storage.join(bucket, "none"))


def test_a_local_file_at_fault(gateway: Gateway, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = message_of(lambda root: storage.fetch(storage.join(root, "there"), tmp_path / "file" / "to"), bucket)
    assert f"{tmp_path / 'file'}" in message
    assert "a part of the path is a file: choose another folder" in message


def test_an_expired_token_is_renewed(gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    token = "X-Amz-Security-Token"
    gateway.refuse = lambda request: error(400, "ExpiredToken") if request.headers[token] == "old" else None
    assert "renew them (AWS_SESSION_TOKEN with both keys" in message_of(there, bucket)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "new")
    there(bucket)


def test_a_checksum_setting_that_is_none(gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "never")
    message = message_of(there, bucket)
    assert "request_checksum_calculation" in message
    assert "when_required" in message


# ---- any verb, any answer -------------------------------------------------------------------------


def _put(root: str, tmp: Path) -> None:
    (tmp / "file").write_bytes(b"data")
    storage.put(tmp / "file", storage.join(root, "fuzz"))


VERBS: dict[str, tuple[Callable[[str, Path], object], str]] = {
    "read_bytes": (lambda root, tmp: storage.read_bytes(storage.join(root, "there")), "GetObject"),
    "write_bytes": (lambda root, tmp: storage.write_bytes(storage.join(root, "fuzz"), b"data"), "PutObject"),
    "create": (lambda root, tmp: storage.create(storage.join(root, "fuzz"), b"data"), "PutObject"),
    "put": (_put, "PutObject"),
    "exists": (lambda root, tmp: storage.exists(storage.join(root, "there")), "ListObjectsV2"),
    "size": (lambda root, tmp: storage.size(storage.join(root, "there")), "ListObjectsV2"),
    "list_files": (lambda root, tmp: storage.list_files(root), "ListObjectsV2"),
    "fetch": (lambda root, tmp: storage.fetch(storage.join(root, "there"), tmp / "to"), "ListObjectsV2"),
    "delete": (lambda root, tmp: storage.delete(storage.join(root, "fuzz")), "DeleteObject"),
    "delete_tree": (lambda root, tmp: storage.delete_tree(storage.join(root, "tree")), "ListObjectsV2"),
    "check_writable": (lambda root, tmp: storage.check_writable(root), "PutObject"),
    "opened": (lambda root, tmp: storage.opened(storage.join(root, "there")).close(), "ListObjectsV2"),
    "folders": (lambda root, tmp: storage.folders(root), "ListObjectsV2"),
}
STATUSES = (200, 204, 206, 299, 300, 301, 304, 307, 400, 401, 403, 404, 405, 409, 411, 412, 416, 429, 500, 501, 599)
BODIES = (
    b"",
    b"ok",
    b'{"detail": "Not {found}"}',
    PAGE.format("A {page}").encode(),
    b"<html><body><h1>well formed</h1></body></html>",
    b"<Error><Code>Odd{}</Code><Region>x{y}</Region><Endpoint>h{}</Endpoint></Error>",
    b"<Error></Error>",
    b"<Error><Code>NoSuchKey</Code></Error>",
    b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
    b"<ListBucketResult><Contents><Key>root/there</Key><Size>many</Size></Contents></ListBucketResult>",
    b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    b"\xff\xfe\x00<",
)
HEADERS: tuple[dict[str, str], ...] = (
    {},
    HTML,
    XML,
    {"ETag": '"1"', "Last-Modified": "yesterday", "x-amz-checksum-crc32": "?"},
    {"Location": "http://[::1/{x}"},
    {"x-amz-bucket-region": "no {region}", "Location": "//"},
)


@pytest.mark.parametrize("verb", VERBS)
def test_whatever_answers_it_ends_in_words(verb: str, gateway: Gateway, bucket: str, tmp_path: Path) -> None:
    """No traceback of another library, and nothing but S3's own word for a missing object."""
    call, _ = VERBS[verb]
    every = list(itertools.product(STATUSES, HEADERS, BODIES))
    for status, headers, body in every[list(VERBS).index(verb) :: 31]:
        gateway.refuse = lambda request, status=status, headers=headers, body=body: Reply(status, headers, body)  # type: ignore[misc]
        try:
            call(bucket, tmp_path)
        except FileNotFoundError:
            assert verb in ("read_bytes", "size", "fetch", "opened", "check_writable")
            assert b"ListBucketResult" in body or b"NoSuchKey" in body or (status == 404 and "x-amz-" in str(headers))
        except storage.StorageError as failure:
            said = str(failure)
            assert said.startswith("cannot ") or "bytes" in said or "exclusive" in said, (status, headers, body)
        else:
            assert status < 300 or (verb == "delete" and b"NoSuchKey" in body), (status, headers, body)
            assert headers is not HTML or status == 204 or b"<html" not in body, (status, body)
