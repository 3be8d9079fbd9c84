"""What other ranks see of one that fails, or that is busy for long."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def ranks() -> Iterator[Callable[[str], list[subprocess.Popen[str]]]]:
    """`ranks(mode)`: two processes of failing_ranks.py, which end with the test."""
    started = []

    def start(mode: str) -> list[subprocess.Popen[str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("failing_ranks.py")), mode]
        for rank in ("0", "1"):
            env = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_rank_that_fails_is_gone_at_once_and_says_why(ranks):
    _, failing = ranks("fails")
    said, _ = failing.communicate(timeout=120)
    assert failing.returncode == 1
    assert "RuntimeError: no memory left on rank 1" in said


def test_ranks_wait_for_the_first_one_longer_than_for_a_gradient(ranks):
    processes = ranks("waits")
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
