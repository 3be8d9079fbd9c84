"""The gate: what it waits for, what it says meanwhile, and when no waiting helps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from manifests import manifest

from cmapkd_core.errors import InputError
from cmapkd_core.request import Request
from cmapkd_core.stages import gate, workflows
from cmapkd_core.stages.gate import AWAY, LOOKS, Closed, GateWatch, Maker, wait
from cmapkd_core.stages.workflows import ENDED, RUNS, UNKNOWN, workflow_access, workflow_state
from cmapkd_core.storage import StorageError

NOW, AFTER = "shared", "kd"  # a run that makes something, and one that has to end first


def made(place: Path) -> str:
    """The URL of an artifact that is complete."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "manifest.json").write_bytes(manifest())
    return str(place)


def script(*states: str) -> Callable[[str], str]:
    """A cluster whose runs have these states, look by look; the last one stays."""
    left = list(states)
    return lambda run_id: left.pop(0) if len(left) > 1 else left[0]


def pauses(*acts: Callable[[], object]) -> Callable[[float], None]:
    """What happens during each pause; one more than there are acts is a gate that never opens."""
    left: Iterator[Callable[[], object]] = iter(acts)

    def pause(seconds: float) -> None:
        next(left)()

    return pause


def test_it_opens_when_every_artifact_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = made(tmp_path / "a"), str(tmp_path / "b")
    watch = GateWatch([Maker(NOW, "id-1", (first, second))], [], script(RUNS))
    wait(watch, pauses(lambda: None, lambda: made(tmp_path / "b")))
    said = capsys.readouterr().out.splitlines()
    assert said == ["gate: since 0 h 00 min waiting for 1 of 2 artifacts of run shared, which runs"]  # once, not again


def test_an_artifact_that_is_made_again_is_there_when_it_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs again, as asked or because its inputs have changed, has a manifest until its stage begins."""
    old = Path(made(tmp_path / "teacher" / "1234")) / "manifest.json"
    digest = hashlib.sha256(old.read_bytes()).hexdigest()
    waits = json.dumps([["table2.shared", "id-1", [f"teacher/1234#{digest[:12]}"]]])
    request = Request("tiny", str(tmp_path), run="table2")
    seen: list[str] = []

    def look(pause: float) -> None:
        seen.append("looked")
        assert len(seen) < 9, "the gate stays closed"
        if len(seen) == 2:
            old.unlink()
        if len(seen) == 4:
            old.write_bytes(manifest(seconds=1.0))

    monkeypatch.setattr(gate, "workflow_state", script(RUNS))
    monkeypatch.setattr(gate, "wait", lambda watch: wait(watch, look))
    gate.run(request, waits=waits, follows=waits)
    assert len(seen) == 4


def test_a_run_that_ended_without_its_artifacts_closes_it_by_name(tmp_path: Path) -> None:
    watch = GateWatch([Maker("table 2.0.shared", "id-1", (str(tmp_path / "a"),))], [], script(ENDED))
    with pytest.raises(
        Closed, match=r"run table 2\.0\.shared has ended without .*/a: .*submit\.py --retry 'table 2\.0' "
    ):
        wait(watch, pauses(*[lambda: None] * (LOOKS - 1)))


def test_a_retry_takes_a_workflow_away_for_a_moment_and_an_artifact_may_come_last(tmp_path: Path) -> None:
    states = script(ENDED, ENDED, RUNS, *[ENDED] * (LOOKS - 1), RUNS)
    watch = GateWatch([Maker(NOW, "id-1", (str(tmp_path / "a"),))], [], states)
    wait(watch, pauses(*[lambda: None] * (LOOKS + 2), lambda: made(tmp_path / "a")))


def test_the_run_before_in_its_lane_may_fail_and_need_not_be_seen(tmp_path: Path) -> None:
    before = Maker(AFTER, "id-2", (str(tmp_path / "last"),))
    wait(GateWatch([], [before], script(ENDED)), pauses(*[lambda: None] * (LOOKS - 1)))
    unseen = GateWatch([], [before], script(f"{UNKNOWN}: no right"))
    wait(unseen, pauses(lambda: None, lambda: made(tmp_path / "last")))


def test_it_holds_its_lane_until_the_run_before_it_has_ended_though_it_can_only_fail(tmp_path: Path) -> None:
    """The next run in the lane follows this one alone: closed early, it would let that one in beside the one before."""
    maker, before = (Maker(run, run, (str(tmp_path / run),)) for run in (NOW, AFTER))
    states = {NOW: ENDED, AFTER: RUNS}
    watch = GateWatch([maker], [before], lambda run_id: states[run_id])
    with pytest.raises(Closed, match="run shared has ended without"):
        wait(watch, pauses(*[lambda: None] * (LOOKS + 2), lambda: made(tmp_path / AFTER)))
    assert (tmp_path / AFTER).exists()


def test_a_run_may_be_waited_for_and_followed_at_once(tmp_path: Path) -> None:
    """Its looks count once each time, for either."""
    maker = Maker(NOW, "id-1", (str(tmp_path / "a"),))
    watch = GateWatch([maker], [maker], script(ENDED))
    for _ in range(LOOKS - 1):
        assert len(watch.lines()) == 2
    with pytest.raises(Closed):
        watch.lines()


def test_a_store_that_is_away_is_waited_for_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(url: str, old: str = "") -> bool:
        raise StorageError("s3 does not answer")

    is_made = gate.is_made
    monkeypatch.setattr(gate, "is_made", away)
    watch = GateWatch([Maker(NOW, "id-1", (made(tmp_path / "a"),))], [], script(RUNS))
    wait(watch, pauses(lambda: None, lambda: monkeypatch.setattr(gate, "is_made", is_made)))
    assert "waiting for the store: s3 does not answer" in capsys.readouterr().out
    monkeypatch.setattr(gate, "is_made", away)
    with pytest.raises(StorageError):
        wait(GateWatch(watch.makers, [], script(RUNS)), pauses(*[lambda: None] * (AWAY - 1)))


def test_the_stage_reads_places_below_its_root_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "SECONDS", 0.0)
    made(tmp_path / "teacher" / "1234")
    request = Request("tiny", str(tmp_path), run="table2")
    waits = json.dumps([["table2.shared", "id-1", ["teacher/1234"]]])
    assert gate.run(request, waits=waits) == str(tmp_path)
    monkeypatch.setattr(gate, "workflow_state", lambda run_id: ENDED if run_id == "id-1" else RUNS)
    with pytest.raises(SystemExit) as ended:
        gate.run(request, waits=waits.replace("1234", "5678"))
    assert ended.value.code == 1
    assert "error: run table2.shared has ended without" in capsys.readouterr().err
    for wrong in ("[", '{"a": 1}', '[["shared", "id"]]'):
        with pytest.raises(InputError, match="--waits"):
            gate.run(request, waits=wrong)


def test_outside_a_cluster_it_says_that_it_cannot_see() -> None:
    assert workflow_state("").startswith("cannot be seen: its id was not known")
    assert workflow_state("id-1").startswith("cannot be seen: ")
    assert "a gate would wait for its artifacts alone" in workflow_access()


@pytest.mark.parametrize(
    ("phases", "state"),
    [
        (["Running"], RUNS),
        ([""], RUNS),  # just made
        (["Failed"], ENDED),
        (["Succeeded"], ENDED),
        ([], ENDED),  # Argo removed it
        (["Failed", "Running"], RUNS),
    ],
)
def test_a_run_goes_on_while_a_workflow_of_it_does(
    phases: list[str], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes import client, config

    asked = []

    def listed(api: object, *where: str, label_selector: str) -> dict[str, object]:
        asked.append((where, label_selector))
        return {"items": [{"status": {"phase": phase}} for phase in phases]}

    (tmp_path / "namespace").write_text("team-a\n")
    monkeypatch.setattr(workflows, "ACCOUNT", tmp_path)
    monkeypatch.setattr(config, "load_incluster_config", lambda: None)
    monkeypatch.setattr(client.CustomObjectsApi, "list_namespaced_custom_object", listed)
    assert workflow_state("id-1") == state
    assert asked == [(("argoproj.io", "v1alpha1", "team-a", "workflows"), "pipeline/runid=id-1")]


def test_a_missing_right_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes import client, config

    def refused(*given: object, **more: object) -> None:
        raise client.ApiException(status=403, reason="Forbidden")

    monkeypatch.setattr(config, "load_incluster_config", refused)
    assert "may not list workflows.argoproj.io" in workflow_state("id-1")
