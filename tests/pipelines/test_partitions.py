"""Data prepared in partitions, as tasks: of a run, of a part of one, of a suite, compiled and run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cmapkd.pipelines import size, submit
from cmapkd.pipelines.local import run_package
from cmapkd.pipelines.package import Plan, select
from cmapkd.pipelines.submission import Submission, decide
from cmapkd.pipelines.suite import lay_out, standing
from cmapkd.pipelines.tasks import tasks_of
from cmapkd_core.errors import InputError
from cmapkd_core.fields import override
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, prepare_part
from cmapkd_core.stages.artifact import Artifact

FIVE = [f"prepare-part-{number}" for number in range(1, 6)]


def decided(*more: str, root: str = "s3://box/runs") -> Submission:
    return decide(submit.parser().parse_args(["--recipe", "tiny", "--run", "r", "--root", root, *more]))


def tasks_in(package: Path) -> dict[str, Any]:
    ir: dict[str, Any] = next(yaml.safe_load_all(package.read_text()))
    found: dict[str, Any] = ir["root"]["dag"]["tasks"]
    return found


def test_five_partitions_are_five_tasks_more_in_the_package_and_its_edges(tmp_path: Path) -> None:
    one = decided("--set", "data.partitions=1")
    assert one.tasks == decided().tasks
    job = decided("--set", "data.partitions=5")
    assert [task.name for task in job.tasks] == [*FIVE, *(task.name for task in one.tasks)]
    assert {name: job.urls[name] for name in one.urls} == one.urls, "partitions are in no place but the parts' own"
    package = job.package(tmp_path / "five.yaml")
    tasks = tasks_in(package)
    assert len(tasks) == len(tasks_in(one.package(tmp_path / "one.yaml"))) + 5 <= 25
    assert set(tasks["prepare"]["dependentTasks"]) == set(FIVE)
    assert not any("dependentTasks" in tasks[name] for name in FIVE), "they run side by side"
    assert size.measure(package).fits


@pytest.mark.parametrize(("flags", "chosen"), [({"only": "prepare"}, FIVE), ({"start": "prepare-part-4"}, FIVE)])
def test_what_reads_parts_runs_again_with_all_of_them(flags: dict[str, str], chosen: list[str]) -> None:
    tasks = tasks_of(override(resolve("tiny"), {"data.partitions": 5}))
    names = [task.name for task in select(tasks, **flags)]
    assert names[:6] == [*chosen, "prepare"]
    assert len(names) == (6 if "only" in flags else len(tasks))
    assert [task.name for task in select(tasks, only="prepare-part-2")] == ["prepare-part-2"]
    assert next(task.name for task in select(tasks, start="joint")) == "joint"


def test_data_of_an_evaluation_is_prepared_in_one_piece() -> None:
    job = decided("--set", "data.partitions=3 evaluate.sets=vqa=scenes_vqa")
    tasks = {task.name: task for task in job.tasks}
    assert len(tasks["prepare"].collects) == 3
    assert not tasks["prepare-scenes-vqa"].collects


def test_no_partition_is_none() -> None:
    with pytest.raises(InputError, match=r"data\.partitions=0: it must be at least 1"):
        resolve("tiny", overrides="data.partitions=0")


REQUEST = {"recipe": "tiny", "overrides": "data.partitions=2", "data": ""}


def test_a_suite_has_the_parts_once_and_none_of_a_set_that_stands(tmp_path: Path) -> None:
    root = str(tmp_path)
    suite = lay_out("smoke", REQUEST, range(2), root, "r")
    names = [task.name for task in suite.tasks]
    assert names[:3] == ["prepare-part-1", "prepare-part-2", "prepare"]
    assert sum(name.startswith("prepare") for name in names) == 3
    assert standing(suite) == ({}, {})
    asked = Request("tiny", root, overrides="data.partitions=2")
    parts = {f"part-{number}": prepare_part.run(asked, part=f"{number}", of="2") for number in (1, 2)}
    assert standing(suite)[0] == {}, "parts wait for what joins them"
    url = prepare.run(asked, artifacts=parts)
    assert standing(suite)[0] == {name: suite.urls[name] for name in names[:3]}
    assert suite.urls["prepare"] == url


@pytest.mark.heavy
def test_a_run_here_joins_two_parts_to_the_bytes_of_one(tmp_path: Path) -> None:
    job = decided("--local", "--set", "data.partitions=2", root=str(tmp_path / "parts"))
    prepared = tuple(task for task in job.tasks if task.name.startswith("prepare"))
    package = job.package(tmp_path / "package.yaml", plan=Plan(prepared))
    given = job.arguments | {"tracking_uri": ""}
    outputs = run_package(package, given, "r", [task.name for task in prepared], parallel=2)
    assert outputs == {task.name: job.urls[task.name] for task in prepared}
    whole = prepare.run(Request("tiny", str(tmp_path / "whole")))
    made = {name: Artifact.open(url).manifest["outputs"] for name, url in (("p", job.urls["prepare"]), ("w", whole))}
    assert made["p"] | {"journal.jsonl": 0} == made["w"] | {"journal.jsonl": 0}


def test_parts_that_were_joined_are_not_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    asked = Request("tiny", root, overrides="data.partitions=2", run="first")
    parts = {f"part-{number}": prepare_part.run(asked, part=f"{number}", of="2") for number in (1, 2)}
    prepare.run(asked, artifacts=parts)
    capsys.readouterr()
    assert submit.main(["--verify", "first", "--root", root]) == 1
    said = capsys.readouterr().out
    assert "ok      prepare/" in said
    assert "missing teacher/" in said
    assert "prepare-part" not in said
