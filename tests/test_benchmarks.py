"""Every benchmark of `make bench` runs to its end at its least size: its own checks hold, and it prints its table.

Nothing is said here about time. What would make these fail: a benchmark that takes hold of a name that has moved.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from forked import Forked

ROOT = Path(__file__).parents[1]
# Its command line at the least size, and words of its table's last line.
LEAST = {
    "step": ("--batch 2", "statistics"),
    "pyramid": ("--batch 1 --channels 32 --width 16 --rounds 1", "GFLOP a picture"),
    "small_maps": ("--batch 2 --rounds 1", "ms at 2 pictures"),
    "pairs": ("--batch 64 --large --rounds 1", "its products alone"),
    "loader": ("--images 64 --rounds 1", "ours, repack=256"),
    "prepare": ("--images 20 --threads 0 --rounds 1", "| 0 |"),
    "partitions": ("--images 40 --parts 2 --rounds 1 --rows 1000", "CPU a million rows"),
    "retrieval": ("--images 50", "i2t/R@1"),
    "scale": ("--rows 20480", "leakage gate"),
    "throttled": ("--shards 8 --images 8 --kilobytes 4 --block 2 --batch 4 --step 0", "fetched a block ahead"),
    "saving": ("--megabytes 4 --rounds 1 --steps 2", "copy in memory"),
    "stored": ("--pairs 8", "vector, 2 "),
    "filling": ("--pictures 60 --part 16 --rounds 1", "seconds at 5 MB/s"),
}
REAL = {  # of real sizes whatever is asked
    "achieved": ("--batch 1 --rounds 1", "ours, joint, stored"),
    "memory": ("--batch 2 --parts 2", "2 parts, run again"),
}


def test_all_of_make_bench_are_here() -> None:
    named = re.search(r"^BENCH \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert {*named[1].split()} == {*LEAST, *REAL}


@pytest.mark.heavy
@pytest.mark.parametrize("name", LEAST)
def test_it_runs(name: str) -> None:
    check(name, *LEAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_it_runs_at_real_sizes(name: str) -> None:
    check(name, *REAL[name])


@pytest.fixture
def warmed_up(tiny_shards: str, tiny_teacher: str, tiny_warmup: str, tmp_path: Path) -> Path:
    """A root with recipe tiny up to its warm-up."""
    for url in map(Path, (tiny_shards, tiny_teacher, tiny_warmup)):
        (tmp_path / url.parent.name).symlink_to(url.parent)
    return tmp_path


@pytest.mark.heavy
def test_utilities_of_a_finished_warm_up(warmed_up: Path) -> None:
    """The selector is not trained yet, so it is about as far from what is measured as equal weights are."""
    last = run("utilities", f"--root {warmed_up} --recipe tiny --stage warmup")[-1]
    equal, selector, other = map(float, re.findall(r"\d+\.\d+", last))
    assert 0.7 * equal < selector < 1.3 * equal
    assert other > 0


@pytest.mark.heavy
def test_a_selector_learns_the_pairs_that_it_has(warmed_up: Path) -> None:
    """Better than weights that know nothing; what it knows of others is what the benchmark is there to say."""
    lines = run("selector", f"--root {warmed_up} --recipe tiny --overrides schedule.alsn.lr.selector=0.01")
    equal, _, *learned = ([float(number) for number in re.findall(r"\d\.\d{3}", line)] for line in lines[-5:])
    assert [len(numbers) for numbers in learned] == [3, 3, 3]
    assert learned[0][2] < equal[0]


def check(name: str, words: str, last: str) -> None:
    """It ends well, and so does its table."""
    assert last in run(name, words)[-1]


def run(name: str, words: str) -> list[str]:
    """The lines of a benchmark that ends well."""
    with closing(Forked(str(ROOT / "benchmarks" / f"{name}.py"), words.split(), {})) as process:
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
        return str(text).strip().splitlines()
