"""Suites: what is shared, counted by hand; lanes; every argv against its stage; the whole thing run here."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines import submit
from cmapkd.pipelines.ir import Step, command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.package import Plan, build, defaults, select, write_package
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import main
from cmapkd.pipelines.suite import REPORT, STAGES_OF_A_CELL, Shared, Suite, in_lanes, lay_out, standing
from cmapkd.pipelines.tasks import Task, output_urls, own_recipe, tasks_of
from cmapkd_core.method_specs import METHODS
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import FULL, ROWS, SUITES, resolve
from cmapkd_core.records import record_run
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import parser

REQUEST = {"recipe": "tiny", "overrides": "", "data": ""}
SITE = Site(root="s3://bucket/root", image="registry.test/cmapkd@sha256:1")


def laid(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[str, ...], seeds: int, request: dict[str, str] = REQUEST
) -> Suite:
    monkeypatch.setitem(SUITES, "made", rows)
    return lay_out("made", request, range(seeds), "/root", "a-run")


def counts(suite: Suite) -> dict[str, int]:
    return dict(Counter(one.stage for one in suite.shared))


def test_three_rows_and_two_seeds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = laid(monkeypatch, ("finetune", "no_alsn", FULL), 2)
    assert counts(suite) == {
        "prepare": 1,
        "teacher": 1,
        "warmup": 4,  # finetune's, and one of no_alsn and the full method, with two seeds
        "alsn": 2,  # of the full method alone; the others hand the warm-up on
        "joint": 6,
        "evaluate-student": 6,
        "evaluate-teacher": 1,
        "evaluate-before": 2,  # one untrained student a seed
        REPORT: 1,
    }
    assert sum(suite.naive.values()) == 3 * 2 * 8 + 1


def test_names_say_who_needs_a_task_first_and_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = laid(monkeypatch, ("finetune", "no_alsn", FULL), 2)
    names = [task.name for task in suite.tasks]
    assert len(set(names)) == len(names)
    assert {"prepare", "teacher", "warmup-no-alsn-s1", "alsn-none-s0", "evaluate-before-s1", REPORT} <= set(names)
    cells = {one.task.name: one.cells for one in suite.shared}
    assert cells["warmup-no-alsn-s1"] == (("no_alsn", "1"), (FULL, "1"))
    assert len(cells["prepare"]) == 6


@pytest.mark.parametrize("name", list(SUITES))
def test_shared_tasks_appear_once_and_after_what_they_read(name: str) -> None:
    suite = lay_out(name, REQUEST, range(3), "/root", "a-run")
    assert len(set(suite.urls.values())) == len(suite.tasks)
    seen: set[str] = set()
    for task in suite.tasks:
        assert task.sources() <= seen
        seen.add(task.name)
    assert suite.tasks[-1].name == REPORT
    evaluations = [key for key in suite.tasks[-1].collects if key.startswith("evaluation/")]
    assert evaluations == [f"evaluation/{row}/{seed}" for row in SUITES[name] for seed in range(3)]


@pytest.mark.parametrize("name", list(SUITES))
def test_a_suite_reads_what_its_rows_alone_would_read(name: str) -> None:
    """Sharing changes no input: each cell's path through the shared tasks has the URLs of its own run."""
    suite = lay_out(name, REQUEST, range(2), "/root", "a-run")
    urls, tasks = suite.urls, {task.name: task for task in suite.tasks}
    for row in SUITES[name]:
        for seed in range(2):
            recipe = resolve("tiny", row, seed=seed)
            alone = output_urls(tasks_of(recipe), lambda task, r=recipe: own_recipe(task, r), "/root", "a-run")  # type: ignore[misc]
            joint = tasks[suite.tasks[-1].collects[f"training/{row}/{seed}"]]
            assert urls[joint.name] == alone["joint"]
            assert {n: urls[source] for n, source in joint.inputs.items()} == {
                "shards": alone["prepare"],
                "init": alone["alsn"],
                **({"teacher": alone["teacher"]} if METHODS[recipe.method.name].teacher else {}),
            }


def test_rows_of_every_suite_exist_and_hold_the_full_method() -> None:
    for rows in SUITES.values():
        assert set(rows) <= set(ROWS)
        assert FULL in rows
        assert len(set(rows)) == len(rows)


def test_a_row_of_a_suite_is_what_its_name_says_whatever_is_overridden_for_all() -> None:
    asked = REQUEST | {"overrides": "student.weights=/x.pt method.weights.fd=8"}
    table2 = {one.task.name: one for one in lay_out("table2", asked, range(1), "/root", "r").shared}
    scratch, finetune = (table2[f"joint-{row}"].task for row in ("scratch", "finetune"))
    assert (scratch.overrides, finetune.overrides) == ("method.weights.fd=8", asked["overrides"])
    assert table2["joint-scratch"].url == stage_url("/root", "joint", resolve("tiny", "scratch", "method.weights.fd=8"))
    weights = lay_out("weights", asked | {"recipe": "demo"}, range(1), "/root", "r")
    trainings = {task for key, task in weights.tasks[-1].collects.items() if key.startswith("training/")}
    assert len(trainings) == len(SUITES["weights"])  # no two labels for one training


def test_rows_that_are_one_and_the_same_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--recipe", "tiny", "--suite", "table4", "--data", "folder:/pictures", "--dry-run"]
    assert main(command) == 0
    assert "one and the same" not in capsys.readouterr().err
    assert main([*command, "--set", "selector.kind=fixed"]) == 0
    said = capsys.readouterr().err
    assert "note: rows no_alsn and none are one and the same here" in said
    assert "selector.kind=fixed already" in said
    assert said.count("one and the same") == 1  # manual_alsn has other weights


def test_the_teacher_is_the_full_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = laid(monkeypatch, ("random_teacher_pyramid", FULL), 1)
    assert counts(suite)["teacher"] == 2
    assert counts(suite)["evaluate-teacher"] == 1
    assert suite.tasks[-1].collects["teacher"] == "evaluate-teacher-none"


# ---- lanes ----------------------------------------------------------------------------------------


def chain(*names: str, cost: float = 1.0) -> list[Shared]:
    """Tasks that each read the one before."""
    return [
        Shared(Task(name, None, "train", {"init": before} if before else {}), "joint", name, cost=cost)
        for before, name in zip(("", *names), names, strict=False)
    ]


def test_lanes_by_hand() -> None:
    shared = [*chain("a1", "a2"), *chain("b1", "b2", cost=3.0), *chain("c1")]
    ordered = in_lanes(shared, 2)
    # a1 and b1 begin; a2 follows a1 at 1 and c1 follows a2 at 2; b1 and c1 end at 3 and b2 takes the first lane.
    assert [(task.name, task.after) for task in ordered] == [
        ("a1", ()),
        ("b1", ()),
        ("a2", ("a1",)),
        ("c1", ("a2",)),
        ("b2", ("c1",)),
    ]


def test_one_lane_keeps_the_order() -> None:
    shared = lay_out("table4", REQUEST, range(2), "/root", "r").shared
    ordered = in_lanes(shared, 1)
    assert [task.name for task in ordered] == [one.task.name for one in shared]
    assert [task.after for task in ordered[1:]] == [(task.name,) for task in ordered[:-1]]


@pytest.mark.parametrize("parallel", [2, 4, 100])
def test_lanes_of_a_real_suite(parallel: int) -> None:
    shared = lay_out("table4", REQUEST, range(2), "/root", "r").shared
    ordered = in_lanes(shared, parallel)
    seen: set[str] = set()
    for task in ordered:
        assert task.sources() | set(task.after) <= seen
        seen.add(task.name)
    followers = Counter(name for task in ordered for name in task.after)
    assert max(followers.values(), default=1) == 1
    assert sum(not task.after for task in ordered) <= parallel
    assert {task.name for task in ordered} == {one.task.name for one in shared}


# ---- the package ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = lay_out("smoke", REQUEST, range(2), SITE.root, "a-run", "yes")
    plan = Plan(in_lanes(suite.shared, 2), run="a-run")
    fixed = {"ablation": FULL, "seed": "", **REQUEST}
    return write_package(build(SITE, plan, defaults(SITE), fixed), tmp_path_factory.mktemp("ir") / "suite.yaml")


@pytest.fixture(scope="module")
def commands(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    every, folder = steps(load_package(package)[0]), tmp_path_factory.mktemp("argv")
    outputs = {step.key: {"artifact": f"s3://bucket/{step.name}"} for step in every}
    given = {"root": SITE.root, "tracking_uri": "", "image": SITE.image}

    def argv(step: Step) -> list[str]:
        return command_line(step, executor_input(step, resolve_inputs(step, given, outputs, "pod-name"), folder))

    return {step.name: argv(step) for step in every}


def stage_arguments(argv: list[str]) -> Any:
    start = next(at for at, part in enumerate(argv) if part.startswith("cmapkd_core.stages."))
    return parser(importlib.import_module(argv[start]).run).parse_args(argv[start + 1 :])


def test_every_stage_takes_its_argv(commands: dict[str, list[str]]) -> None:
    for name, argv in commands.items():
        given = stage_arguments(argv)
        assert (given.recipe, given.root) == ("tiny", SITE.root), name
        if name != REPORT:
            assert re.fullmatch(r"a-run\.(none|finetune)-s[01]", given.run)
            assert (given.ablation, given.seed) == tuple(given.run.removeprefix("a-run.").split("-s"))


def test_the_report_gets_every_url_by_row_and_seed(commands: dict[str, list[str]]) -> None:
    given = stage_arguments(commands[REPORT])
    each = [(f"{row}/{seed}", f"{row}-s{seed}") for row in SUITES["smoke"] for seed in (0, 1)]
    wanted = {f"evaluation/{cell}": f"s3://bucket/evaluate-student-{name}" for cell, name in each}
    wanted |= {f"training/{cell}": f"s3://bucket/joint-{name}" for cell, name in each}
    wanted |= {f"before/{seed}": f"s3://bucket/evaluate-before-s{seed}" for seed in (0, 1)}
    assert given.artifacts == wanted | {"teacher": "s3://bucket/evaluate-teacher"}
    assert (given.suite, given.expectations) == ("smoke", "yes")
    assert (given.executions, given.naive, given.run) == ("20", "33", "a-run")


def test_the_edges_are_real_and_lanes_are_extra_ones(package: Path) -> None:
    every = {step.name: step for step in steps(load_package(package)[0])}
    names = {step.key: name for name, step in every.items()}
    needs = {name: {names[key] for key in step.needs} for name, step in every.items()}
    assert {"evaluate-student-none-s1", "joint-finetune-s0", "evaluate-before-s0", "evaluate-teacher"} <= needs[REPORT]
    assert {"prepare", "teacher", "alsn-none-s0"} <= needs["joint-none-s0"]
    tasks = {task.name: task for task in in_lanes(lay_out("smoke", REQUEST, range(2), SITE.root, "r").shared, 2)}
    assert needs == {name: task.sources() | set(task.after) for name, task in tasks.items()}


def test_the_form_has_what_does_not_decide_which_tasks_are_equal(package: Path) -> None:
    assert set(load_package(package)[0].root.input_definitions.parameters) == {"root", "tracking_uri", "image"}


def test_a_task_and_what_follows_from_it() -> None:
    suite = lay_out("smoke", REQUEST, range(2), "/root", "r")
    assert [task.name for task in select(suite.tasks, start="joint-none-s1")] == [
        "joint-none-s1",
        "evaluate-student-none-s1",
        REPORT,
    ]


# ---- the command ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--suite", "tabel4"], "unknown suite 'tabel4': did you mean 'table4'"),
        (["--suite", "smoke", "--ablation", "kd", "--seed", "1"], "leave out --ablation --seed"),
        (["--suite", "smoke", "--seeds", "0"], "--seeds 0: a number of seeds, at least 1"),
        (["--suite", "smoke", "--seeds", "two"], "--seeds two: a number of seeds"),
        (["--seeds", "3"], "give --suite, or --seed for a single run"),
        (["--expectations"], "--expectations is of a suite's report"),
        (["--suite", "smoke", "--set", "optim.bach=3"], "did you mean 'optim.batch'"),
        (["--only", "joint", "--run", "r", "--suite", "smoke", "--local"], "leave out --recipe --suite"),
    ],
)
def test_mistakes_end_with_2_and_the_way_out(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "tiny", "--dry-run", *command]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_counts_shared_and_naive_executions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "smoke", "--recipe", "tiny", "--seeds", "2", "--dry-run", "--root", "runs/x"]) == 0
    text = capsys.readouterr().out
    assert "smoke: 2 rows x 2 seeds, at most 4 tasks at a time" in text
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines() if re.search(r"\d+ +\d+ +\d+$", line)}
    assert table["warmup"] == ["4", "4", "4"]
    assert table["alsn"] == ["2", "2", "4"]
    assert table["all"] == ["20", "20", "33"]
    assert set(table) == {*STAGES_OF_A_CELL, REPORT, "all"}
    assert "1 prepare, run shared, shared by 4" in text
    assert re.search(r"none +2 at a time; behind shared; waits for shared\n +9 tasks, Workflow \d+ KiB", text)
    assert not list(Path().iterdir())


def test_here_the_runner_bounds_the_tasks_at_a_time_and_on_a_cluster_lanes_do() -> None:
    command = ["--suite", "smoke", "--recipe", "tiny", "--seeds", "2", "--root", "runs", "--parallel", "3"]
    here, there = (decide(submit.parser().parse_args([*command, *more])) for more in (["--local"], []))
    assert (here.site.parallel, there.site.parallel) == (3, 3)
    assert {task.after for task in here.plan.tasks} == {()}
    assert not here.runs
    assert {run.name: run.lanes for run in there.runs} == {"shared": 3, "finetune": 2, "none": 1, "report": 1}
    assert decide(submit.parser().parse_args([*command[:-2], "--local"])).site.parallel == 1


def test_a_part_of_an_earlier_suite_is_in_the_runs_that_had_it(tmp_path: Path) -> None:
    site, root = tmp_path / "site.toml", str(tmp_path / "root")
    site.write_text('image = "registry.test/cmapkd@sha256:1"\nendpoint = "http://kfp.test"\nparallel = 2\n')
    command = ["--site", str(site), "--root", root]
    whole = decide(submit.parser().parse_args([*command, "--suite", "smoke", "--recipe", "tiny", "--run", "one"]))
    record_run(root, "one", whole.request)
    again = [*command, "--run", "one", "--from-stage", "joint-none-s0"]
    assert decide(submit.parser().parse_args([*again, "--parallel", "3"])).site.parallel == 3
    part = decide(submit.parser().parse_args(again))
    assert part.plan.redo == "yes"
    left = {run.name: part.left(run) for run in part.runs if part.left(run)}
    assert left == {"none": ("joint-none-s0", "evaluate-student-none-s0"), "report": (REPORT,)}


def test_data_compared_with_another_data_set_stands_while_that_one_does(tmp_path: Path) -> None:
    root = str(tmp_path)
    other = prepare.run(Request("tiny", root, overrides="data.size=30 data.splits=test"))
    # Drawings of shapes repeat, so what is looked for is allowed to be found.
    overrides = f"data.against={other} data.leakage_action=allow"
    prepare.run(Request("tiny", root, overrides=overrides))
    suite = lay_out("smoke", REQUEST | {"overrides": overrides}, range(1), root, "r")
    assert set(standing(suite)[0]) == {"prepare"}
    prepare.run(Request("tiny", root, overrides="data.size=30 data.splits=test", redo="yes"))
    assert set(standing(suite)[0]) == set()


def test_what_measures_time_is_known() -> None:
    def timed(*more: str) -> tuple[str, ...]:
        return decide(submit.parser().parse_args(["--recipe", "tiny", "--local", "--root", "runs", *more])).timed

    assert timed() == ()
    assert timed("--set", "evaluate.sets=efficiency") == ("efficiency-student", "efficiency-teacher")
    assert "evaluate-student" in timed("--set", "evaluate.tasks=retrieval,efficiency")


def test_a_root_that_cannot_be_read_from_here_is_left_to_the_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main(["--suite", "smoke", "--recipe", "tiny", "--seeds", "2", "--dry-run", "--root", "s3://box/root"]) == 0
    text = capsys.readouterr().out
    assert "what is finished already is left to the stages" in text
    assert re.search(r"all +20 +20 +33", text)


@pytest.mark.slow
def test_a_suite_runs_to_its_report_and_answers_at_once_again(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--suite", "smoke", "--recipe", "tiny", "--seeds", "2", "--local", "--root", "runs"]
    assert main(command) == 0
    report = Artifact.open("runs/runs/tiny-smoke-2seeds/report")
    found = json.loads(report.fetch("suite.json").read_text())
    assert [row["name"] for row in found["rows"]] == list(SUITES["smoke"])
    assert found["executions"] == {"shared": 20, "naive": 33}
    assert {cost["row"]: cost["updates"] for cost in found["costs"]} == {"finetune": [15], "none": [15]}
    assert found["differences"]["finetune"]["retrieval/mean_recall"]["n"] == 2
    first = capfd.readouterr().out
    assert "[20/20] suite-report done" in first
    assert main(command) == 0
    again = capfd.readouterr().out
    assert "[1/1] suite-report done" in again
    assert all(line in first and line in again for line in found["text"].splitlines())
    # A suite with one seed more takes what is there.
    assert main([*command[:5], "3", *command[6:], "--dry-run"]) == 0
    assert re.search(r"all +28 +9 +49", capfd.readouterr().out)


@pytest.mark.slow
def test_two_tasks_at_a_time_make_what_one_makes() -> None:
    """The recipe has one thread a process; a relative root and an absolute one are the same places."""
    here = str(Path.cwd() / "two")
    command = ["--suite", "smoke", "--recipe", "tiny", "--seeds", "1", "--local"]
    assert main([*command, "--root", "one"]) == 0
    assert main([*command, "--root", here, "--parallel", "2"]) == 0

    def made(root: str) -> dict[str, str]:
        places = [path.parent for path in Path(root).glob("*/*/manifest.json")]
        outputs = {f"{p.relative_to(root)}": Artifact.open(str(p)).manifest["outputs"] for p in places}
        kept = (".safetensors", ".parquet", "metrics.json")
        return {f"{p}/{n}": o["sha256"] for p, own in outputs.items() for n, o in own.items() if n.endswith(kept)}

    assert made("one") == made("two")
    assert any(name.startswith("joint/") for name in made("one"))
