"""One call in ten to S3 goes wrong: nothing is lost, nothing is damaged, and hardly more calls are made."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateway import Gateway, Handler, Reply

from cmapkd_core import storage
from cmapkd_core.storage import s3

from .conftest import CHAIN, World

pytestmark = pytest.mark.heavy

RATE = 0.1
MOST_CALLS = 1.3  # times those without faults
XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>planned</Message></Error>"


class Faults:
    """Answers a share of the calls with a fault, drawn from a seed; a body that is sent may have one bit flipped."""

    def __init__(self, seed: int) -> None:
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self.calls = 0
        self.made: Counter[str] = Counter()

    def _next(self, kinds: dict[str, Callable[[], Reply]]) -> Reply | None:
        with self._lock:
            self.calls += 1
            if self._draw.random() >= RATE:
                return None
            kind = self._draw.choice(list(kinds))
            self.made[kind] += 1
        return kinds[kind]()

    def refuse(self, request: Handler) -> Reply | None:
        def cut() -> Reply:
            request.connection.close()
            raise ConnectionResetError

        def error(status: int, code: str) -> Reply:
            return Reply(status, {"Content-Type": "application/xml"}, XML.format(code).encode())

        def short() -> Reply:
            """As much is promised as there is, and less is sent."""
            whole = request.forward(request.received())
            half = whole.body[: len(whole.body) // 2]
            length = whole.headers.get("Content-Length", str(len(whole.body)))
            return Reply(whole.status, {**whole.headers, "Content-Length": length}, half)

        kinds = {
            "500": lambda: error(500, "InternalError"),
            "503": lambda: error(503, "SlowDown"),
            "reset": cut,
        }
        return self._next(kinds | ({"truncated": short} if request.command == "GET" else {}))

    def mangle(self, request: Handler, body: bytes) -> bytes:
        """What is written loses a bit on its way, and the server says that all is well."""
        framed = "aws-chunked" in request.headers.get("Content-Encoding", "")
        with self._lock:
            if request.command != "PUT" or framed or not body or self._draw.random() >= RATE:
                return body
            self.made["flipped"] += 1
            at, bit = self._draw.randrange(len(body)), 1 << self._draw.randrange(8)
        return body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :]


@pytest.fixture
def faults(s3_endpoint: str, s3_root: str, monkeypatch: pytest.MonkeyPatch, draw: random.Random) -> Iterator[Faults]:
    """The environment leads through a gateway with faults, and the waits between two tries are short."""
    made = Faults(draw.randrange(2**31))
    with Gateway(s3_endpoint) as gateway:
        gateway.refuse, gateway.mangle = made.refuse, made.mangle
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
        monkeypatch.setattr(s3, "_pause", lambda attempt: None)
        yield made
        gateway.shutdown()


def test_operations_lose_nothing(
    s3_root: str, faults: Faults, count: Any, draw: random.Random, tally: Any, tmp_path: Any
) -> None:
    tried, held, there = count(60, 1000), 0, dict[str, bytes]()
    names = [f"{folder}/{number}" for folder in "ab" for number in range(10)]
    for number in range(tried):
        name, what = draw.choice(names), draw.choice(("write", "write", "read", "put", "list", "delete"))
        url = storage.join(s3_root, name)
        if what == "write":
            there[name] = draw.randbytes(draw.randrange(2000))
            storage.write_bytes(url, there[name])
            held += 1
        elif what == "put":
            there[name] = draw.randbytes(draw.randrange(20000))
            (tmp_path / "file").write_bytes(there[name])
            storage.put(tmp_path / "file", url)
            held += 1
        elif what == "read" and name in there:
            held += storage.read_bytes(url) == there[name]
        elif what == "delete" and number % 3 == 0:
            storage.delete(url)
            there.pop(name, None)
            held += 1
        else:
            held += sorted(storage.list_files(s3_root)) == sorted(there)
    lost = [name for name, data in there.items() if storage.read_bytes(storage.join(s3_root, name)) != data]
    assert lost == []
    share = faults.calls / (faults.calls - sum(faults.made.values()))
    assert share <= MOST_CALLS
    tally(
        "S3, 10 % of calls with a fault", "operations right at the first try", tried, held, f"{share:.2f} x the calls"
    )


def test_a_pipeline_ends_as_without_faults(
    world: World, s3_root: str, faults: Faults, made: Any, count: Any, tally: Any
) -> None:
    stages = CHAIN[: count(2, len(CHAIN))]
    straight = {stage: made(world.straight(stage)) for stage in stages}  # in a folder: without faults
    held = sum(made(world.finish(stage, s3_root)[0]) == straight[stage] for stage in stages)
    share = faults.calls / (faults.calls - sum(faults.made.values()))
    note = f"{sum(faults.made.values())} faults, {share:.2f} x the calls"
    tally("a pipeline on that S3", "stages equal at the first try", len(stages), held, note)
