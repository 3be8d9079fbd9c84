"""What other ranks see of one that fails, or that is busy for long."""

from pathlib import Path

SCRIPT = Path(__file__).with_name("failing_ranks.py")


def test_a_rank_that_fails_is_gone_at_once_and_says_why(start_ranks):
    waiting, failing = start_ranks(SCRIPT, "fails")
    said, _ = failing.communicate(timeout=120)
    waiting.kill()
    assert failing.returncode == 1
    assert "RuntimeError: no memory left on rank 1" in said


def test_ranks_wait_for_the_first_one_longer_than_for_a_gradient(start_ranks):
    processes = start_ranks(SCRIPT, "waits")
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
