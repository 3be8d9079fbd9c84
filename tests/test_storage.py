"""One table of cases for a local folder and for S3 over real HTTP, then the faults of each."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.storage import StorageError, s3, sent
from cmapkd_core.storage.user_cache import user_cache

MANY = 20
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place where nothing has been written yet."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_root")


# ---- the verbs, alike for both --------------------------------------------------------------------


def case_bytes_come_back(root: str, tmp: Path) -> None:
    for data in (b"", b"one", bytes(range(256)) * 1000):
        storage.write_bytes(storage.join(root, "a/b.bin"), data)
        assert storage.read_bytes(storage.join(root, "a/b.bin")) == data
        assert storage.size(storage.join(root, "a/b.bin")) == len(data)


def case_json_comes_back(root: str, tmp: Path) -> None:
    value = {"seeds": [1, 2], "name": "Ä", "none": None, "rate": 1e-5}
    storage.write_json(storage.join(root, "x.json"), value)
    assert storage.read_json(storage.join(root, "x.json")) == value


def case_broken_json_names_the_object(root: str, tmp: Path) -> None:
    storage.write_bytes(storage.join(root, "x.json"), b'{"a": ')
    with pytest.raises(InputError, match=r"x\.json"):
        storage.read_json(storage.join(root, "x.json"))


def case_names_that_look_like_logins(root: str, tmp: Path) -> None:
    url = storage.join(root, "photo.jpg?key=1&token=2")
    storage.write_bytes(url, b"x")
    assert storage.read_bytes(url) == b"x"
    assert storage.list_files(root) == ["photo.jpg?key=1&token=2"]


def case_missing_objects_name_themselves(root: str, tmp: Path) -> None:
    url = storage.join(root, "none.bin")
    fetch = lambda u: storage.fetch(u, tmp / "t")  # noqa: E731
    for verb in (storage.read_bytes, storage.size, storage.read_json, storage.opened, fetch):
        with pytest.raises(FileNotFoundError, match=r"none\.bin"):
            verb(url)
    assert not storage.exists(url)
    storage.delete(url)
    storage.delete_tree(url)
    assert storage.list_files(url) == []
    assert not (tmp / "t").exists()


def case_exists_means_the_very_name(root: str, tmp: Path) -> None:
    storage.write_bytes(storage.join(root, "folder/name.txt"), b"1")
    assert storage.exists(storage.join(root, "folder/name.txt"))
    for other in ("folder", "folder/name", "folder/name.tx", "folder/name.txt.bak"):
        assert not storage.exists(storage.join(root, other))


def case_names_are_listed_relative_and_sorted(root: str, tmp: Path) -> None:
    for name in ("t/b/2", "t/b/10", "t/a", "t/B", "tt/other", "t.other"):
        storage.write_bytes(storage.join(root, name), b"x")
    assert storage.list_files(storage.join(root, "t")) == ["B", "a", "b/10", "b/2"]
    assert storage.list_files(storage.join(root, "t/")) == ["B", "a", "b/10", "b/2"]


def case_a_tree_is_deleted_and_nothing_else(root: str, tmp: Path) -> None:
    for name in ("t/1", "t/2/3", "tt/4"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete(storage.join(root, "t/1"))
    assert storage.list_files(root) == ["t/2/3", "tt/4"]
    storage.delete_tree(storage.join(root, "t"))
    assert storage.list_files(root) == ["tt/4"]


def case_names_of_every_kind(root: str, tmp: Path) -> None:
    names = ["a b.txt", "ünï.txt", "+%&=?#.txt", "100%.txt"]
    for name in names:
        storage.write_bytes(storage.join(root, "n", name), name.encode())
    assert storage.list_files(storage.join(root, "n")) == sorted(names)
    assert all(storage.read_bytes(storage.join(root, "n", name)) == name.encode() for name in names)


def case_an_open_file_stays_whole(root: str, tmp: Path) -> None:
    url, data = storage.join(root, "a/b.bin"), bytes(range(256)) * 1000
    storage.write_bytes(url, data)
    with storage.opened(url) as file:
        storage.delete(url)
        assert file.read(3) == data[:3]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]


def case_folders_are_those_directly_below(root: str, tmp: Path) -> None:
    for name in ("t/b/2", "t/b/10", "t/a/x/y", "t/c", "tt/d/1"):
        storage.write_bytes(storage.join(root, name), b"x")
    assert storage.folders(storage.join(root, "t")) == ["a", "b"]
    assert storage.folders(storage.join(root, "t/")) == ["a", "b"]
    assert [storage.folders(storage.join(root, none)) for none in ("t/c", "none")] == [[], []]


def case_create_happens_once(root: str, tmp: Path) -> None:
    url = storage.join(root, "deep/manifest.json")
    assert storage.create(url, b"first") is True
    assert storage.create(url, b"second") is False
    assert storage.create(url, b"first") is False
    assert storage.read_bytes(url) == b"first"


def case_a_race_has_one_winner(root: str, tmp: Path) -> None:
    barrier = threading.Barrier(MANY)

    def racer(number: int) -> bool:
        barrier.wait()
        return storage.create(storage.join(root, "race.json"), b"same bytes" if number % 2 else b"%d" % number)

    with ThreadPoolExecutor(MANY) as pool:
        won = list(pool.map(racer, range(MANY)))
    assert sum(won) == 1
    winner = won.index(True)
    assert storage.read_bytes(storage.join(root, "race.json")) == (b"same bytes" if winner % 2 else b"%d" % winner)
    assert storage.list_files(root) == ["race.json"]


def case_files_go_and_come(root: str, tmp: Path) -> None:
    source = tmp / "source.bin"
    source.write_bytes(os.urandom(300_000))
    storage.put(source, storage.join(root, "deep/copy.bin"))
    back = storage.fetch(storage.join(root, "deep/copy.bin"), tmp / "new" / "back.bin")
    assert storage.sha256_file(back) == storage.sha256_file(source)
    with pytest.raises(FileNotFoundError, match="absent"):
        storage.put(tmp / "absent", storage.join(root, "x"))


def case_a_probe_leaves_nothing(root: str, tmp: Path) -> None:
    storage.check_writable(root)
    assert storage.list_files(root) == []


CASES: dict[str, Callable[[str, Path], None]] = {n: f for n, f in list(globals().items()) if n.startswith("case_")}


@pytest.mark.parametrize("case", CASES)
def test_verb(case: str, root: str, tmp_path: Path) -> None:
    CASES[case](root, tmp_path)


WRITER = """
import itertools, sys
from cmapkd_core import storage
for n in itertools.count():
    storage.write_bytes(sys.argv[1], bytes([n % 7]) * 3_000_000)
    print(n, flush=True)
"""


def test_killed_writer_leaves_a_whole_object(root: str) -> None:
    url = storage.join(root, "weights.bin")
    for delay in (0.003, 0.017):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = storage.read_bytes(url)
        assert len(data) == 3_000_000
        assert len(set(data)) == 1
        assert storage.list_files(root) == ["weights.bin"]


# ---- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://b", "x", "y"), "s3://b/x/y"),
        (("s3://b/r/", "/x/", "y/z"), "s3://b/r/x/y/z"),
        (("/tmp/r", "x", "", "y"), "/tmp/r/x/y"),
        (("r/", "x"), "r/x"),
        (("/", "x"), "/x"),
        (("r/",), "r"),
    ],
)
def test_join(parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(*parts) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: storage.join("s3://b/r", "../other"),
        lambda: storage.read_bytes("gs://bucket/x"),
        lambda: storage.read_bytes(""),
        lambda: storage.read_bytes("s3:///key"),
        lambda: storage.delete_tree("s3://bucket/"),
        lambda: storage.delete_tree("/"),
    ],
)
def test_places_that_cannot_be(call: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize(
    "url", ["s3://me:hidden@box/x", "http://host/x?token=hidden", "s3://id:a/hidden@box/x?key=1", "/x/s3://me:hidden@b"]
)
def test_a_place_with_a_login_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError, match=r"has a (user and password|login) in its URL") as raised:
        storage.read_bytes(url)
    assert "hidden" not in str(raised.value)


def test_json_that_cannot_be_read_is_not_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(StorageError, match=r"^cannot read .*x\.json: Is a directory; it is a folder"):
        storage.read_json(str(tmp_path / "x.json"))


def test_local_fetch_is_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    assert storage.fetch(str(tmp_path / "a"), tmp_path / "copy") == tmp_path / "a"
    assert not (tmp_path / "copy").exists()


def test_import_stays_cheap() -> None:
    code = "import sys, cmapkd_core.storage; print('boto3' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=REPOSITORY).split() == [
        "False",
        "False",
    ]


# ---- a local folder at fault ----------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from cmapkd_core import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for call in (lambda: storage.write_bytes(sys.argv[1], bytes(3 << 20)),
             lambda: storage.create(sys.argv[1], bytes(3 << 20)),
             lambda: storage.put(Path(sys.argv[2]), sys.argv[1])):
    try:
        call()
    except storage.StorageError as error:
        print(error)
"""


def test_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    source, url = tmp_path / "source", str(tmp_path / "root" / "x")
    source.write_bytes(bytes(3 << 20))
    lines = subprocess.check_output(
        [sys.executable, "-c", LIMITED, url, str(source)], text=True, cwd=REPOSITORY
    ).splitlines()
    assert len(lines) == 3
    assert all(url in line and "free some space" in line for line in lines)
    assert list((tmp_path / "root").iterdir()) == []


def test_root_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="a part of the path is a file"):
        storage.check_writable(str(tmp_path / "file" / "root"))


# ---- S3 at fault ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def refusal(url: str) -> str:
    """The message of check_writable, which has to come soon."""
    begun = time.monotonic()
    with pytest.raises(storage.StorageError) as caught:
        storage.check_writable(url)
    assert time.monotonic() - begun < 60
    assert url in str(caught.value)
    assert "test-secret-key" not in str(caught.value)
    return str(caught.value)


def test_nothing_listens(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message = refusal(s3_root)
    assert f"{endpoint} does not answer" in message
    assert "check AWS_ENDPOINT_URL" in message


def test_server_hangs(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmapkd_core.storage import s3

    monkeypatch.setattr(s3, "BRIEF", s3.Limits(connect=1, read=1, attempts=2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in refusal(s3_root)


def test_endpoint_is_no_url(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    assert "write AWS_ENDPOINT_URL as" in refusal(s3_root)


def test_bucket_does_not_exist(s3_root: str, tmp_path: Path) -> None:
    url = "s3://no-such-bucket-here/root"
    assert "the bucket does not exist" in refusal(url)
    for verb in (
        storage.exists,
        storage.list_files,
        storage.read_bytes,
        storage.size,
        lambda u: storage.fetch(u, tmp_path / "t"),
    ):
        with pytest.raises(storage.StorageError, match="the bucket does not exist"):
            verb(url)


def test_no_credentials(s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "there are no credentials; set AWS_ACCESS_KEY_ID" in refusal(s3_root)


def test_our_own_variables_go_before_aws_s(s3_root: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's are those of somebody else in the same container."""
    from cmapkd_core.storage import s3

    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_SESSION_TOKEN": "theirs",
        "CMAPKD_S3_ENDPOINT_URL": s3_endpoint,
        "CMAPKD_S3_REGION": "eu-west-9",
        "CMAPKD_S3_ACCESS_KEY_ID": "ours",
        "CMAPKD_S3_SECRET_ACCESS_KEY": "test-secret-key",
    }.items():
        monkeypatch.setenv(name, value)
    storage.check_writable(s3_root)
    signed = s3._client().generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    assert signed.startswith(s3_endpoint)
    assert "AWSAccessKeyId=ours" in signed or re.search("Credential=ours.*eu-west-9", signed)
    assert "theirs" not in signed
    monkeypatch.setenv("CMAPKD_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "check CMAPKD_S3_ENDPOINT_URL" in refusal(s3_root)
    monkeypatch.setenv("CMAPKD_S3_ENDPOINT_URL", "minio:9000")
    assert "write CMAPKD_S3_ENDPOINT_URL as" in refusal(s3_root)
    monkeypatch.delenv("CMAPKD_S3_ACCESS_KEY_ID")
    with pytest.raises(InputError, match="set both of CMAPKD_S3_ACCESS_KEY_ID and CMAPKD_S3_SECRET_ACCESS_KEY"):
        storage.exists(s3_root)


def test_wrong_credentials(s3_root: str, s3_endpoint: str) -> None:
    def enforce(after: str) -> None:
        request = urllib.request.Request(
            f"{s3_endpoint}/moto-api/reset-auth", after.encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    enforce("0")
    try:
        assert "the credentials are wrong; correct AWS_ACCESS_KEY_ID" in refusal(s3_root)
    finally:
        enforce("inf")


class FaultProxy(ThreadingHTTPServer):
    """Stands before the S3 server and spoils the next answers: `plan` holds (method, kind), first in first out.

    Kinds: a status such as "503" instead of the server's answer; "lost": the server acts and the answer is
    dropped; "cut": half of the body arrives; "flip": a bit of the request's body arrives changed.
    """

    daemon_threads = True
    codes: ClassVar = {
        "503": "SlowDown",
        "500": "InternalError",
        "409": "ConditionalRequestConflict",
        "403": "AccessDenied",
    }

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Spoiler)
        self.upstream = upstream.removeprefix("http://")
        self.plan: list[tuple[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up after a planned fault is no news."""

    def next_fault(self, method: str) -> str:
        return self.plan.pop(0)[1] if self.plan and self.plan[0][0] == method else ""


class _Spoiler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"  # else clients that send "Expect: 100-continue" wait for a second

    def answer(self) -> None:
        fault = self.server.next_fault(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "flip":
            body = body[:-1] + bytes([body[-1] ^ 16])
        if fault in FaultProxy.codes:
            error = f"<Error><Code>{FaultProxy.codes[fault]}</Code><Message>planned</Message></Error>".encode()
            self.send(int(fault), {"Content-Length": str(len(error))}, error)
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        if fault != "lost":
            self.send(response.status, dict(response.headers), data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection = True

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing to print for a planned fault."""


for _method in ("GET", "PUT", "HEAD", "DELETE", "POST"):
    setattr(_Spoiler, f"do_{_method}", lambda self: self.answer())


@pytest.fixture
def proxy(s3_root: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.mark.parametrize("kind", ["503", "500", "lost", "409"])
def test_create_knows_its_own_object_after_a_fault(kind: str, s3_root: str, proxy: FaultProxy) -> None:
    proxy.plan = [("PUT", kind)]
    assert storage.create(storage.join(s3_root, "manifest.json"), b"ours") is True
    assert storage.create(storage.join(s3_root, "manifest.json"), b"ours") is False
    assert proxy.plan == []


VERBS: dict[str, Callable[[str, bytes, Path], object]] = {
    "write_bytes": lambda url, data, file: storage.write_bytes(url, data),
    "create": lambda url, data, file: storage.create(url, data),
    "put": lambda url, data, file: (file.write_bytes(data), storage.put(file, url)),
}


@pytest.mark.parametrize("etag", ["MD5", "another"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_body_damaged_on_its_way_is_sent_again(
    verb: str, etag: str, s3_root: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    class Other(_Spoiler):
        def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            super().send(status, headers | {"ETag": '"0-0"'}, body)

    if etag == "another":  # as with a KMS: then what was written is read back
        proxy.RequestHandlerClass = Other
    url, data = storage.join(s3_root, "x.bin"), os.urandom(10_000)
    for faults in (0, 1, 2):
        proxy.plan = [("PUT", "flip")] * faults
        VERBS[verb](url + str(faults), data, tmp_path / "file")
        assert proxy.plan == []
        assert storage.read_bytes(url + str(faults)) == data


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_that_never_keeps_what_is_sent_is_named(
    verb: str, s3_root: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.plan = [("PUT", "flip")] * (sent.TIMES + 1)  # `create` asks once for itself
    with pytest.raises(storage.StorageError, match=r"x\.bin holds other bytes than were sent, 6 times in a row: look"):
        VERBS[verb](storage.join(s3_root, "x.bin"), b"data", tmp_path / "file")


def test_a_damaged_part_of_a_large_file_is_noticed(
    s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CMAPKD_S3_PART_MIB", "5")
    (source := tmp_path / "source").write_bytes(os.urandom((10 << 20) + 1))
    proxy.plan = [("POST", ""), ("PUT", "flip")]
    storage.put(source, url := storage.join(s3_root, "large"))
    assert proxy.plan == []
    assert storage.read_bytes(url) == source.read_bytes()


@pytest.mark.parametrize("kind", ["503", "lost", "cut"])
def test_reads_survive_a_fault(kind: str, s3_root: str, proxy: FaultProxy, tmp_path: Path) -> None:
    url, data = storage.join(s3_root, "x.bin"), os.urandom(100_000)
    storage.write_bytes(url, data)
    proxy.plan = [("GET", kind), ("GET", kind)]
    assert storage.read_bytes(url) == data
    proxy.plan = [("HEAD", "503"), ("GET", kind)]
    assert storage.fetch(url, tmp_path / "x.bin").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_a_write_that_never_succeeds_leaves_the_old_object(s3_root: str, proxy: FaultProxy) -> None:
    url = storage.join(s3_root, "x.bin")
    storage.write_bytes(url, b"old")
    proxy.plan = [("PUT", "403")]
    with pytest.raises(storage.StorageError, match="access is denied; these credentials need s3:GetObject"):
        storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"old"


def test_an_interrupted_fetch_leaves_no_target(s3_root: str, proxy: FaultProxy, tmp_path: Path) -> None:
    url = storage.join(s3_root, "x.bin")
    storage.write_bytes(url, os.urandom(100_000))
    proxy.plan = [("HEAD", "403")]
    with pytest.raises(storage.StorageError, match=r"x\.bin"):
        storage.fetch(url, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []


def test_large_files_go_in_parts(s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    from cmapkd_core.storage import s3

    monkeypatch.setattr(s3, "_TRANSFER", TransferConfig(multipart_threshold=6 << 20, multipart_chunksize=5 << 20))
    source = tmp_path / "source"
    source.write_bytes(os.urandom(11 << 20))
    storage.put(source, storage.join(s3_root, "large"))
    assert storage.sha256_file(storage.fetch(storage.join(s3_root, "large"), tmp_path / "back")) == storage.sha256_file(
        source
    )


def test_sixteen_readers_keep_their_connections(
    s3_root: str, s3_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write_bytes(url := storage.join(s3_root, "x.bin"), b"x" * 1000)
    together = threading.Barrier(16, timeout=30)

    def read(number: int) -> bytes:
        together.wait()
        return storage.read_bytes(url)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(read, range(64))) == {b"x" * 1000}
    assert [record.message for record in caplog.records if "pool is full" in record.message] == []


def test_a_server_without_conditional_writes_is_refused(s3_root: str, proxy: FaultProxy) -> None:
    class Ignorant(_Spoiler):
        def answer(self) -> None:
            del self.headers["If-None-Match"]
            super().answer()

    proxy.RequestHandlerClass = Ignorant
    assert "does not keep to exclusive creation" in refusal(s3_root)


@pytest.mark.parametrize(("given", "found"), [("", ".cache"), ("relative", ".cache"), ("/elsewhere", "/elsewhere")])
def test_the_users_cache_is_below_xdgs_folder(
    given: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert user_cache("search") == tmp_path / found / "cmapkd" / "search"


def test_threads_that_ask_s3_at_once_share_one_client(s3_root: str) -> None:
    s3._new_client.cache_clear()
    ready = threading.Barrier(8)

    def ask(_: int) -> int:
        ready.wait()
        return id(s3._client())

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(8)))) == 1
    assert s3._new_client.cache_info().misses == 1
