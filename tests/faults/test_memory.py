"""What hostile input may cost, as the system counts it: the peak of a process that does nothing else."""

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

MIB = 2**20
START = """
import struct, zlib
from cmapkd_core.config import DataConfig
from cmapkd_core.data.inspection import Inspected, inspected
from cmapkd_core.data.rows import Row
from cmapkd_core.data.prepare_resume import SavedShards
from cmapkd_core.data.sources import open_rows

def held(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

before = held("VmRSS")
"""
# A PNG with alpha, 16 million pixels in 70 KB, for eight workers at once: 64 MB as decoded, as much as composed.
PICTURES = """
side, line = 4000, zlib.compressobj()
pixels = b"".join([*(line.compress(bytes(1 + 4 * 4000)) for _ in range(side)), line.flush()])
chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
parts = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
data = b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunk(*part) for part in parts)
rows = [Row(f"k{i}", data, ("a dog",)) for i in range(8)]
assert all(isinstance(row, Inspected) for row in inspected(rows, DataConfig(), 8, SavedShards()))
"""
# 30 MB of captions: what is kept of a line, and the table of keys.
CAPTIONS = """
from pathlib import Path
line = '{"key": "k%d", "file": "%d.jpg", "caption": "' + "a dog " * 60 + '"}\\n'
with open("captions.jsonl", "w") as file:
    file.writelines(line % (i, i) for i in range(75_000))
assert sum(1 for _ in open_rows(DataConfig("folder", "."))) == 75_000
"""


FAULTS = {
    "8 PNG of 16 Mpx with alpha, eight workers": (PICTURES, 220),
    "30 MB of captions": (CAPTIONS, 85),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_memory_is_bounded(fault: str, tally: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    work, most = FAULTS[fault]
    code = START + work + "print(held('VmHWM') - before)"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    folder = tmp_path_factory.mktemp("memory")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    took = int(done.stdout) / MIB
    tally(fault, f"at most {most} MiB beside what was held", 1, int(took < most), f"{took:.0f} MiB")
