"""The faults that other test files make in full with every change, as rows of the same table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    "NaN, Inf, a spike of 100 x in loss, gradient, weights, on one rank or two": (
        "engine/test_watch.py",
        "engine/test_poisoned_ranks.py",
        "stages/test_poison.py",
    ),
    "checkpoints written behind training; damaged ones": ("engine/test_saving.py", "engine/test_checkpoint.py"),
    "flipped and cut shards and pictures": ("data/test_shards.py", "data/test_images.py"),
    "hostile rows of every source": ("data/test_fuzz_sources.py", "data/test_texts.py", "test_markup.py"),
    "hostile weights": ("models/test_convert_weights.py", "models/test_build.py"),
    "MLflow away, by stage, with delivery": ("stages/test_owed.py", "stages/test_tracked.py"),
    "full disk, denied, expired, lost server": ("stages/test_exits.py", "test_storage_errors.py"),
    "another recipe's or a damaged artifact": (
        "stages/test_train_stages.py",
        "stages/test_teacher_cache.py",
        "stages/test_commit.py",
        "stages/test_again.py",
    ),
    "a canary in logins": ("pipelines/test_secrets.py",),
    "every compiled pod": ("pipelines/test_pods.py", "pipelines/test_k8s.py"),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_they_hold(fault: str, count: Any, tally: Any) -> None:
    """In a process of its own: what these files load and start ends with them."""
    assert not [name for name in ELSEWHERE[fault] if not (TESTS / name).is_file()]
    if not count(0, 1):
        pytest.skip("with --faults all; they are run anyhow")
    files = [str(TESTS / name) for name in ELSEWHERE[fault]]
    done = subprocess.run([sys.executable, "-m", "pytest", *files], capture_output=True, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1]
    passed = int(found[1]) if (found := re.search(r"(\d+) passed", done.stdout)) else 0
    failed = sum(int(n) for n in re.findall(r"(\d+) (?:failed|error)", summary))
    assert done.returncode in (0, 1), done.stdout
    tally(fault, "their tests pass", passed + failed, passed, ", ".join(ELSEWHERE[fault]))
