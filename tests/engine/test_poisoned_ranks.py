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
def test_both_skip_the_same_updates(pair, kind):
    first, second = (report[f"gradient-{kind}"] for report in pair)
    assert first["rows"] == second["rows"]
    assert [row["phase_step"] for row in first["rows"]] == [7, 8]
    assert first["stopped"] == second["stopped"] == ""
    assert first["weights"] == second["weights"]


# Wrong weights stay wrong, so that every update from there on is skipped.
@pytest.mark.parametrize(
    ("fault", "says"), [("loss", "step 8: 2 updates were skipped"), ("weights", "step 10: 4 updates were skipped")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_both_stop_at_the_same_step_and_go_on_from_the_good_checkpoint(pair, fault, says, kind):
    first, second = (report[f"{fault}-{kind}"] for report in pair)
    assert first["stopped"] == second["stopped"]
    assert says in first["stopped"]
    assert "the last good checkpoint, phase phase0, step 5. If" in first["stopped"]
    assert first["resumed"] == second["resumed"] == ["toy: going on from the checkpoint at phase phase0, step 5\n"]
    assert first["weights"] == second["weights"] == pair[0]["none-nan"]["weights"]


def test_both_go_back_to_one_checkpoint_and_on_with_another_order(pair):
    first, second = (report["back"] for report in pair)
    assert first["rolled"] == second["rolled"] == 1
    assert first["skipped"] == second["skipped"] == []
    assert first["weights"] == second["weights"]
    for said in (first["said"], second["said"]):
        assert "toy: going on from the checkpoint at phase phase0, step 6\n" in said
