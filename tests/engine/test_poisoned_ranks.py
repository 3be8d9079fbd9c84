"""NaN, Inf and spikes on one of two ranks: both take the same decision at the same step, and end with equal weights."""

import json
from pathlib import Path

import pytest

KINDS = ("nan", "inf", "spike")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, start_ranks) -> list[dict]:
    """What each of the two processes reports of each run."""
    root = tmp_path_factory.mktemp("poisoned")
    processes = start_ranks(Path(__file__).with_name("poisoned_ranks.py"), str(root))
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["gradient", "loss"])
def test_both_skip_the_same_updates(pair, fault, kind):
    first, second = (report[f"{fault}-{kind}-5"] for report in pair)
    assert first["rows"] == second["rows"]
    assert [row["phase_step"] for row in first["rows"]] == [14, 15]
    assert first["stopped"] == second["stopped"] == ""
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["gradient", "loss"])
def test_both_stop_at_the_same_step_and_go_on_from_the_good_checkpoint(pair, fault, kind):
    first, second = (report[f"{fault}-{kind}-1"] for report in pair)
    assert first["stopped"] == second["stopped"]
    assert (
        "step 15: 2 updates were skipped, more than optim.max_skipped=1 (steps phase0 14, phase0 15)"
        in (first["stopped"])
    )
    assert "the last good checkpoint, phase phase0, step 10" in first["stopped"]
    assert first["resumed"] == second["resumed"] == ["toy: going on from the checkpoint at phase phase0, step 10\n"]
    assert first["weights"] == second["weights"] == pair[0]["none-nan-1"]["weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_wrong_on_one_rank_stop_both(pair, kind):
    """They stay wrong, so every update from there on is skipped; the retry loads good ones on both."""
    first, second = (report[f"weights-{kind}-3"] for report in pair)
    assert first["stopped"] == second["stopped"]
    assert "step 17: 4 updates were skipped, more than optim.max_skipped=3" in first["stopped"]
    assert "the last good checkpoint, phase phase0, step 10" in first["stopped"]
    assert first["weights"] == second["weights"] == pair[0]["none-nan-1"]["weights"]
