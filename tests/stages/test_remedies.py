"""What the messages of stages offer leads out: each offer is taken, and what was refused passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.suite_inputs import check_suite_names
from cmapkd_core.request import Request
from cmapkd_core.stages import gate, prepare, report, teacher, train

QUICK = "teacher_fit.space.epochs=0 teacher_fit.pyramid.epochs=0 teacher_fit.batch=2 optim.batch=2 data.fraction=1 "
QUICK += "schedule.coarse.epochs=1 schedule.medium.epochs=0 schedule.fine.epochs=1 "
STORES = "teacher_fit.views=1 teacher_fit.store=embeddings "


class World:
    """Six pictures, and stages over them as their command lines run them; what they print is theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, classes, splits in (("plain", "", "train"), ("classed", "ab", "train"), ("held", "", "test")):
            (folder / name).mkdir()
            rows = []
            for n in range(6):
                Image.new("RGB", (32, 32), (40 * n, 80, 200 - 30 * n)).save(folder / name / f"{n}.png")
                row = {
                    "key": str(n),
                    "file": f"{n}.png",
                    "caption": f"picture {n}",
                    "split": "test" if n > 4 else splits,
                }
                rows.append(json.dumps(row | ({"class": classes[n % 2]} if classes else {})))
            (folder / name / "captions.jsonl").write_text("\n".join(rows))

    def request(self, overrides: str = "", data: str = "plain", row: str = "finetune") -> Request:
        return Request("tiny", str(self.folder / "root"), row, QUICK + overrides, data=f"folder:{self.folder / data}")

    def shards(self, data: str = "plain", overrides: str = "") -> str:
        return prepare.run(self.request(overrides, data))

    def teacher(self, overrides: str = "", data: str = "plain") -> str:
        return teacher.run(self.request(overrides, data, row="kd"), shards=self.shards(data, overrides))

    def train(self, overrides: str = "", data: str = "plain", row: str = "finetune", **more: str) -> str:
        overrides += " data.splits=test" if data == "held" else ""
        given = {"stage": "warmup", "shards": self.shards(data, overrides), "teacher": ""} | more
        return train.run(self.request(overrides, data, row), **given)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def told(message: str) -> None:
    raise InputError(message)


Call = Callable[[World], Any]
WAITS = '["run", "its id", ["place/of/artifact"]]'
# What is refused, what its message offers, and the same with the offer taken.
LISTED = f"[{WAITS}, ..]"
REMEDIES: dict[str, tuple[Call, str, Call]] = {
    "no training pairs": (
        lambda w: w.train(data="held"),
        "train among data.splits",
        lambda w: w.train("data.splits=train"),
    ),
    "no classes": (
        lambda w: w.train(row="promptkd_cls", teacher=w.teacher()),
        "give the source's rows classes",
        lambda w: w.train(row="promptkd_cls", data="classed", teacher=w.teacher(data="classed")),
    ),
    "no classes, promptkd": (
        lambda w: w.train(row="promptkd_cls", teacher=w.teacher()),
        "or use method promptkd",
        lambda w: w.train(row="promptkd", teacher=w.teacher()),
    ),
    "another width": (
        lambda w: w.train("pyramid.width=8", row="fitnet_joint", teacher=w.teacher()),
        "run stage teacher with this one, which makes",
        lambda w: w.train("pyramid.width=8", row="fitnet_joint", teacher=w.teacher("pyramid.width=8")),
    ),
    "nothing stored": (
        lambda w: w.train(STORES, row="kd", teacher=w.teacher()),
        "run stage teacher with this one, which makes",
        lambda w: w.train(STORES, row="kd", teacher=w.teacher(STORES)),
    ),
    "nothing stored, none asked for": (
        lambda w: w.train(STORES, row="kd", teacher=w.teacher()),
        "ask for the recipe that it had",
        lambda w: w.train(row="kd", teacher=w.teacher()),
    ),
    "something else stored": (
        lambda w: w.train(f"{STORES} data.crop_scale=0.5,1", row="kd", teacher=w.teacher(STORES)),
        "run stage teacher with this one, which makes",
        lambda w: w.train(
            f"{STORES} data.crop_scale=0.5,1", row="kd", teacher=w.teacher(f"{STORES} data.crop_scale=0.5,1")
        ),
    ),
    "another method's init": (
        lambda w: w.train(stage="joint", init=w.train(row="clip_kd", teacher=w.teacher())),
        "run stage warmup with this one, which makes",
        lambda w: w.train(stage="joint", init=w.train()),
    ),
    "another stage's artifact": (
        lambda w: w.train(row="kd", teacher=w.shards()),
        "give the artifact of a stage that writes it",
        lambda w: w.train(row="kd", teacher=w.teacher()),
    ),
    "an artifact that is not there": (
        lambda w: w.train(shards=w.shards().replace("prepare/", "prepare/0")),
        "run it first",
        lambda w: w.train(shards=w.shards()),
    ),
    "two data sets": (
        lambda w: prepare.run(w.request(), source="emoji"),
        "leave one out",
        lambda w: prepare.run(w.request()),
    ),
    "no row of a report": (
        lambda w: check_suite_names([]),
        "has no evaluation/ROW/SEED",
        lambda w: check_suite_names(["evaluation/no_alsn/0"]),
    ),
    "a row without a seed": (
        lambda w: check_suite_names(["evaluation/no_alsn"]),
        "none of evaluation/ROW/SEED",
        lambda w: check_suite_names(["evaluation/no_alsn/0"]),
    ),
    "no number": (lambda w: report.number("naive", "x"), "such as 20", lambda w: report.number("naive", "20")),
    "a maker that ended": (  # of a suite with a point in its name
        lambda w: told(gate._why(gate.Maker("my.suite.none", "id", ("url",)), ["url"])),
        "submit.py --retry my.suite (",
        lambda w: None,  # tests/pipelines/test_suite_runs.py retries a suite by its name
    ),
    "no list": (lambda w: gate._read("waits", "x"), LISTED, lambda w: gate._read("waits", f"[{WAITS}]")),
    "no entry": (lambda w: gate._read("follows", WAITS), LISTED, lambda w: gate._read("follows", f"[{WAITS}]")),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_what_a_message_offers_leads_out(world: World, name: str) -> None:
    wrong, offer, remedy = REMEDIES[name]
    with pytest.raises(InputError) as caught:
        wrong(world)
    assert offer in str(caught.value)
    remedy(world)
