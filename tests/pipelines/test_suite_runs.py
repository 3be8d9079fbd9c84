"""A suite in a cluster, against a server that speaks KFP's API: started, added to, retried, followed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest

from cmapkd.pipelines import endpoint, size, start, submission, submit, suite_retry, suite_runs
from cmapkd.pipelines.site import load_site
from cmapkd.pipelines.started import to_paste
from cmapkd.pipelines.submission import Submission, decide
from cmapkd.pipelines.submit import main
from cmapkd_core import storage
from cmapkd_core.stages.artifact import Artifact

SUITE = ["--suite", "smoke", "--seeds", "1"]
NAME = "tiny-smoke-1seeds"
ALL = ["shared", "finetune", "none", "report"]


def names(api: Any) -> list[str]:
    return [run["display_name"].removeprefix(f"{NAME}.") for run in api.runs]


def gate(run: dict[str, Any]) -> dict[str, Any]:
    """What its gate is told, read from the package that KFP got."""
    spec = run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])
    inputs = spec["root"]["dag"]["tasks"]["gate"]["inputs"]["parameters"]
    return {name: json.loads(inputs[name]["runtimeValue"]["constant"] or "[]") for name in ("waits", "follows")}


def end(api: Any, **states: str) -> None:
    """The runs of these names end so, the others go on."""
    for run, name in zip(api.runs, names(api), strict=True):
        run.setdefault("state", "RUNNING")
        run["state"] = states.get(name, run["state"])


def at_gates(api: Any, **states: str) -> None:
    """KFP's details of the runs of these names say so of their gates."""
    for run, name in zip(api.runs, names(api), strict=True):
        if name in states:
            run["run_details"] = {"task_details": [{"display_name": "gate", "state": states[name]}]}


def finish(job: Submission, *runs: str) -> None:
    """The artifacts of these runs are there, made from one another."""
    for run in job.runs:
        for one in run.shared if run.name in runs else ():
            inputs = {}
            for argument, source in (one.task.inputs | one.task.collects).items():
                raw = storage.read_bytes(f"{job.urls[source]}/manifest.json")
                inputs[argument] = {"url": job.urls[source], "digest": hashlib.sha256(raw).hexdigest()}
            storage.write_bytes(f"{one.url}/manifest.json", manifest(inputs=inputs, url=one.url))


def asked(*more: str) -> Submission:
    return decide(submit.parser().parse_args([*SUITE, *more]))


def test_one_command_starts_all_runs_in_an_experiment_of_the_suites_name(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    assert names(api) == ALL
    assert [one["display_name"] for one in api.experiments] == [NAME]
    shared, _, none, report = api.runs
    assert "gate" not in json.dumps(shared["pipeline_spec"])
    told = gate(none)
    assert [entry[:2] for entry in told["waits"]] == [[f"{NAME}.shared", "run-0"]]
    assert [entry[:2] for entry in told["follows"]] == [
        [f"{NAME}.shared", "run-0"]
    ]  # four tasks at a time, two rows: side by side
    assert [entry[:2] for entry in gate(report)["waits"]] == [
        [f"{NAME}.{n}", f"run-{i}"] for i, n in enumerate(ALL[:3])
    ]
    said = capsys.readouterr().out
    for number, name in enumerate(ALL):
        assert f"run {NAME}.{name}: " in said
        assert f"/#/runs/details/run-{number}" in said


def test_the_same_command_again_adds_nothing_while_all_runs_work_and_nothing_when_all_are_done(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    end(api)
    assert main(SUITE) == 0
    assert names(api) == ALL
    assert f"run {NAME}.none: goes on" in capsys.readouterr().out
    finish(asked(), *ALL)
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert main(SUITE) == 0
    assert names(api) == ALL
    assert "nothing is missing" in capsys.readouterr().out


def test_it_adds_what_is_missing_and_its_report(api: Any) -> None:
    assert main(SUITE) == 0
    finish(asked(), "shared", "finetune")
    end(api, shared="SUCCEEDED", finetune="SUCCEEDED", none="FAILED", report="FAILED")
    assert main(SUITE) == 0
    assert names(api)[4:] == ["none", "report"]
    assert "gate" not in json.dumps(api.runs[4]["pipeline_spec"])  # what it reads is there
    assert [entry[:2] for entry in gate(api.runs[5])["waits"]] == [[f"{NAME}.none", "run-4"]]


def test_what_waits_for_a_run_that_is_started_anew_is_started_anew_too(api: Any) -> None:
    """Its gate names the run that failed."""
    assert main(SUITE) == 0
    end(api, shared="FAILED")
    assert main(SUITE) == 0
    assert names(api)[4:] == ALL
    assert api.terminated == ["run-1", "run-2", "run-3"]
    assert gate(api.runs[6])["waits"][0][1] == "run-4"


def test_a_run_that_succeeded_without_its_artifacts_is_started_again(api: Any) -> None:
    assert main(SUITE) == 0
    finish(asked(), "shared", "finetune")  # those of none were deleted
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert main(SUITE) == 0
    assert names(api)[4:] == ["none", "report"]


def test_a_part_that_still_works_is_not_run_again(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SUITE) == 0
    end(api, none="FAILED", finetune="SUCCEEDED", shared="SUCCEEDED")
    part = ["--run", NAME, "--only", "suite-report"]
    assert main(part) == 2
    assert f"run {NAME}.report still works" in capsys.readouterr().err
    end(api, report="SUCCEEDED")
    assert main(part) == 0
    assert names(api)[4:] == ["report"]


def test_what_is_made_again_is_waited_for_by_its_digest(api: Any) -> None:
    """Its manifest is there until the stage begins: the rows would start with the old teacher."""
    assert main(SUITE) == 0
    finish(asked(), *ALL)
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert main(["--run", NAME, "--from-stage", "teacher"]) == 0
    url = asked().urls["teacher"]
    digest = hashlib.sha256(storage.read_bytes(f"{url}/manifest.json")).hexdigest()
    none = api.runs[5]
    assert names(api)[4:] == ["shared", "none", "report"]  # finetune reads no teacher
    place = url.removeprefix("s3://box/root/") + "#" + digest[:12]
    assert gate(none)["waits"][0][2] == [place]
    assert place in gate(none)["follows"][0][2]


def test_what_is_outdated_is_waited_for_by_its_digest_and_its_report_is_made_again(api: Any) -> None:
    assert main(SUITE) == 0
    finish(asked(), *ALL)
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    inputs = Artifact.open(asked().urls["evaluate-teacher"]).manifest["inputs"]
    storage.write_bytes(f"{asked().urls['evaluate-teacher']}/manifest.json", manifest(seconds=9.0, inputs=inputs))
    assert main(SUITE) == 0
    assert names(api)[4:] == ["report"]
    storage.write_bytes(f"{asked().urls['prepare']}/manifest.json", manifest(seconds=9.0))
    end(api, report="SUCCEEDED")
    assert main(SUITE) == 0
    assert names(api)[5:] == ALL
    assert all("#" in place for place in gate(api.runs[7])["waits"][0][2])


def test_where_the_root_cannot_be_read_kfp_says_what_is_missing(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unread(laid: object) -> None:
        raise storage.StorageError("s3 does not answer")

    monkeypatch.setattr(submission.suite, "standing", unread)
    assert main(SUITE) == 0
    end(api, shared="SUCCEEDED")
    assert main(SUITE) == 0
    assert names(api) == ALL  # shared is not made again, nor what works for hours on it ended
    assert not api.terminated
    end(api, none="SUCCEEDED", finetune="FAILED", report="SUCCEEDED")
    assert main(SUITE) == 0
    assert names(api)[4:] == ["finetune", "report"]
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert main(SUITE) == 0
    assert len(api.runs) == 6
    assert "nothing is missing" in capsys.readouterr().out


def test_a_suite_of_the_same_name_at_another_root_is_not_taken_for_this_one(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    end(api)
    there = [*SUITE, "--root", "s3://box/root/other"]
    assert main(there) == 2
    assert f"{NAME}.shared works at root s3://box/root: give this suite another name" in capsys.readouterr().err
    assert main([*there, "--run", "mine"]) == 0
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert main(there) == 0
    assert names(api)[8:] == ALL


def test_a_run_that_is_being_ended_is_started_again(api: Any) -> None:
    assert main(SUITE) == 0
    finish(asked(), "shared", "finetune")
    end(api, shared="SUCCEEDED", finetune="SUCCEEDED", none="CANCELING", report="PAUSED")
    assert main(SUITE) == 0
    assert names(api)[4:] == ["none", "report"]
    assert api.terminated == ["run-3"]


def test_a_run_that_works_on_a_part_is_not_taken_for_the_whole(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SUITE) == 0
    finish(asked(), "shared", "finetune")
    end(api, **dict.fromkeys(ALL, "FAILED"))
    assert main(["--run", NAME, "--only", "warmup-none"]) == 0
    end(api)
    assert main(SUITE) == 2
    assert f"run {NAME}.none still works, and will not make alsn-none, joint-none, " in capsys.readouterr().err
    assert names(api)[4:] == ["none"]


def test_nothing_is_started_of_what_cannot_be_started_whole(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    end(api, shared="SUCCEEDED", finetune="SUCCEEDED", none="SUCCEEDED")
    assert main(["--run", NAME, "--from-stage", "joint-none"]) == 2
    assert f"run {NAME}.report still works" in capsys.readouterr().err
    assert len(api.runs) == 4
    end(api, **dict.fromkeys(ALL, "FAILED"))
    fits = size.measure
    monkeypatch.setattr(size, "LIMIT", 1 << 10)
    monkeypatch.setattr(size, "measure", lambda path: fits(path) if "report" in path.name else size.Size(1, 1, 1, 1))
    assert main(SUITE) == 2
    assert "too large for one run" in capsys.readouterr().err
    assert len(api.runs) == 4


def test_an_experiment_of_another_use_is_no_suite(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its failed runs are not retried all at once."""
    assert main(["--run", "one", "--root", "s3://box/root"]) == 0
    end_all = [run.update(state="FAILED") for run in api.runs]
    experiment = api.experiments[0]["display_name"]
    assert main(["--retry", experiment]) == 2
    assert f"no run '{experiment}'" in capsys.readouterr().err
    assert (len(end_all), api.retried) == (1, [])


def test_a_run_that_cannot_be_retried_does_not_keep_the_others_from_it(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    end(api, shared="SUCCEEDED", finetune="FAILED", none="FAILED", report="CANCELING")
    at_gates(api, finetune="SUCCEEDED", none="SUCCEEDED", report="RUNNING")
    act = api.act
    monkeypatch.setattr(api, "act", lambda run_id, verb: 500 if run_id == "run-1" else act(run_id, verb))
    assert main(["--retry", NAME]) == 3
    assert api.retried == ["run-2"]
    said = capsys.readouterr().out
    assert f"run {NAME}.finetune is failed, and not retried: " in said
    assert f"run {NAME}.report is canceling: " in said


def test_retry_takes_all_failed_runs_of_a_suite(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SUITE) == 0
    end(api, shared="SUCCEEDED", finetune="FAILED", none="SUCCEEDED", report="FAILED")
    at_gates(api, finetune="SUCCEEDED", report="FAILED")
    assert main(["--retry", NAME]) == 0
    assert api.retried == ["run-1", "run-3"]
    assert f"run {NAME}.finetune is retried: " in capsys.readouterr().out
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert main(["--retry", NAME]) == 2
    assert f"no run of suite {NAME} has failed: {NAME}.shared succeeded" in capsys.readouterr().err
    assert main(["--retry", "unheard"]) == 2
    assert "no run 'unheard'" in capsys.readouterr().err


TURN = "has its turn after"


def test_runs_that_were_in_one_lane_are_retried_one_after_the_other(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have passed their gates: retried at once they would be two tasks at a time where the site allows one."""
    assert main([*SUITE, "--parallel", "1"]) == 0
    end(api, shared="SUCCEEDED", finetune="FAILED", none="FAILED", report="FAILED")
    at_gates(api, finetune="SUCCEEDED", none="SUCCEEDED", report="FAILED")
    assert main(["--retry", NAME]) == 0
    said = capsys.readouterr().out
    assert api.retried == ["run-1"]
    assert f"run {NAME}.none is failed, and {TURN} {NAME}.finetune: together" in said
    assert f"run {NAME}.report is failed, and {TURN} {NAME}.none: it waits for what they make" in said  # and would end
    assert f"not retried yet: {NAME}.none, {NAME}.report; then: {to_paste('--retry', NAME)}, or with --wait" in said
    end(api, finetune="SUCCEEDED")
    assert main(["--retry", NAME]) == 0  # as it was told
    assert api.retried[1:] == ["run-2", "run-3"]
    assert "not retried yet" not in capsys.readouterr().out


def test_runs_of_two_lanes_are_retried_at_once_and_what_their_gates_hold(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUITE, "--parallel", "2"]) == 0
    end(api, shared="SUCCEEDED", finetune="FAILED", none="FAILED", report="FAILED")
    at_gates(api, finetune="SUCCEEDED", none="SUCCEEDED", report="FAILED")
    assert main(["--retry", NAME]) == 0
    assert api.retried == ["run-1", "run-2", "run-3"]
    end(api, **dict.fromkeys(ALL, "FAILED"))
    at_gates(api, finetune="FAILED", none="FAILED", report="FAILED")
    assert main(["--retry", NAME]) == 0
    assert api.retried[3:] == ["run-0", "run-1", "run-2", "run-3"]
    assert TURN not in capsys.readouterr().out


def test_retry_waits_for_turns_and_counts_the_tasks(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUITE, "--parallel", "1"]) == 0
    job = asked()
    finish(job, "shared")
    none = next(run for run in job.runs if run.name == "none")
    end(api, shared="SUCCEEDED", finetune="FAILED", none="FAILED", report="FAILED")
    at_gates(api, finetune="SUCCEEDED", none="SUCCEEDED", report="FAILED")
    api.act = lambda run_id, verb: api.retried.append(run_id) or moved(run_id, "RUNNING") or 200

    def moved(run_id: str, state: str) -> None:
        next(run for run in api.runs if run["run_id"] == run_id).update(state=state)

    looks = iter([("run-1", "SUCCEEDED"), ("run-2", ""), ("run-2", "SUCCEEDED"), ("run-3", "SUCCEEDED")])

    def pause(seconds: float) -> None:
        run_id, state = next(looks)
        if state:
            moved(run_id, state)
        else:  # KFP has no details of it any more
            api.runs[2].pop("run_details")
            storage.write_bytes(f"{none.urls['warmup-none']}/manifest.json", manifest())

    monkeypatch.setattr(suite_runs.client.time, "sleep", pause)
    capsys.readouterr()
    assert main(["--retry", NAME, "--wait"]) == 0
    assert api.retried == ["run-1", "run-2", "run-3"]
    said = capsys.readouterr().out
    lines = [line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("  ")]
    assert lines == [
        "finetune  running     0 of 3 tasks",
        "none      failed      0 of 4 tasks",
        "report    failed      0 of 1 tasks",
        "finetune  succeeded   3 of 3 tasks",
        "none      running     0 of 4 tasks",
        "report    running     0 of 1 tasks",
        "none      running     1 of 4 tasks",
        "none      succeeded   4 of 4 tasks",
        "report    succeeded   1 of 1 tasks",
    ]
    assert said.endswith(f"suite {NAME}: succeeded\n")


def test_who_stops_waiting_is_told_what_has_not_had_its_turn(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(seconds: float) -> None:
        raise KeyboardInterrupt

    assert main([*SUITE, "--parallel", "1"]) == 0
    end(api, shared="SUCCEEDED", finetune="FAILED", none="FAILED", report="SUCCEEDED")
    at_gates(api, finetune="SUCCEEDED", none="SUCCEEDED")
    monkeypatch.setattr(suite_runs.client.time, "sleep", stopped)
    api.act = lambda run_id, verb: api.runs[1].update(state="RUNNING") or 200
    assert main(["--retry", NAME, "--wait"]) == 130
    assert f"goes on; not retried yet: {NAME}.none; then: {to_paste('--retry', NAME)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "held", "active", "one", "clashes"),
    [
        ({"a": "", "b": "a", "c": "b"}, "", "a", "c", True),  # one lane, with b between them that is done
        ({"a": "", "b": "a", "c": "b"}, "c", "a", "c", True),  # its gate sees the end of b alone
        ({"a": "", "b": "a", "c": "b"}, "bc", "ab", "c", False),  # b is held, and holds it
        ({"a": "", "b": "a", "c": "b"}, "c", "c", "a", True),  # the later one goes on behind b, not behind a
        ({"a": "", "b": "a"}, "b", "b", "a", False),  # the later one is held by the one that is retried
        ({"a": "", "b": ""}, "", "a", "b", False),  # two lanes
        ({"a": "b", "b": "a"}, "", "a", "b", True),  # started in turns, one behind the other
    ],
)
def test_what_would_work_side_by_side(named: dict[str, str], held: str, active: str, one: str, clashes: bool) -> None:
    gates = {name: set(before) for name, before in named.items()}
    assert (
        any(suite_retry.clash(one, other, set(active), gates, set(held)) for other in active if other != one) is clashes
    )


def test_a_run_that_was_started_twice_is_retried_as_it_was_last(api: Any) -> None:
    assert main(SUITE) == 0
    end(api, shared="FAILED")
    assert main(SUITE) == 0
    end(api, shared="SUCCEEDED", finetune="SUCCEEDED", none="FAILED", report="SUCCEEDED")
    assert main(["--retry", NAME]) == 0
    assert api.retried == ["run-6"]


@pytest.mark.parametrize("details", [True, False], ids=["from KFP", "from the manifests"])
def test_the_progress_is_one_table_whatever_kfp_tells(
    api: Any, details: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    job = asked()
    end(api, shared="SUCCEEDED")
    if details:
        told = [{"display_name": "gate", "state": "SUCCEEDED"}, {"display_name": "warmup-none", "state": "SUCCEEDED"}]
        api.runs[2]["run_details"] = {"task_details": told}
    else:
        finish(job, "shared")
        none = next(run for run in job.runs if run.name == "none")
        storage.write_bytes(f"{none.urls['warmup-none']}/manifest.json", manifest())
    ids = {name: f"run-{number}" for number, name in enumerate(ALL)}
    progress = suite_runs.SuiteProgress(NAME, ids, start.urls_of(job))
    site = load_site("site.toml")
    connected = endpoint.connect(site)
    assert progress.look(connected, site)
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert lines == [
        "shared    succeeded   4 of 4 tasks",
        "finetune  running     0 of 3 tasks",
        "none      running     1 of 4 tasks",
        "report    running     0 of 1 tasks",
    ]
    assert progress.look(connected, site)
    assert not capsys.readouterr().out  # nothing changed
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    assert not progress.look(connected, site)


def test_wait_ends_with_the_suite_and_names_what_failed(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.on_run = lambda run: run.update(state="FAILED" if run["display_name"].endswith("none") else "SUCCEEDED")
    assert main([*SUITE, "--wait"]) == 1
    said = capsys.readouterr().out
    assert f"suite {NAME}: failed: {NAME}.none" in said
    assert to_paste("--retry", NAME) in said


def test_a_run_that_is_deleted_meanwhile_ends_for_who_waits(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SUITE) == 0
    end(api, **dict.fromkeys(ALL, "SUCCEEDED"))
    ids = {"none": "run-2", "gone": "run-9"}
    progress = suite_runs.SuiteProgress(NAME, ids)
    site = load_site("site.toml")
    assert not progress.look(endpoint.connect(site), site)
    assert progress.states == {"none": "SUCCEEDED", "gone": "DELETED"}
    assert "gone  deleted" in capsys.readouterr().out


def test_a_name_that_no_experiment_can_have_is_refused_with_the_way_out(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUITE, "--run", "n" * 129]) == 2
    assert "128 characters at most, not 129: give it a shorter one with --run" in capsys.readouterr().err
    assert not api.runs
    named = "实验/2.0 a"
    assert main([*SUITE, "--run", named]) == 0
    assert [run["display_name"] for run in api.runs] == [f"{named}.{name}" for name in ALL]
    api.runs[0]["state"] = "FAILED"
    assert main(["--retry", named]) == 0
    assert api.retried == ["run-0"]


def test_retry_takes_nothing_that_it_would_not_heed(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--suite", "smoke"], ["--recipe", "demo"], ["--run", "x"], ["--root", "s3://b"]):
        assert main(["--retry", NAME, *more]) == 2
        assert f"as it was: leave out {more[0]}" in capsys.readouterr().err


def test_compile_only_writes_a_package_for_each_run_and_their_sizes(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUITE, "--compile-only", "packages"]) == 0
    assert sorted(path.name for path in Path("packages").iterdir()) == sorted(f"{name}.yaml" for name in ALL)
    assert capsys.readouterr().out.count(" tasks, Workflow ") == 4
    assert not api.runs
