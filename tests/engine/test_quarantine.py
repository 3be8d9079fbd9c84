"""The bound on corrupt pairs holds for a stage as a whole, however often it was started."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.request import Request
from cmapkd_core.stages import train
from cmapkd_core.stages.artifact import Artifact


@pytest.fixture
def trained(tmp_path: Path, damaged_shards: Callable[[float], str]) -> Callable[..., str]:
    """`trained(bound)`: six steps of finetuning on data of which six of 87 training pairs are corrupt."""

    def run(bound: float, every: int = 100) -> str:
        overrides = f"optim.batch=14 runtime.checkpoint_every={every} data.quarantine_bound={bound}"
        request = Request("tiny", str(tmp_path), ablation="finetune", overrides=overrides)
        return train.run(request, stage="joint", shards=damaged_shards(bound), teacher="")

    return run


def corrupt(url: str) -> list[str]:
    lines = Artifact.open(url).fetch("quarantine.jsonl").read_text().splitlines()
    return [json.loads(line)["key"] for line in lines]


def test_pairs_within_the_bound_are_listed(trained):
    assert 4 < len(corrupt(trained(0.07))) <= 6


def test_pairs_of_an_earlier_attempt_count_against_the_bound(trained, terminate_after):
    """Four of 87 may be corrupt: the first four steps meet two, and the last two steps four."""
    terminate_after(4)
    with pytest.raises(Interrupted):
        trained(0.05)
    with pytest.raises(InputError, match=r"6 of 87 training samples are corrupt, more than data\.quaran"):
        trained(0.05)


def test_a_refused_stage_is_refused_again_from_its_checkpoint(trained, capsys):
    """The pairs above the bound come in the last step, after which there is no batch."""
    for _ in range(2):
        with pytest.raises(
            InputError, match="6 of 87 training samples are corrupt(.|\n)*again: .*submit.* --only prepare"
        ):
            trained(0.05, every=1)
    assert "going on from the checkpoint" in capsys.readouterr().out
