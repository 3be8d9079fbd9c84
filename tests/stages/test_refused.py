"""Bad input in a chain of retries: found once, said again at once; what may pass is tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from manifests import TORN

from cmapkd_core import storage
from cmapkd_core.commands import submit
from cmapkd_core.errors import InputError
from cmapkd_core.models.build import _fetched
from cmapkd_core.places import place
from cmapkd_core.request import Request
from cmapkd_core.stages import refused
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Context, execute

COUNT = "KFP_RETRY_INDEX"
BAD = "data.source=folder: no picture in /data: put some there"


class Stage:
    """`Stage(root)(attempt)` runs it as that attempt of a chain; `.ran` counts its bodies, which raise `.error`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.patch, self.ran = str(root), monkeypatch, 0
        self.error: Exception | None = InputError(BAD)
        self.inputs: dict[str, str] = {}

    def body(self, context: Context) -> dict[str, float]:
        self.ran += 1
        if self.error:
            raise self.error
        return {"x": 1.0}

    def __call__(self, attempt: int | None, *, run: str = "a", **asked: str) -> str:
        if attempt is None:
            self.patch.delenv(COUNT, raising=False)
        else:
            self.patch.setenv(COUNT, str(attempt))
        request = Request("tiny", self.root, run=run, **asked)
        url = place(self.root, "thing", {"seed": 0})
        return execute(request, "thing", url=url, fields={"seed": 0}, inputs=self.inputs, body=self.body)

    @property
    def record(self) -> Path:
        return Path(place(self.root, "thing", {"seed": 0})) / "work" / refused.RECORD


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def fails(call: Callable[[], str]) -> str:
    with pytest.raises((InputError, OSError, RuntimeError)) as caught:
        call()
    return str(caught.value)


def test_a_retry_says_at_once_what_the_attempt_before_it_found(stage: Stage) -> None:
    assert fails(lambda: stage(0)) == BAD
    for attempt in (1, 2):
        assert fails(lambda attempt=attempt: stage(attempt)) == (
            "thing: the attempt before this one failed with the same input and code, so this one does not try: "
            f"{BAD}; mend it, then {submit('--retry', 'a')} (or Retry in the UI) tries again"
        )
    assert stage.ran == 1


def test_a_retry_by_hand_tries_again_without_a_change(stage: Stage) -> None:
    """What the message offers: KFP counts from 0 again, and what was put there since is found."""
    fails(lambda: stage(0))
    fails(lambda: stage(1))
    stage.error = None
    url = stage(0)
    assert stage.ran == 2
    assert not stage.record.exists()
    assert stage(1) == url


def test_a_first_attempt_forgets(stage: Stage) -> None:
    """Or one that then loses its node would be followed by a retry that repeats what is long mended."""
    fails(lambda: stage(0))
    stage.error = RuntimeError("the pod is gone")
    fails(lambda: stage(0))
    stage.error = None
    stage(1)
    assert stage.ran == 3


@pytest.mark.parametrize("change", [{"overrides": "seed=3"}, {"run": "b"}, {"seed": "2"}, {"data": "emoji"}])
def test_another_request_is_tried(stage: Stage, change: dict[str, str]) -> None:
    fails(lambda: stage(0, run=""))  # a run that has a name is held to its recipe
    fails(lambda: stage(1, **{"run": ""} | change))
    assert stage.ran == 2


@pytest.mark.parametrize("name", ["__version__", "commit"])
def test_other_code_is_tried(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fails(lambda: stage(0))
    monkeypatch.setattr(refused, name, "9.9.9" if name == "__version__" else lambda: "0a1b2c3d4e5f")
    fails(lambda: stage(1))
    assert stage.ran == 2


def test_other_inputs_are_tried(stage: Stage, tmp_path: Path) -> None:
    def made(text: str) -> str:
        def body(context: Context) -> dict[str, float]:
            (context.out / "x").write_text(text)
            return {}

        url = f"{tmp_path}/before"
        stage.patch.delenv(COUNT, raising=False)
        request = Request("tiny", str(tmp_path), redo="yes")
        return execute(request, "before", url=url, fields={}, inputs={}, body=body)

    stage.inputs = {"shards": made("one")}
    fails(lambda: stage(0))
    made("two")
    fails(lambda: stage(1))
    assert stage.ran == 2


def not_there() -> str:
    raise OSError("no network")


@pytest.mark.parametrize(
    "error",
    [
        storage.StorageError("cannot read s3://box/x: 503"),
        RuntimeError("a rank is lost"),
        MemoryError(),
        OSError("disk"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(stage: Stage, error: Exception) -> None:
    stage.error = error
    with pytest.raises(type(error)):
        stage(0)
    assert not stage.record.exists()
    stage.error = None
    stage(1)
    assert stage.ran == 2


def test_a_hub_that_does_not_answer_may_pass(stage: Stage) -> None:
    with pytest.raises(InputError) as caught:
        _fetched("weights 'x' of y", not_there)
    stage.error = caught.value
    assert "cannot be fetched" in fails(lambda: stage(0))
    assert "cannot be fetched" in fails(lambda: stage(1))
    assert stage.ran == 2


def test_without_a_count_of_attempts_nothing_is_kept(stage: Stage) -> None:
    """KFP 2.16, this machine, a TrainJob's ranks."""
    assert fails(lambda: stage(None)) == fails(lambda: stage(None)) == BAD
    assert not stage.record.exists()
    assert stage.ran == 2


def test_a_record_that_cannot_be_written_leaves_the_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(url: str, value: object) -> None:
        raise storage.StorageError("cannot write: 503")

    monkeypatch.setattr(storage, "write_json", away)
    with pytest.raises(InputError, match="no picture in /data") as caught:
        stage(0)
    assert caught.value.__notes__ == ["the next attempt will find it anew: cannot write: 503"]


def test_its_exit_code_is_that_of_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cmapkd_core.stages import prepare

    (tmp_path / "empty").mkdir()
    argv = ["--recipe", "tiny", "--root", f"{tmp_path}/root", "--data", f"folder:{tmp_path}/empty", "--run", "a"]
    for attempt in ("0", "1"):
        monkeypatch.setenv(COUNT, attempt)
        assert main(prepare.run, argv) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.removeprefix("error: ") in second
    assert second.startswith("error: prepare: the attempt before this one failed with the same input and code")


@pytest.mark.parametrize("torn", TORN)
def test_a_damaged_record_counts_as_none(stage: Stage, torn: str) -> None:
    fails(lambda: stage(0))
    stage.record.write_bytes(TORN[torn])
    stage.error = None
    stage(1)
    assert stage.ran == 2
