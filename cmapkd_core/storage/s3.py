"""The storage verbs on S3, by boto3: bounded retries, errors in words, one PUT as the commit point.

Beside what boto3 reads of the environment: AWS_REGION; AWS_S3_ADDRESSING_STYLE (auto, path or virtual: the bucket
in the path or in the host's name), which boto3 knows in a config file only; CMAPKD_S3_PART_MIB, the MiB of the
largest request; and CMAPKD_S3_ENDPOINT_URL and the others of own.py, which go before AWS's.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeVar

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError

from cmapkd_core import temporary
from cmapkd_core.errors import InputError
from cmapkd_core.storage import own, sent
from cmapkd_core.storage.answers import watch
from cmapkd_core.storage.causes import STYLE
from cmapkd_core.storage.disk import in_words, partial
from cmapkd_core.storage.entry import Entry
from cmapkd_core.storage.failures import PART, SMALLEST_PART, WITHOUT, Call, StorageError, s3_failure


@dataclass(frozen=True)
class Limits:
    """How long one call may take: seconds to connect and to wait for bytes, and how often it is tried."""

    connect: float
    read: float
    attempts: int


NORMAL = Limits(connect=5, read=30, attempts=6)
BRIEF = Limits(connect=3, read=4, attempts=4)
_limits: ContextVar[Limits] = ContextVar("limits", default=NORMAL)

# A body that breaks off is not retried by botocore: the call itself had succeeded.
BODY_ATTEMPTS = 5
CONFLICT_ATTEMPTS = 8
_TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
# Stage prepare reads 16 pictures at a time beside two files in parts. A connection that finds no room in the pool (of
# 10 by default) is thrown away with a warning, and the next call begins with a TLS handshake.
_CONNECTIONS = 32
LARGEST_PART = 5000  # MiB; S3 takes up to 5 GiB in one request
_making = threading.Lock()  # lru_cache lets threads that ask at once make a client each
T = TypeVar("T")
_GONE = ("NoSuchKey", "404")
# What an answer that is no S3's makes of botocore and s3transfer, which look into it without a doubt.
_ASTRAY = (ResponseParserError, RecursionError, KeyError, TypeError, ValueError, AttributeError)


@contextmanager
def briefly() -> Iterator[None]:
    """Calls inside the block give up within half a minute."""
    token = _limits.set(BRIEF)
    try:
        yield
    finally:
        _limits.reset(token)


def _client() -> Any:
    """boto3's client for the environment as it is now; proxies are a part of it."""
    prefixes = ("AWS_", own.PREFIX)
    settings = ((name, value) for name, value in os.environ.items() if name.startswith(prefixes) or _is_proxy(name))
    with _making:
        return _new_client(os.getpid(), frozenset(settings), _limits.get())


def _unlock() -> None:
    """In a forked process: the thread that had the lock is not there."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


def _is_proxy(name: str) -> bool:
    return name.lower().endswith("_proxy")


@functools.lru_cache(maxsize=8)
def _new_client(process: int, environment: frozenset[tuple[str, str]], limits: Limits) -> Any:
    """One client per process (a forked loader worker must not share sockets) and environment.

    AWS_REGION is read here: boto3 knows it by the name of AWS_DEFAULT_REGION only.
    """
    given = dict(environment)
    style = given.get(STYLE, "")
    if style not in ("", "auto", "path", "virtual"):
        raise InputError(f"{STYLE} is '{style}': set it to auto, path or virtual, or leave it out")
    config = Config(
        connect_timeout=limits.connect,
        read_timeout=limits.read,
        retries={"total_max_attempts": limits.attempts, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        s3={"addressing_style": style} if style else None,
    )
    known = botocore.session.get_session()
    known.register_component("data_loader", _descriptions())
    session = boto3.session.Session(botocore_session=known, region_name=given.get("AWS_REGION") or None)
    client = session.client("s3", config=config, **own.parameters(given))
    watch(client)
    return client


@functools.cache
def _descriptions() -> Any:
    """botocore's descriptions of AWS's services: read once, they are nine tenths of what a client's making costs."""
    return botocore.session.get_session().get_component("data_loader")


def _transfer() -> TransferConfig:
    """How files go: in parts where they are large."""
    given = os.environ.get(PART, "")
    if not given:
        return _TRANSFER
    if not given.isdecimal() or not SMALLEST_PART <= int(given) <= LARGEST_PART:
        raise InputError(
            f"{PART} is '{given}': set it to whole MiB, {SMALLEST_PART} to {LARGEST_PART}, or leave it out"
        )
    part = int(given) << 20
    return TransferConfig(multipart_threshold=part + 1, multipart_chunksize=part, max_concurrency=4)


def split(url: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key may be empty."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{url} names no bucket: write s3://bucket/prefix")
    return bucket, key.rstrip("/")


@contextmanager
def _named(action: str, url: str) -> Iterator[Any]:
    """The client; what it raises becomes FileNotFoundError(url) or a StorageError in words."""
    try:
        client = _client()
    except InputError:
        raise
    except (BotoCoreError, ValueError) as error:
        raise s3_failure(
            Call(action, url, _names().get("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL"), names=_names()), error
        ) from error
    try:
        yield client
    except ClientError as error:
        if _is_gone(error):
            raise FileNotFoundError(url) from None
        raise s3_failure(_call(action, url, client), error) from error
    except (BotoCoreError, RetriesExceededError, HTTPError) as error:
        raise s3_failure(_call(action, url, client), error) from error
    except (InputError, FileNotFoundError):
        raise
    except OSError as error:  # of the local file that is sent or made
        where = f"{error.filename}: " if error.filename else ""
        raise StorageError(f"cannot {action} {url}: {where}{in_words(error)}") from error
    except _ASTRAY as error:
        astray = LookupError(f"{type(error).__name__}: {error}")
        raise s3_failure(_call(action, url, client), astray) from error


def _is_gone(error: ClientError) -> bool:
    """Whether S3, and not a web server in its place, says that one object is not there."""
    about_one = error.operation_name in ("GetObject", "HeadObject", "DeleteObject")
    return about_one and "Answer" not in error.response and error.response["Error"].get("Code") in _GONE


def _call(action: str, url: str, client: Any) -> Call:
    """What a message has to know of the client's settings."""
    config, endpoint = client.meta.config, client.meta.endpoint_url
    return Call(
        action,
        url,
        endpoint,
        style=(config.s3 or {}).get("addressing_style", ""),
        calculates=config.request_checksum_calculation == "when_supported",
        validates=config.response_checksum_validation == "when_supported",
        proxied=bool(get_environ_proxies(endpoint)),
        part=_transfer().multipart_threshold >> 20,
        names=_names(),
    )


def _names() -> dict[str, str]:
    """AWS's variables -> those that count in their place."""
    by_service = {"AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL_S3"} if os.environ.get("AWS_ENDPOINT_URL_S3") else {}
    return by_service | own.renamed(os.environ)


def read_bytes(url: str) -> bytes:
    result: bytes = _read(url, lambda body: body.read())
    return result


def read_part(url: str, first: int, size: int) -> bytes:
    result: bytes = _read(url, lambda body: body.read(), Range=f"bytes={first}-{first + size - 1}")
    return result


def sha256(url: str) -> str:
    return _read(url, _sha256)


def _sha256(body: Any) -> str:
    digest = hashlib.sha256()
    for block in body.iter_chunks(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _read(url: str, reader: Callable[[Any], T], **asked: str) -> T:
    """What `reader` makes of the object's body; one that breaks off is asked for again."""
    bucket, key = split(url)
    with _named("read", url) as client:
        for attempt in range(BODY_ATTEMPTS):
            body = client.get_object(Bucket=bucket, Key=key, **asked)["Body"]
            try:
                return reader(body)
            except BotoCoreError:
                if attempt == BODY_ATTEMPTS - 1:
                    raise
                _pause(attempt)
    raise AssertionError("the last attempt returns or raises")


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, 5.0))


def opened(url: str) -> BufferedReader:
    with temporary.folder() as folder:
        return open(fetch(url, folder / "file"), "rb")  # its name goes with the folder, its bytes once it is closed


def write_bytes(url: str, data: bytes) -> None:
    with _named("write", url) as client:
        _send(client, url, io.BytesIO(data))


def _send(client: Any, url: str, file: IO[bytes], **more: Any) -> None:
    """Write the object until the server keeps what was sent: a body can be damaged on its way.

    Raises:
        StorageError: it keeps other bytes each time.
    """
    bucket, key = split(url)
    transfer, size = _transfer(), file.seek(0, io.SEEK_END)
    part = transfer.multipart_chunksize if size >= transfer.multipart_threshold else 0
    for _ in range(sent.TIMES):
        file.seek(0)
        if part:
            client.upload_fileobj(file, bucket, key, Config=transfer)
            answer = _entry(client, url) or {}
        else:
            answer = client.put_object(Bucket=bucket, Key=key, Body=file, **more)
        if sent.stands(client, bucket, key, file, answer, part):
            return
    raise StorageError(
        f"{url} holds other bytes than were sent, {sent.TIMES} times in a row: look for what changes them on their way "
        f"(a proxy, the network, the server's memory or disks), and {WITHOUT}"
    )


def create(url: str, data: bytes) -> bool:
    """412: somebody wrote first, perhaps we ourselves; 409: another write is under way, so try again."""
    bucket, key = split(url)
    token = uuid.uuid4().hex
    metadata = {"Metadata": {"writer": token}}
    request = {"Bucket": bucket, "Key": key, "Body": data, "IfNoneMatch": "*", **metadata}
    with _named("write", url) as client:
        for attempt in range(CONFLICT_ATTEMPTS):
            try:
                answer = client.put_object(**request)
                break
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 412:
                    if _writer(client, bucket, key) != token:
                        return False
                    answer = {}  # it got lost, so what is there is read
                    break
                if status != 409 or attempt == CONFLICT_ATTEMPTS - 1:
                    raise
                _pause(attempt)
        if not sent.stands(client, bucket, key, io.BytesIO(data), answer):
            _send(client, url, io.BytesIO(data), **metadata)  # nobody else writes where our object lies
    return True


def _writer(client: Any, bucket: str, key: str) -> str:
    """The token that an object was created with.

    Where the answer to our first attempt got lost, botocore tries again and meets our own object.
    """
    try:
        return str(client.head_object(Bucket=bucket, Key=key)["Metadata"].get("writer", ""))
    except ClientError as error:
        if _is_gone(error):
            return ""  # existed a moment ago: somebody else's, and deleted since
        raise


def _size(url: str) -> int | None:
    """Bytes of the object, None where there is none.

    By listing: a HEAD answers 404 alike for a missing object and a missing bucket, and 403 for a missing
    object where listing is not allowed. The object's own name sorts first among those that begin with it.
    """
    with _named("read", url) as client:
        entry = _entry(client, url)
    return int(entry["Size"]) if entry else None


def _entry(client: Any, url: str) -> dict[str, Any] | None:
    bucket, key = split(url)
    contents = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
    return dict(contents[0]) if contents and contents[0]["Key"] == key else None


def exists(url: str) -> bool:
    return _size(url) is not None


def size(url: str) -> int:
    length = _size(url)
    if length is None:
        raise FileNotFoundError(url)
    return length


def delete(url: str) -> None:
    bucket, key = split(url)
    with suppress(FileNotFoundError), _named("delete", url) as client:  # Google's says so, the others do not
        client.delete_object(Bucket=bucket, Key=key)


def delete_tree(url: str) -> None:
    """One call an object: not every S3 server has DeleteObjects."""
    if not split(url)[1]:
        raise InputError(f"{url} is a whole bucket: name a prefix to delete")
    for name in list_files(url):
        delete(f"{url.rstrip('/')}/{name}")


def sweep(url: str) -> int:
    """Nothing to do: a write that did not end is no object."""
    return 0


def list_files(url: str) -> list[str]:
    bucket, key = split(url)
    prefix = f"{key}/" if key else ""
    with _named("list", url) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    # Consoles mark an empty "folder" by an object whose name ends in a slash.
    return sorted(name.removeprefix(prefix) for name in keys if not name.endswith("/"))


def a_few(url: str, most: int) -> list[str]:
    bucket, key = split(url)
    prefix = f"{key}/" if key else ""
    with _named("list", url) as client:
        contents = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=most).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in contents if not entry["Key"].endswith("/")]


def folders(url: str) -> list[str]:
    bucket, key = split(url)
    prefix = f"{key}/" if key else ""
    with _named("list", url) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        result = [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", [])]
    return sorted(name.removeprefix(prefix).rstrip("/") for name in result)


def entries(url: str) -> dict[str, Entry]:
    bucket, key = split(url)
    with _named("list", url) as client:
        first = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", []) if key else []
        if first and first[0]["Key"] == key:
            return {"": _as_entry(first[0])}
        prefix = f"{key}/" if key else ""
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [listed for page in pages for listed in page.get("Contents", []) if not listed["Key"].endswith("/")]
    return {listed["Key"].removeprefix(prefix): _as_entry(listed) for listed in objects}


def _as_entry(listed: dict[str, Any]) -> Entry:
    return Entry(int(listed["Size"]), str(listed["ETag"]).strip('"'), listed["LastModified"].timestamp())


def fetch(url: str, target: Path) -> Path:
    bucket, key = split(url)
    expected = size(url)
    with _named("read", url) as client, partial(target) as file:
        client.download_fileobj(bucket, key, file, Config=_transfer())
        file.flush()
        if os.fstat(file.fileno()).st_size != expected:
            raise StorageError(f"{url} has {expected} bytes and {file.tell()} arrived: try again")
        os.replace(file.name, target)
    return target


def put(local: Path, url: str) -> None:
    with _named("write", url) as client, local.open("rb") as file:
        _send(client, url, file)
