"""Workers and signals."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from cmapkd_core.data.feed import Feed, Items, room
from cmapkd_core.errors import InputError


def test_sigterm_to_the_whole_group_stops_between_two_items():
    """As torchrun passes it on: to the rank and to all processes of its group."""
    command = [sys.executable, str(Path(__file__).with_name("own_group.py"))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "0\n"
        os.killpg(process.pid, signal.SIGTERM)
        said = process.stdout.read()
    assert process.returncode == 143, said
    assert said.endswith("asked to stop\n")
    assert "killed by signal" not in said


class Bytes(Items[torch.Tensor]):
    def make(self, number: int) -> torch.Tensor:
        return room(2).fill_(number)


def test_the_longest_temporary_folder_that_workers_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a longer one what they make was lost, and the rank waited for ever."""
    short = Path(tempfile.mkdtemp(prefix="c"))
    longest = short / ("x" * (75 - len(str(short)) - 1))
    longest.mkdir()
    (tmp_path / ("y" * 90)).mkdir()
    # multiprocessing keeps its folder of sockets for good, so a process of its own asks for one.
    code = (
        "import test_feed, torch; from cmapkd_core.data.feed import Feed\n"
        "print(torch.stack(list(Feed(test_feed.Bytes(), 1).items(3, 6))).tolist())"
    )
    env = os.environ | {"TMPDIR": str(longest), "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    told = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout == "[[3, 3], [4, 4], [5, 5]]\n", told.stderr
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("y" * 90)))
    with pytest.raises(
        InputError, match=r"it may have 75: .*y; give this process a TMPDIR with a shorter one, or --set"
    ):
        Feed(Bytes(), 1)
    assert next(iter(Feed(Bytes(), 0).items(0, 1))).tolist() == [0, 0]
