"""6 steps = 3 + SIGTERM + 3, bit for bit: every method, every training stage."""

import json
import signal

import pytest

from cmapkd_core import storage
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import Interrupted
from cmapkd_core.recipes import BASELINES, BUDGETS, ROWS, STUDENTS, WEIGHTS
from cmapkd_core.request import Request
from cmapkd_core.stages import teacher
from cmapkd_core.stages.artifact import Artifact, find

# Six steps in one epoch; no checkpoint but SIGTERM's; utilities and shares measured on both sides of the cut.
SIX = "optim.batch=14 runtime.checkpoint_every=100 runtime.shares_every=3 selector.every=2"


def interrupted(run, capsys, says: str) -> str:
    """Run what gets SIGTERM, then the same again; what the second run printed must contain `says`."""
    with pytest.raises(Interrupted, match="asked to stop; saved at"):
        run()
    capsys.readouterr()
    url = run()
    assert says in capsys.readouterr().out
    return url


def history(url: str) -> list:
    points = json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]
    return [{k: p[k] for k in ("step", "phase", "epoch", "terms", "weighted", "lr", "shares")} for p in points]


# Rows of their own states: every method, and every kind of selector. The other ablations change weights and levels of
# the full method alone; `-m slow` resumes them too.
ONE_MAP = ("one_map", "clip_kd_one_map", "clip_rd_one_map")  # one module under two names
STATES = {*BASELINES, *ONE_MAP, "none", "no_alsn", "random_alsn", "shuffled_alsn", "seed_alsn", "oracle_alsn"}
# Of several teachers, which are artifacts of their own (test_further_teachers.py); that which is `none` here.
OTHERS = ("two_teachers_one_map", "two_maps")
# The states that differ most; `make test-heavy` resumes the rest of them.
SOME = {"none", "one_map", "oracle_alsn", "finetune", "fitnet", "promptkd", "clip_rd"}


def marked(row: str) -> object:
    marks = [] if row in SOME else [pytest.mark.heavy if row in STATES else pytest.mark.slow]
    return pytest.param(row, marks=marks)


@pytest.mark.parametrize("row", [marked(row) for row in ROWS if row not in (*WEIGHTS, *STUDENTS, *BUDGETS, *OTHERS)])
def test_joint_resumes_bit_for_bit(tmp_path, train_tiny, terminate_after, digests, capsys, row):
    fields = f"{SIX} method.weights.fd=1" if row == "one_map" else SIX  # or nothing reads the map
    straight = train_tiny(tmp_path / "straight", "joint", row, fields)
    terminate_after(3)
    cut = interrupted(
        lambda: train_tiny(tmp_path / "cut", "joint", row, fields), capsys, "from the checkpoint at phase fine, step 3"
    )
    assert digests(cut) == digests(straight)
    assert history(cut) == history(straight)
    assert len(history(cut)) == 6
    assert not storage.list_files(storage.join(cut, "work"))


@pytest.mark.parametrize(("stop", "says"), [(3, "phase coarse, step 3"), (4, "phase medium, step 1")])
def test_warmup_resumes_over_its_phases(tmp_path, train_tiny, terminate_after, digests, capsys, stop, says):
    overrides = "optim.batch=29 runtime.checkpoint_every=100"
    straight = train_tiny(tmp_path / "straight", "warmup", "none", overrides)
    terminate_after(stop)
    cut = interrupted(lambda: train_tiny(tmp_path / "cut", "warmup", "none", overrides), capsys, says)
    assert "sample_stats.parquet" in digests(cut)
    assert digests(cut) == digests(straight)
    assert history(cut) == history(straight)


@pytest.mark.parametrize("row", ["fitnet", "promptkd", "llava_kd"])
def test_warmup_of_methods_with_phases_or_modules_of_their_own_resumes(
    tmp_path, train_tiny, terminate_after, digests, capsys, row
):
    overrides = "optim.batch=29 runtime.checkpoint_every=100"
    straight = train_tiny(tmp_path / "straight", "warmup", row, overrides)
    terminate_after(4)
    says = "phase medium, step 1"
    cut = interrupted(lambda: train_tiny(tmp_path / "cut", "warmup", row, overrides), capsys, says)
    assert digests(cut) == digests(straight)
    assert history(cut) == history(straight)


@pytest.mark.parametrize(("first", "second"), [("no_alsn", "none"), ("none", "no_alsn")])
def test_rows_that_share_the_warmup_go_on_from_each_others_checkpoint(
    tmp_path, train_tiny, terminate_after, digests, first, second
):
    straight = train_tiny(tmp_path / "straight", "warmup", second, "optim.batch=29")
    terminate_after(3)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "cut", "warmup", first, "optim.batch=29")
    resumed = train_tiny(tmp_path / "cut", "warmup", second, "optim.batch=29")
    assert digests(resumed)["model/model.safetensors"] == digests(straight)["model/model.safetensors"]


def test_alsn_resumes_from_the_table(tmp_path, train_tiny, tiny_warmup, terminate_after, digests, capsys):
    straight = train_tiny(tmp_path / "straight", "alsn", init=tiny_warmup)
    terminate_after(5)
    cut = interrupted(lambda: train_tiny(tmp_path / "cut", "alsn", init=tiny_warmup), capsys, "phase alsn, step 5")
    assert digests(cut) == digests(straight)
    assert history(cut) == history(straight)


@pytest.mark.parametrize(("stop", "says"), [(2, "phase space, step 2"), (5, "phase pyramid, step 2")])
def test_the_teachers_fit_resumes(tmp_path, tiny_shards, terminate_after, digests, capsys, stop, says):
    overrides = (
        "teacher_fit.batch=29 teacher_fit.space.epochs=1 teacher_fit.space.lr.heads=1e-3 teacher_fit.dropout=0.3 "
        "teacher_fit.pyramid.epochs=2 runtime.checkpoint_every=3"
    )

    def run(name: str) -> str:
        return teacher.run(Request("tiny", str(tmp_path / name), overrides=overrides), shards=tiny_shards)

    straight = run("straight")
    steps = [p["phase"] for p in history(straight)].count("space")
    terminate_after(stop if stop < 3 else steps + 2)
    cut = interrupted(lambda: run("cut"), capsys, says)
    assert digests(cut) == digests(straight)
    assert history(cut) == history(straight)


def test_an_interrupted_stage_has_no_artifact(tmp_path, train_tiny, terminate_after):
    terminate_after(3)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path, "joint", "finetune", SIX)
    (work,) = (tmp_path / "joint").glob("*/work")
    assert find(str(work.parent)) is None


def test_changed_inputs_start_from_the_beginning(tmp_path, train_tiny, terminate_after, digests, caplog):
    """The checkpoint of a run from other inputs lies in the same workdir and is not used."""
    terminate_after(3)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "a", "joint", "finetune", SIX)
    terminate_after(0)
    init = train_tiny(tmp_path / "warm", "warmup", "finetune", SIX)
    changed = train_tiny(tmp_path / "a", "joint", "finetune", SIX, init=init)
    assert "made from other inputs: not used" in caplog.text
    assert digests(changed) == digests(train_tiny(tmp_path / "b", "joint", "finetune", SIX, init=init))


def test_a_stop_in_the_last_moment_is_no_artifact_and_costs_no_step(tmp_path, train_tiny, monkeypatch, capsys):
    """SIGTERM after the loop has looked for the last time: everything is saved already."""
    original = StopRequest.release

    def late(self: StopRequest) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "release", late)
        with pytest.raises(Interrupted, match="after its last step"):
            train_tiny(tmp_path, "joint", "finetune", SIX)
    url = train_tiny(tmp_path, "joint", "finetune", SIX)
    assert "from the checkpoint at phase fine, step 6" in capsys.readouterr().out
    assert len(history(url)) == 6


def test_sigterm_belongs_to_the_process_again_after_training(tmp_path, train_tiny):
    before = signal.getsignal(signal.SIGTERM)
    train_tiny(tmp_path, "joint", "finetune", SIX)
    assert signal.getsignal(signal.SIGTERM) is before
