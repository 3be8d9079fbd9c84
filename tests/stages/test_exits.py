"""Every kind of end has its exit code, found by real faults: a stage's, its rank's, the local run's, the document's."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmapkd_core import parallel, storage
from cmapkd_core.errors import Diverged, InputError, OutsideError
from cmapkd_core.exits import ENDS, EXIT_FILE, end_of, lasts, left
from cmapkd_core.models.weights import read_tensors
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.tracking.journal import Journal

DOCUMENT = Path(__file__).parents[2] / "docs/reference/exit-codes.md"
OUT_OF_ROOM = "/dev/full"


def bad_input(context: Context) -> None:
    raise InputError("seed is no number: give one")


def fault_of_the_program(context: Context) -> None:
    torch.zeros(2) @ torch.zeros(3)


def diverged(context: Context) -> None:
    raise Diverged("NaN at step 3: lower optim.rate")


def damaged_weights(context: Context) -> None:
    (context.scratch / "w.safetensors").write_bytes(b"torn")
    read_tensors(context.scratch / "w.safetensors")


def damaged_artifact(context: Context) -> None:
    request = Request("tiny", str(context.scratch))
    url = execute(request, "a", url=str(context.scratch / "a/0"), fields={}, inputs={}, body=lambda context: {})
    (path,) = (context.scratch / "a/0").glob("out-*/journal.jsonl")
    path.write_bytes(b"x")
    Artifact.open(url).fetch("journal.jsonl")


def full_file(context: Context) -> None:
    with open(OUT_OF_ROOM, "w") as file:
        file.write("x" * 100_000)


def full_journal(context: Context) -> None:
    (context.scratch / "journal").symlink_to(OUT_OF_ROOM)
    journal = Journal(context.scratch / "other")
    journal._file = open(OUT_OF_ROOM, "w")  # noqa: SIM115
    journal.append({"loss": 1.0}, 0)


def full_tensors(context: Context) -> None:
    """A library that keeps no errno, at a bound that the system sets on files."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        save_file({"x": torch.zeros(100_000)}, context.scratch / "t.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def denied(context: Context) -> None:
    me, closed = os.geteuid(), context.scratch / "closed"
    closed.mkdir(mode=0o000)
    if me == 0:
        os.seteuid(65534)
    try:
        (closed / "file").read_bytes()
    finally:
        os.seteuid(me)


def denied_storage(context: Context) -> None:
    try:
        denied(context)
    except OSError as error:
        raise storage.StorageError("cannot read that place") from error


def refused_connection(context: Context) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    socket.create_connection(("127.0.0.1", port))


def lost_hub(context: Context) -> None:
    raise OutsideError("the hub does not answer")


FAULTS: tuple[tuple[Callable[[Context], None], str], ...] = (
    (bad_input, "input"),
    (diverged, "diverged"),
    (damaged_weights, "damaged"),
    (damaged_artifact, "damaged"),
    (full_file, "full"),
    (full_journal, "full"),
    (full_tensors, "full"),
    (denied, "denied"),
    (denied_storage, "denied"),
    (refused_connection, "server"),
    (lost_hub, "server"),
)


def start(body: Callable[[Context], None], root: str) -> int:
    def run(request: Request) -> str:
        """A stage."""
        url = storage.join(request.root, "thing", "0")
        return execute(request, "thing", url=url, fields={}, inputs={}, body=lambda context: body(context) or {})

    return main(run, ["--recipe", "tiny", "--root", root])


@pytest.mark.parametrize(("body", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_stage_ends_with_the_code_of_its_fault(
    body: Callable[[Context], None], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(body, str(tmp_path)) == ENDS[name].code
    said = capsys.readouterr().err
    if name == "full":
        scratch = os.environ.get("TMPDIR", "/tmp")
        assert re.search(
            rf"error: .*scratch files lie in {scratch}\S*, where \d+ MiB of \d+ MiB are free.*TMPDIR", said
        )
        assert "Traceback" not in said


def test_the_place_of_a_bad_byte_is_no_name_of_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """UnicodeDecodeError has an attribute `end` of its own."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "captions.jsonl").write_bytes(b'{"key": "a", "file": "a.png", "caption": "caf\xe9"}\n')
    argv = ["--recipe", "tiny", "--root", str(tmp_path / "root"), "--data", f"folder:{data}"]
    assert main(prepare.run, argv) == ENDS["input"].code
    assert "captions.jsonl is not UTF-8" in capsys.readouterr().err
    assert end_of(UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "cut off")) == ENDS["other"]


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="dot product|size"):
        start(fault_of_the_program, str(tmp_path))


def test_what_lasts_is_not_tried_again_and_nothing_of_the_outside_is() -> None:
    assert [name for name, end in ENDS.items() if end.lasts] == ["input", "damaged"]
    assert lasts(InputError("no such model"))
    assert not lasts(OutsideError("the hub is away"))
    behind = InputError("the folder cannot be read")
    behind.__cause__ = PermissionError(13, "denied")
    assert not lasts(behind)  # a right may be given meanwhile


def test_the_document_shows_this_very_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Of a stage")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(str(end.code), end.meaning) for end in ENDS.values()]


def test_the_code_of_the_first_rank_that_knows_more_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXIT_FILE, str(tmp_path / "exit"))
    for code in (ENDS["other"].code, ENDS["full"].code, ENDS["server"].code):  # a lost connection, the cause, another
        assert parallel.leave_exit(code) == code
    assert left(tmp_path / "exit", 1) == ENDS["full"].code
    assert left(tmp_path / "exit", 143) == 143  # of a launcher that was stopped
    assert left(tmp_path / "none", 1) == 1
