"""The runs of a suite: which tasks each has, what it waits for, how large it becomes in a cluster."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cmapkd.pipelines import submit
from cmapkd.pipelines.package import Plan, build, defaults, write_package
from cmapkd.pipelines.runs import LAST, TASKS_OF_A_RUN, WAIT, Now, Run, behind, makers, split, tasks
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.size import LIMIT, RETRY_LIMIT, Size, measure, refuse_too_large
from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.suite import REPORT, Suite, lay_out
from cmapkd.pipelines.tasks import TASKS
from cmapkd_core.recipes import FULL, SUITES

OWN = "evaluate.sets=retrieval=scenes,zeroshot=scenes_vqa,vqa=scenes_vqa,captioning,efficiency"
ROOT = "s3://box/root"


def laid(name: str, seeds: int = 5, overrides: str = "") -> Suite:
    return lay_out(name, {"recipe": "tiny", "overrides": overrides, "data": ""}, range(seeds), ROOT, "suite")


CASES = [*((name, 5, "") for name in SUITES), ("table2", 5, OWN), ("smoke", 40, ""), ("smoke", 1, OWN)]


@pytest.mark.parametrize(("name", "seeds", "overrides"), CASES)
@pytest.mark.parametrize("parallel", [1, 3, 16])
def test_every_task_has_one_run_of_bounded_size_after_those_that_it_reads(
    name: str, seeds: int, overrides: str, parallel: int
) -> None:
    suite = laid(name, seeds, overrides)
    runs = split(suite, parallel)
    assert Counter(task for run in runs for task in run.urls) == Counter(list(suite.urls))
    assert max(len(run.shared) for run in runs) < TASKS_OF_A_RUN
    assert runs[-1].urls.keys() == {REPORT}
    seen: set[str] = set()
    for run in runs:
        assert set(makers(run, runs, suite.urls)) <= seen
        assert run.follows in {"", *seen}
        seen.add(run.name)
        inside: set[str] = set()
        for one in run.shared:  # in an order that is a valid one
            assert one.task.sources() & run.urls.keys() <= inside
            inside.add(one.task.name)


@pytest.mark.parametrize("parallel", [1, 2, 4, 7])
def test_no_more_tasks_at_a_time_than_the_site_allows(parallel: int) -> None:
    """Runs follow one another in lanes: those that no other follows, at any moment, have that many tasks at most."""
    runs = split(laid("table4"), parallel)
    rows = [run for run in runs if run.name in SUITES["table4"]]
    heads: dict[str, int] = {}
    lanes: dict[str, str] = {}
    for run in rows:
        lanes[run.name] = lanes.get(run.follows, run.name)
        heads[lanes[run.name]] = run.lanes
    assert len(set(lanes.values())) == min(parallel, len(rows))
    assert sum(heads.values()) == parallel
    assert all(run.lanes == heads[lanes[run.name]] for run in rows)  # of one width each
    followers = Counter(run.follows for run in rows if run.follows in lanes)
    assert max(followers.values(), default=1) == 1
    assert {run.follows for run in rows if run.follows not in lanes} == {"shared"}


def test_a_row_is_cut_between_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = split(laid("smoke", 12), 4)
    pieces = [run for run in runs if run.name.startswith("none")]
    assert [run.name for run in pieces] == ["none", "none-2"]
    seeds = [{seed for one in run.shared for _, seed in one.cells} for run in pieces]
    assert not seeds[0] & seeds[1]
    assert [len(run.shared) for run in pieces] == [24, 24]


def test_a_gate_stands_before_a_run_that_reads_of_others_and_names_them() -> None:
    suite = laid("smoke", 1)
    runs = split(suite, 1)
    table = {run.name: run for run in runs}
    every = list(suite.urls)

    def of(run: str, left: list[str]) -> list:
        return list(tasks(table[run], runs, Now(left, {"shared": "id-0", "finetune": "id-1"}), ROOT, "suite"))

    assert WAIT not in {task.name for task in of("shared", every)}
    gate, first, *rest = of("none", every)
    (waits,) = json.loads(gate.values["waits"])
    assert waits[:2] == ["suite.shared", "id-0"]
    assert {f"{ROOT}/{place}" for place in waits[2]} == {suite.urls["prepare"], suite.urls["teacher"]}
    (follows,) = json.loads(gate.values["follows"])
    assert follows[:2] == ["suite.finetune", "id-1"]
    assert len(follows[2]) == 3
    assert (gate.pod, first.after) == ("gate", (WAIT,))
    assert all(WAIT not in task.after for task in rest)  # they wait for the first one
    # What is there already is not waited for, nor a run that has nothing left to do.
    left = [name for name in every if name not in {*table["shared"].urls, *table["finetune"].urls}]
    assert WAIT not in {task.name for task in of("none", left)}
    report = of("report", left)
    assert [entry[0] for entry in json.loads(report[0].values["waits"])] == ["suite.none"]


def test_a_lane_stays_one_whatever_of_it_is_finished_or_still_works() -> None:
    suite = laid("table4", 1)
    runs = split(suite, 2)
    lane = [run for run in runs if run.lane == 1]
    first, second, third = lane[:3]
    every = set(suite.urls)

    def before(run: Run, left: set[str], going: tuple[str, ...] = ()) -> list[str]:
        return [one.name for one in behind(run, runs, Now(left, going=going))]

    assert before(third, every) == [second.name]
    assert before(third, every - {*second.urls}) == [first.name]  # not beside the first one
    assert before(third, every - {*second.urls, *first.urls}) == ["shared"]
    here = every - {*runs[0].urls}
    assert before(first, here) == []
    assert before(first, here, (third.name,)) == [third.name]  # which went on when the first one had failed
    other = next(run for run in runs if run.lane == 0)
    assert before(first, here, (other.name,)) == []
    assert before(runs[0], every, (other.name, third.name)) == [other.name, third.name]  # it has all lanes
    assert before(runs[-1], every, (third.name,)) == []
    assert runs[-1].name == LAST


def test_a_suite_of_one_row_has_nothing_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "alone", (FULL,))
    runs = split(laid("alone", 2), 4)
    assert [run.name for run in runs] == [FULL, "report"]
    assert runs[0].lanes == 4


# ---- sizes ----------------------------------------------------------------------------------------

SITE = Site(root=ROOT, image="registry.test/cmapkd@sha256:1")
# Sizes that were computed with a model that gives the arguments of KFP's golden workflow to the byte, for the run that
# this project compiled then: 14 tasks, 96,673 bytes of spec, 538,635 of status.
RUN = (14, 96_673, 538_635)


def test_the_size_of_a_run_is_that_of_the_workflow_that_kfp_makes(tmp_path: Path) -> None:
    job = decide(
        submit.parser().parse_args(["--recipe", "calibrated", "--data", "emoji", "--root", "s3://cmapkd/runs"])
    )
    found = measure(job.package(tmp_path / "run.yaml"))
    assert found.tasks == len(TASKS) + 1 == RUN[0]
    assert found.spec == pytest.approx(RUN[1], rel=0.1)
    assert found.status == pytest.approx(RUN[2], rel=0.1)
    assert found.compressed < found.status / 10
    assert measure(tmp_path / "run.yaml") == found
    assert found.fits


def test_what_one_workflow_cannot_hold_is_refused_with_the_way_out(tmp_path: Path) -> None:
    suite = laid("table4", 5)
    whole = Plan(tuple(one.task for one in suite.shared), run="suite")
    fixed = {"ablation": "none", "seed": "", "recipe": "tiny", "overrides": "", "data": ""}
    package = write_package(build(SITE, whole, defaults(SITE), fixed), tmp_path / "whole.yaml")
    with pytest.raises(Exception, match=r"180 tasks, Workflow \d+ KiB.*too large for one run.*Do this\."):
        refuse_too_large(package, "Do this.")
    size = measure(package)
    assert size.spec + size.compressed > LIMIT or size.spec + size.status > RETRY_LIMIT


def test_the_largest_run_of_the_largest_suite_fits(tmp_path: Path) -> None:
    suite = laid("weights", 5, OWN)
    runs = split(suite, 4)
    largest = max(runs, key=lambda run: len(run.shared))
    assert len(largest.shared) > 20
    for run in (largest, runs[-1]):
        assert package_of(run, runs, suite, tmp_path).fits


def package_of(run: Run, runs: tuple[Run, ...], suite: Suite, folder: Path) -> Size:
    made = tasks(run, runs, Now(list(suite.urls)), ROOT, "suite")
    here = {task.name for task in made}
    plan = Plan(made, {name: url for name, url in suite.urls.items() if name not in here}, "suite")
    fixed = {"ablation": "none", "seed": "", "recipe": "tiny", "overrides": "", "data": ""}
    return measure(write_package(build(SITE, plan, defaults(SITE), fixed), folder / f"{run.name}.yaml"))
