"""Stage levels on the tiny recipe, and its figures in a report of that run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.places import levels_url
from cmapkd_core.request import Request
from cmapkd_core.stages import levels, report
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.method_io import build_method


@pytest.fixture(scope="module")
def trained(
    quick_pdf: None, tmp_path_factory: pytest.TempPathFactory, tiny_shards: str, tiny_teacher: str, tiny_warmup: str
) -> tuple[Request, dict[str, str]]:
    """A joint stage after the tiny warm-up, and the URLs that stage levels reads."""
    from cmapkd_core.stages import train

    torch.set_num_threads(1)
    request = Request("tiny", str(tmp_path_factory.mktemp("root")))
    given = {"shards": tiny_shards, "teacher": tiny_teacher}
    alsn = train.run(request, stage="alsn", init=tiny_warmup, **given)
    return request, {**given, "joint": train.run(request, stage="joint", init=alsn, **given)}


def test_table_numbers_and_place(trained: tuple[Request, dict[str, str]]) -> None:
    request, given = trained
    url = levels.run(request, **given)
    assert url == levels_url(request.root, request.resolved())
    artifact = Artifact.open(url)
    metrics = json.loads(artifact.fetch("metrics.json").read_text())
    table = pq.read_table(artifact.fetch("levels.parquet"))
    shards = open_shards(Artifact.open(given["shards"]))
    assert table.num_rows == metrics["pairs"] == shards.count("test")
    assert table["key"].to_pylist() == shards.keys("test")
    assert table["caption"].to_pylist() == [texts[0] for texts in shards.table("test")["captions"].to_pylist()]
    teacher, after = (np.stack(table[f"{m}_P5"].to_numpy()).astype(float) for m in ("teacher", "after"))
    cosines = (teacher * after).sum(1) / np.linalg.norm(teacher, axis=1) / np.linalg.norm(after, axis=1)
    assert metrics["cosine/P5/after"] == pytest.approx(1 - cosines.mean(), abs=2e-3)  # the table is fp16
    assert {
        f"{kind}/{n}/{when}" for kind in ("cosine", "cka") for n in ("P2", "L4") for when in ("before", "after")
    } <= set(metrics)
    assert set(artifact.manifest["inputs"]) == {"shards", "teacher", "joint"}


def test_before_is_the_recipes_untrained_student(trained: tuple[Request, dict[str, str]]) -> None:
    """Its levels by hand: the method as it starts, the first test picture alone."""
    from types import SimpleNamespace

    from cmapkd_core.data.loader import eval_batches

    request, given = trained
    table = pq.read_table(Artifact.open(levels.run(request, **given)).fetch("levels.parquet"))
    known = {"inputs": {"teacher": Artifact.open(given["teacher"])}, "scratch": Path(request.root)}
    context = SimpleNamespace(**known, say=print, introduce=lambda role, identity: None)
    method, _ = build_method(request.resolved(), context)  # type: ignore[arg-type]
    method.eval()
    shards, side = open_shards(Artifact.open(given["shards"])), side_of(method.student)
    _, images = next(iter(eval_batches(shards, "test", side, batch=1, workers=0)))
    with torch.no_grad():
        found = method.levels(  # type: ignore[operator]
            method.student.vision(images),
            method.student.text(side.tokenize([table["caption"][0].as_py()])),
            ("P2", "L1"),
        )
    np.testing.assert_allclose(found.vectors["P2"][0].numpy(), table["before_P2"][0].as_py(), atol=2e-3)


def test_again_it_answers_at_once(trained: tuple[Request, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    request, given = trained
    levels.run(request, **given)
    capsys.readouterr()
    levels.run(request, **given)
    assert "already complete" in capsys.readouterr().out


def test_a_method_without_levels_says_so_and_ends_well(
    train_tiny: Callable[..., str], tiny_shards: str, tiny_teacher: str, tmp_path: Path
) -> None:
    warmup = train_tiny(tmp_path, "warmup", "finetune")
    request = Request("tiny", str(tmp_path), ablation="finetune", run="none")
    url = levels.run(request, shards=tiny_shards, teacher=tiny_teacher, joint=warmup)
    assert json.loads(Artifact.open(url).fetch("levels.json").read_text()) == {
        "missing": "The method contrastive has no levels."
    }
    page = report.run(request, artifacts={"levels": url})
    assert "The method contrastive has no levels." in Artifact.open(page).fetch(report.RUN.html).read_text()


@pytest.mark.heavy
def test_a_report_with_levels_has_figures_five_and_six(trained: tuple[Request, dict[str, str]]) -> None:
    request, given = trained
    named = Request("tiny", request.root, run="drawn")
    url = report.run(named, artifacts={"levels": levels.run(named, **given), **given})
    artifact = Artifact.open(url)
    names = artifact.files()
    assert {"paper/figures/figure5_after_training.pdf", "paper/figures/figure6_teacher_one_pair.png"} <= set(names)
    assert {"paper/README.txt", "paper/numbers.json", "paper/tables/table2_retrieval.tex"} <= set(names)
    text = artifact.fetch(report.RUN.html).read_text()
    assert "Distance of the student&#39;s levels to the teacher&#39;s" in text
    assert "data:image/png;base64" in text  # the pair's picture stands in the figure


@pytest.mark.parametrize(
    ("other", "differs"),
    [({"overrides": "pyramid.width=24"}, "pyramid.width: 16 -> 24"), ({"seed": "7"}, "seed: 0 -> 7")],
)
def test_levels_of_another_recipe_are_refused(
    trained: tuple[Request, dict[str, str]], other: dict[str, str], differs: str
) -> None:
    request, given = trained
    with pytest.raises(InputError, match=f"--joint .* was made by another recipe than this one .*\n.*{differs}"):
        levels.run(Request("tiny", request.root, **other), **given)
