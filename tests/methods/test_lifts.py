"""From the student's joint space into a teacher's of another width: one map of both modalities, or one each."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import reads
from cmapkd_core.methods.lifts import Lifts, NoLift
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.method_io import load_method_state, save_method_state

FD = "optim.batch=5 method.weights.fd=1"


def lifts(one_map: bool, own: int = 4, wide: int = 8) -> Lifts:
    torch.manual_seed(0)
    return Lifts(SimpleNamespace(spec=SimpleNamespace(embed_dim=own)), SimpleNamespace(width=wide), one_map)


def learned(one_map: bool, pairs: int = 32) -> torch.Tensor:
    """Cosines of a student's pairs [n], after fd alone toward a teacher whose pictures lie where their captions do."""
    generator = torch.Generator().manual_seed(1)
    wanted = F.normalize(torch.randn(pairs, 4, generator=generator) @ torch.randn(4, 8, generator=generator), dim=1)
    image, caption = (torch.randn(pairs, 4, generator=generator).requires_grad_() for _ in range(2))
    maps = lifts(one_map)
    optimizer = torch.optim.Adam([image, caption, *maps.parameters()], lr=0.02)
    for _ in range(1500):
        there = maps.image.into(image, image), maps.text.into(caption, caption)
        loss = sum((1 - (x * wanted).sum(1)).mean() for x in there)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.002  # both reach the teacher's embeddings
    return F.cosine_similarity(image, caption).detach()


def test_with_one_map_a_student_that_reaches_the_teacher_has_its_pairs_side_by_side():
    one, two = learned(one_map=True), learned(one_map=False)
    assert one.min() > 0.99
    assert two.mean() < 0.5


def test_one_map_starts_with_the_angles_of_the_students_space():
    maps, generator = lifts(one_map=True), torch.Generator().manual_seed(2)
    image, caption = (torch.randn(5, 4, generator=generator) for _ in range(2))
    ours = F.normalize(image, dim=1) @ F.normalize(caption, dim=1).T
    theirs = maps.image.into(image, image) @ maps.text.into(caption, caption).T
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert [tuple(p.shape) for p in maps.parameters()] == [(8, 4)]
    assert [tuple(p.shape) for p in lifts(one_map=False).parameters()] == [(8, 4), (8,), (8, 4), (8,)]


@pytest.mark.parametrize("row", ["one_map", "clip_kd_one_map", "clip_rd_one_map"])
def test_fd_through_one_map_written_out(row, make_method, make_teacher, batch, ask):
    recipe = resolve("tiny", row, FD)
    teacher, pairs = make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    said = ask(teacher, pairs, method.active(phase))
    terms, model = method(pairs, said, phase, 0).terms, method.student.model
    image = F.normalize(
        model.encode_image(pairs.images["student"], normalize=False) @ method.lifts.image.weight.T, dim=1
    )
    text = F.normalize(model.encode_text(pairs.tokens["student"], normalize=False) @ method.lifts.image.weight.T, dim=1)
    if row == "one_map":
        fd = sum((1 - (x * y).sum(1)).mean() for x, y in ((image, said.image), (text, said.text)))
        assert terms["fd"].item() == pytest.approx(fd.item(), rel=1e-4)
    else:
        mse = F.mse_loss(image, said.image) + F.mse_loss(text, said.text)
        assert terms["mse"].item() == pytest.approx(mse.item(), rel=1e-4)
    grouped = [p for params in method.groups(phase).values() for p in params]
    assert sum(p is method.lifts.image.weight for p in grouped) == 1


def test_nothing_is_advised_where_it_was_not_measured():
    assert lifts(one_map=False, own=8, wide=4).advice() == []
    assert lifts(one_map=False).advice() != []


def test_equal_widths_have_no_map():
    for one_map in (True, False):
        maps = lifts(one_map, own=8)
        assert [type(one) for one in (maps.image, maps.text)] == [NoLift, NoLift]


def test_one_map_is_kept_as_one_and_two_are_not_taken_for_it(tmp_path, make_method, make_teacher):
    teacher = make_teacher()
    first, second = (make_method(resolve("tiny", "one_map", FD), teacher) for _ in range(2))
    with torch.no_grad():
        first.lifts.image.weight.mul_(2)
    save_method_state(first, tmp_path / "one", stage="joint")
    load_method_state(second, tmp_path / "one")
    assert second.lifts.image is second.lifts.text
    assert torch.equal(second.lifts.text.weight, first.lifts.image.weight)
    save_method_state(make_method(resolve("tiny", "two_maps", FD), teacher), tmp_path / "two", stage="joint")
    with pytest.raises(InputError, match=r"lifts\.image\.bias"):
        load_method_state(second, tmp_path / "two")


def test_recipes_of_narrow_students_have_one_and_baselines_what_was_published():
    has = {name: resolve(name).method.one_map for name in ("paper", "calibrated", "own")}
    assert has == {"paper": False, "calibrated": True, "own": True}  # the first as its outline
    for row in ("clip_kd", "clip_rd"):
        assert not resolve("calibrated", row).method.one_map
        assert resolve("calibrated", f"{row}_one_map").method.one_map


def test_artifacts_made_before_keep_their_places_and_others_get_one_of_their_own():
    for row in ("none", "clip_kd", "clip_rd"):
        assert "method.one_map" not in reads(resolve("bench", row), "joint")
    assert reads(resolve("calibrated"), "joint")["method.one_map"] is True
    assert reads(resolve("bench", "clip_kd_one_map"), "warmup")["method.one_map"] is True
    assert "method.one_map" not in reads(resolve("calibrated", "finetune"), "joint")


def test_a_student_with_two_maps_is_told_of_the_other_way(make_method, make_teacher):
    teacher = make_teacher()
    said = [
        make_method(resolve("tiny", row, over), teacher).begin(teacher)
        for row, over in (("two_maps", FD), ("one_map", FD), ("two_maps", ""), ("clip_kd", ""))
    ]
    assert [len(lines) for lines in said] == [1, 0, 0, 0]
    assert "method.one_map=true" in said[0][0]
    assert "has 24 numbers, the teacher's 32" in said[0][0]
