"""Workers and signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path


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
