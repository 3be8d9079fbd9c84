"""Whether an S3 server keeps what was sent: shown by the ETag of its answer, else by reading back.

An ETag is the MD5 of what the server has stored, of a file in parts the MD5 of theirs. That costs one MD5 of what is
sent and, for files in parts, one listing. Where the ETag is something else (encryption by a KMS, some servers), the
server's own check of the checksum that boto3 sends counts; without one what was written is read back.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import IO, Any

from botocore.exceptions import BotoCoreError
from s3transfer.utils import ChunksizeAdjuster

_BLOCK = 1 << 20
TIMES = 6  # that a body is sent until the server keeps it: one call in seven may change it


def stands(client: Any, bucket: str, key: str, file: IO[bytes], answer: dict[str, Any], part: int = 0) -> bool:
    """Whether `bucket/key` holds the bytes of `file`.

    Args:
        answer: to what wrote it, or an entry of a listing.
        part: bytes of the parts that it went in; 0 where it went in one.
    """
    if answer.get("ETag", "").strip('"').lower() == etag(file, part):
        return True
    if str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") and "ChecksumCRC32" in answer:
        return bool(answer["ChecksumCRC32"] == _crc32(file))
    for attempt in range(TIMES):
        try:
            return _same(client.get_object(Bucket=bucket, Key=key)["Body"], file)
        except BotoCoreError:  # a body that breaks off, which botocore does not ask for again
            if attempt == TIMES - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _same(body: Any, file: IO[bytes]) -> bool:
    file.seek(0)
    while block := file.read(_BLOCK):
        if body.read(len(block)) != block:
            return False
    return not body.read(1)


def etag(file: IO[bytes], part: int = 0) -> str:
    """The ETag of S3 for these bytes, as hexadecimal digits."""
    size = file.seek(0, 2)
    if not part:
        result: str = _md5(file, 0, size).hexdigest()
        return result
    part = ChunksizeAdjuster().adjust_chunksize(part, size)  # what s3transfer makes of it
    digests = [_md5(file, start, part).digest() for start in range(0, size, part)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _md5(file: IO[bytes], start: int, size: int) -> Any:
    digest = hashlib.md5(usedforsecurity=False)
    file.seek(start)
    while size and (block := file.read(min(_BLOCK, size))):
        digest.update(block)
        size -= len(block)
    return digest


def _crc32(file: IO[bytes]) -> str:
    checksum = 0
    file.seek(0)
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
