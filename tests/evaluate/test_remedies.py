"""What the messages of evaluations, reports and training loops offer leads out: each offer is taken, and it passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmapkd_core.config import EfficiencyConfig, Phase, Rates
from cmapkd_core.engine.optim import choose_precision, trainable
from cmapkd_core.engine.passes import split
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.classnames import load_class_names
from cmapkd_core.evaluate.efficiency import _check
from cmapkd_core.evaluate.zeroshot import load_templates
from cmapkd_core.report.read.results import same
from cmapkd_core.report.read.run_inputs import check_run_names
from cmapkd_core.report.read.suite_inputs import check_suite_names
from cmapkd_core.report.tables.gains import recall_gain
from cmapkd_core.stages import cli, evaluate

CLASSES = ["n1", "n2"]
CPU = torch.device("cpu")


def classes(text: str, name: str = "names.txt") -> list[tuple[str, ...]]:
    Path(name).write_bytes(text.encode("latin-1"))
    return load_class_names(name, CLASSES)


def templates(text: str) -> tuple[str, ...]:
    Path("prompts.txt").write_bytes(text.encode("latin-1"))
    return load_templates("prompts.txt")


def groups(rate: float, params: int = 1) -> Any:
    owned = [nn.Parameter(torch.ones(1))] * params
    return trainable({"student": owned, "heads": []}, Phase(1, Rates(student=rate)), "fine")


def parts(pairs: int, accumulate: int) -> None:
    list(split({"x": torch.zeros(pairs)}, accumulate))


def efficiency(*batches: int, repeats: int = 1) -> None:
    _check(EfficiencyConfig(batches=batches, repeats=repeats))


def precision(name: str) -> Any:
    return choose_precision(name, CPU)


ONE, OTHER = {"a": {"rank": 1}}, {"b": {"rank": 1}}
# What is refused, what its message offers, and the same with the offer taken.
REMEDIES: list[tuple[Callable[[], Any], str, Callable[[], Any]]] = [
    (lambda: classes("n1\ttench"), "add them to it", lambda: classes("n1\ttench\nn2\tcat")),
    (lambda: classes("n1\ttench"), "leave evaluate.classes empty", lambda: load_class_names("", CLASSES)),
    (
        lambda: load_class_names("imagenet", CLASSES),
        "WordNet ids such as n01440764",
        lambda: load_class_names("imagenet", ["n01440764"]),
    ),
    (lambda: load_class_names("imagnet", CLASSES), "'imagenet'", lambda: load_class_names("imagenet", ["n01440764"])),
    (lambda: classes("n1 tench"), "has no tab: CLASS<tab>NAME", lambda: classes("n1\ttench\nn2\tcat")),
    (lambda: classes("n1\t\xe9"), "give a line CLASS<tab>NAME a class", lambda: classes("n1\ttench\nn2\tcat")),
    (lambda: classes("n1\ta\nn1\tb\nn2\tc"), "keep one entry", lambda: classes("n1\ta\nn2\tc")),
    (lambda: classes("n1\t\nn2\tc"), "needs one name or more", lambda: classes("n1\ta\nn2\tc")),
    (lambda: classes("[]", "n.json"), '{"class": "name", ..}', lambda: classes('{"n1": "a", "n2": "b"}', "n.json")),
    (lambda: classes("{", "n.json"), "is no JSON", lambda: classes('{"n1": "a", "n2": ["b"]}', "n.json")),
    (lambda: load_templates("clp"), "'clip'", lambda: load_templates("clip")),
    (lambda: templates(""), "'a photo of a {}.'", lambda: templates("a photo of a {}.")),
    (lambda: templates("\xe9"), "'a photo of a {}.'", lambda: templates("a photo of a {}.")),
    (lambda: templates("a photo of"), "needs {} once", lambda: templates("a photo of {}")),
    (lambda: efficiency(), "evaluate.efficiency.batches a size", lambda: efficiency(1)),
    (lambda: efficiency(1, repeats=0), "evaluate.efficiency.repeats a number of at least 1", lambda: efficiency(1)),
    (lambda: precision("fp8"), "one of auto, fp32", lambda: precision("auto")),
    (lambda: precision("bf16"), "use auto or fp32", lambda: precision("fp32")),
    (lambda: groups(0.0), "phase fine trains nothing: set one of its lr.student", lambda: groups(1e-4)),
    (lambda: parts(6, 4), "an optim.batch that is a multiple of 4", lambda: parts(8, 4)),
    (
        lambda: check_run_names(["vqa/x"]),
        "TASK/ROLE with ROLE one of",
        lambda: check_run_names(["vqa/student"]),
    ),
    (
        lambda: check_suite_names(["evaluation/none/0", "vqa/nine/0"]),
        "'none'",
        lambda: check_suite_names(["evaluation/none/0", "vqa/none/0"]),
    ),
    (lambda: same({"a": {"n": 1}, "b": {"n": 2}}), "on the same shards", lambda: same({"a": {"n": 2}, "b": {"n": 2}})),
    (
        lambda: recall_gain({"i2t": ONE}, {"i2t": OTHER}, (1,), ("i2t",)),
        "on the same shards and split",
        lambda: recall_gain({"i2t": ONE}, {"i2t": ONE}, (1,), ("i2t",)),
    ),
]


@pytest.mark.parametrize("at", range(len(REMEDIES)), ids=[offer for _, offer, _ in REMEDIES])
def test_what_a_message_offers_leads_out(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, offer, remedy = REMEDIES[at]
    with pytest.raises(InputError) as caught:
        wrong()
    assert offer in str(caught.value)
    remedy()


PICTURES = {  # in split test: of each its class and its captions
    "plain": [("", ["a"]), ("", ["b"])],
    "classed": [("cat", ["a"]), ("dog", ["b"])],
}


VAL = ("--set", "evaluate.split=val")


def given(data: str, task: str = "retrieval", *more: str) -> list[str]:
    """A command of stage evaluate over pictures that lie in `data`, for the untrained student."""
    Path(data).mkdir(exist_ok=True)
    rows = []
    for n, (name, captions) in enumerate(PICTURES[data]):
        noise = np.random.default_rng(n).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(f"{data}/{n}.png")
        rows.append({"key": str(n), "file": f"{n}.png", "captions": captions, "class": name, "split": "test"})
    Path(data, "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    split = ["--set", "data.splits=test"]
    asked = ["--recipe", "tiny", "--root", "root", "--data", f"folder:{data}", "--model", "recipe:student"]
    return [*asked, "--task", task, *split, *more]


@pytest.mark.parametrize(
    ("wrong", "offer", "remedy"),
    [
        (("plain", "zeroshot"), "give the source's rows classes", ("classed", "zeroshot")),
        (("plain", "zeroshot"), "or leave the task out", ("plain",)),
        (("plain", "retrieval", *VAL), "name another with evaluate.split", ("plain",)),
        (("plain", "captioning"), "or leave the task out", ("plain",)),
    ],
)  # fmt: skip
def test_what_a_stage_offers_leads_out(
    wrong: tuple[str, ...], offer: str, remedy: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(evaluate.run, given(*wrong)) == 2
    said = capsys.readouterr().err
    print(said)
    assert offer in said
    assert cli.main(evaluate.run, given(*remedy)) == 0
