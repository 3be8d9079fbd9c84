"""What a stage reads of the recipe and where its artifact lies cannot part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cmapkd_core.fingerprints import declared, reads
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.kd import Kd
from cmapkd_core.places import place, stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import find
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.view import UndeclaredReadError

LINE = (
    "reads method.kendall, which it has not declared, so recipes that differ in it would share one artifact. "
    'Do not read it, or declare it: add "method.kendall" to '
)


class Toy(Kd):
    """A method that reads a field of another one."""

    def __init__(self, recipe, student, teacher) -> None:
        super().__init__(recipe, student, teacher)
        self.kendall = recipe.method.kendall


def test_a_method_that_reads_a_field_undeclared_raises_and_its_line_leads_out(
    tmp_path: Path, train_tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once shared its artifact between kendall 0.0 and 0.9."""
    monkeypatch.setitem(METHODS, "kd", replace(METHODS["kd"], code=f"{__name__}:Toy"))
    low, high = (resolve("tiny", "kd", f"method.kendall={value}") for value in (0.0, 0.9))
    assert stage_url("root", "joint", low) == stage_url("root", "joint", high)
    with pytest.raises(UndeclaredReadError) as raised:
        train_tiny(tmp_path, "joint", "kd", "method.kendall=0.9")
    assert str(raised.value).startswith("stage joint " + LINE + '`reads` of METHODS["kd"] in cmapkd_core/method_specs')
    assert find(stage_url(str(tmp_path), "joint", high)) is None

    spec = METHODS["kd"]
    monkeypatch.setitem(METHODS, "kd", replace(spec, reads=(*spec.reads, "method.kendall")))
    assert stage_url("root", "joint", low) != stage_url("root", "joint", high)
    assert find(train_tiny(tmp_path, "joint", "kd", "method.kendall=0.9 schedule.fine.epochs=0")) is not None


@pytest.mark.parametrize("stage", ["prepare", "teacher", "toy"])
def test_a_stage_that_reads_a_field_undeclared_raises(tmp_path: Path, stage: str) -> None:
    request = Request("tiny", str(tmp_path), overrides="method.kendall=0.9")
    recipe = request.resolved()
    fields, may = (reads(recipe, stage), declared(recipe, stage)) if stage != "toy" else ({"seed": 0}, None)

    def body(context: Context) -> dict[str, float]:
        return {"kendall": context.recipe.method.kendall}

    url = place(request.root, stage, fields)
    with pytest.raises(UndeclaredReadError, match=f"^stage {stage} reads method.kendall,"):
        execute(request, stage, url=url, fields=fields, inputs={}, body=body, declared=may)
    assert find(url) is None


def test_a_field_left_out_of_the_place_at_its_default_may_be_read(tmp_path: Path) -> None:
    request = Request("tiny", str(tmp_path))
    recipe = request.resolved()
    fields, may = reads(recipe, "prepare"), declared(recipe, "prepare")
    assert "data.leakage_action" not in fields

    def body(context: Context) -> dict[str, float]:
        assert context.recipe.data.leakage_action == "refuse"
        return {}

    url = place(request.root, "prepare", fields)
    assert find(execute(request, "prepare", url=url, fields=fields, inputs={}, body=body, declared=may)) is not None
