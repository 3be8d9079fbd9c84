"""Several teachers: terms are means over them, fd is of their embeddings side by side."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.ensemble import recipe_of_teacher, require_heads
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import reads
from cmapkd_core.losses.embeddings import bank_divergence, interactive, soft_cross_entropy, squared_error
from cmapkd_core.losses.relation import sample_relation
from cmapkd_core.losses.similarity import relative_entropy
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.global_batch import embedding_grams
from cmapkd_core.models.frozen_teacher import Teacher, beside
from cmapkd_core.recipes import resolve

ROWS = ("kd", "kd_standardise", "mobileclip", "clip_kd", "clip_rd", "no_alsn")
SIDES = {"tiny-teacher": "teacher", "tiny-student": "student"}  # of `batch`: what each model reads
TAU = 2.0


@pytest.fixture
def taught(make_method, make_teacher, tiny_models, batch):
    """`taught(row, further)`: a row's method with these models as teachers beside tiny-teacher, and what they give."""

    def make(row: str, *further: str) -> SimpleNamespace:
        bank = " method.weights.bank=1" if row == "no_alsn" else ""
        recipe, first, pairs = resolve("tiny", row, f"optim.batch=5 method.kd_tau={TAU}{bank}"), make_teacher(), batch()
        others = {name: tiny_models(name) for name in further}
        if "tiny-student" in others:  # at another scale than tiny-teacher
            others["tiny-student"].model.logit_scale.data.sub_(0.7)
        teacher = Teacher(first.backbone, first.levels, first.alpha, list(others.values()))
        method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
        alone = teacher.targets(pairs.images["teacher"], pairs.tokens["teacher"], method.active(phase))
        outputs = [
            {
                "image": teacher.image_of(one, pairs.images[SIDES[name]]),
                "text": teacher.text_of(one, pairs.tokens[SIDES[name]]),
            }
            for name, one in others.items()
        ]
        said = teacher.joined(alone, outputs)
        each = [(alone.image, alone.text, alone.scale)]
        each += [(o["image"], o["text"], one.scale()) for o, one in zip(outputs, others.values(), strict=True)]

        def terms() -> dict[str, torch.Tensor]:
            return method(pairs, said, phase, 0).terms

        return SimpleNamespace(method=method, said=said, each=each, pairs=pairs, terms=terms, alone=alone)

    return make


def as_twice(one, two) -> None:
    """Give the method of a teacher that stands there twice the lifts and the bank of the method that has it once."""
    with torch.no_grad():
        for kind in ("image", "text") if hasattr(one, "lifts") else ():
            for name, x in getattr(one.lifts, kind).named_parameters():
                getattr(getattr(two.lifts, kind), name).copy_(torch.cat((x, x)))
    if hasattr(one, "bank"):
        two.keep(*(beside((x, x)) for x in (one.bank.image, one.bank.text)))


@pytest.mark.parametrize("row", ROWS)
def test_a_teacher_that_stands_there_twice_gives_the_terms_of_one(taught, row):
    one, two = taught(row), taught(row, "tiny-teacher")
    as_twice(one.method, two.method)
    ours, theirs = two.terms(), one.terms()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name].item(), rel=5e-5, abs=1e-6), name


def test_an_embedding_of_all_is_a_unit_vector_with_the_mean_of_their_cosines(taught):
    said, each = (found := taught("kd", "tiny-student")).said, found.each
    widths = [image.shape[1] for image, _, _ in each]
    assert said.widths == tuple(widths)
    assert torch.allclose(said.image.norm(dim=1), torch.ones(5))
    assert torch.allclose(said.image @ said.text.T, sum(v @ t.T for v, t, _ in each) / 2, atol=1e-6)
    for part, (image, _, _) in zip(said.each(said.image), each, strict=True):
        assert torch.allclose(part, image, atol=1e-6)
    assert [x.item() for x in said.scales()] == [scale.item() for _, _, scale in each]
    assert len({x.item() for x in said.scales()}) == 2
    assert found.alone.each(found.alone.image)[0] is found.alone.image


def mean(values):
    values = [x.item() for x in values]
    assert abs(values[0] - values[1]) > 1e-4 * abs(values[0])  # two teachers that can be told apart
    return sum(values) / 2


def test_terms_of_similarities_are_means_over_two_teachers(taught):
    kd, mobileclip = taught("kd", "tiny-student"), taught("mobileclip", "tiny-student")
    student, pairs = kd.method.student, kd.pairs
    v, t = student.encode_image(pairs.images["student"]), student.encode_text(pairs.tokens["student"])
    ours, theirs = student.scale() * v @ t.T, [s * image @ text.T for image, text, s in kd.each]
    expected = mean(relative_entropy(z, ours, TAU) for z in theirs)
    assert kd.terms()["kd"].item() == pytest.approx(expected, rel=1e-4)
    assert mobileclip.terms()["soft"].item() == pytest.approx(
        mean(soft_cross_entropy(z, ours) for z in theirs), rel=1e-4
    )


def test_terms_in_the_teachers_spaces_written_out(taught):
    """One lift leads into the space of both; each has its part of it, and fd compares the whole."""
    for row in ("no_alsn", "clip_kd"):
        found = taught(row, "tiny-student")
        method, pairs, width = found.method, found.pairs, found.said.widths[0]
        model = method.student.model
        raw = method.lifts.image(model.encode_image(pairs.images["student"], normalize=False))
        sentence = method.lifts.text(model.encode_text(pairs.tokens["student"], normalize=False))

        def parts(x, width=width):
            return F.normalize(x[:, :width], dim=1), F.normalize(x[:, width:], dim=1)

        each = [*zip(parts(raw), parts(sentence), found.each, strict=True)]
        terms = found.terms()
        scales = [s if row == "no_alsn" else method.log_scale.exp() for *_, (_, _, s) in each]
        crossed = [(s * h @ text.T, s * g @ image.T) for s, (h, g, (image, text, _)) in zip(scales, each, strict=True)]
        icl = mean(interactive(*both) for both in crossed)
        assert terms["icl"].item() == pytest.approx(icl, rel=1e-4)
        if row == "clip_kd":
            mse = mean(squared_error(h, image) + squared_error(g, text) for h, g, (image, text, _) in each)
            assert terms["mse"].item() == pytest.approx(mse, rel=1e-4)
            continue
        whole = [torch.cat([own[i] for _, _, own in each], dim=1) for i in (0, 1)]  # of norm sqrt(2)
        fd = sum(
            (1 - (F.normalize(x, dim=1) * y).sum(1) / 2**0.5).mean()
            for x, y in zip((raw, sentence), whole, strict=True)
        )
        assert terms["fd"].item() == pytest.approx(fd.item(), rel=1e-4)
        banks = zip(parts(method.bank.image), parts(method.bank.text), strict=True)
        bank = mean(
            0.5 * (bank_divergence(h, image, texts, s, TAU) + bank_divergence(g, text, images, s, TAU)).mean()
            for (h, g, (image, text, s)), (images, texts) in zip(each, banks, strict=True)
        )
        assert terms["bank"].item() == pytest.approx(bank, rel=1e-4)


def test_the_relation_of_embeddings_is_a_mean_and_levels_are_the_first_ones(taught):
    one, two = taught("no_alsn"), taught("no_alsn", "tiny-student")
    alone, both, student = one.terms(), two.terms(), one.method.student
    own = embedding_grams(
        student.encode_image(one.pairs.images["student"]), student.encode_text(one.pairs.tokens["student"])
    )
    relations = [sample_relation(own, embedding_grams(image, text)) for image, text, _ in two.each]
    expected = alone["relation"] - relations[0] + mean(relations)
    assert both["relation"].item() == pytest.approx(expected.item(), rel=1e-4)
    for name in ("intra", "align", "task"):
        assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-5), name


def test_the_student_pays_for_a_second_teacher_by_its_gradient(taught):
    for row in ROWS:
        one, two = taught(row), taught(row, "tiny-student")
        gradients = []
        for found in (one, two):
            sum(found.terms().values()).backward()
            gradients.append(found.method.student.model.visual.proj.grad)
        assert not torch.allclose(*gradients, rtol=1e-2), row


# ---- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["prepare", "teacher", "warmup", "alsn", "joint"])
def test_further_teachers_are_in_the_keys_of_what_they_teach(stage):
    for row in ("none", "kd", "finetune"):
        usual, two = resolve("tiny", row), resolve("tiny", row, "teachers=tiny-student:random")
        assert "teachers" not in reads(usual, stage)
        taught = stage not in ("prepare", "teacher") and METHODS[two.method.name].teacher
        expected = {"teachers": ("tiny-student:random",)} if taught else {}
        assert reads(two, stage) == reads(usual, stage) | expected


def test_a_further_teacher_is_fitted_as_the_only_one_but_for_its_levels():
    views = "teacher_fit.views=2 teacher_fit.store=levels teacher_fit.levels=int8"
    two = resolve("tiny", overrides=f"teachers=tiny-student:random {views}")
    same = "teacher.model=tiny-student teacher_fit.views=2 teacher_fit.pyramid.epochs=0"
    assert reads(recipe_of_teacher(two, "teacher-2"), "teacher") == reads(resolve("tiny", overrides=same), "teacher")
    assert recipe_of_teacher(two, "teacher") is two


@pytest.mark.parametrize(
    ("row", "teachers", "message"),
    [
        (
            "fitnet",
            "tiny-student:random",
            r"method fitnet has one teacher.*leave them out.*\(.*mobileclip\)",
        ),
        ("kd", "tiny-student", r"teachers=tiny-student: a further teacher is NAME:WEIGHTS"),
        ("kd", "s3://box/teacher/1", "a further teacher is NAME:WEIGHTS"),
        ("kd", "tiny-teacher:random", "has tiny-teacher:random a second time"),
        ("kd", "tiny-student:random,tiny-student:random", "has tiny-student:random a second time"),
    ],
)
def test_what_cannot_teach_is_refused(row, teachers, message):
    with pytest.raises(InputError, match=message):
        resolve("tiny", row, f"teachers={teachers}")


def test_towers_without_a_joint_space_are_refused_where_no_heads_are_fitted() -> None:
    for recipe, row, overrides in (("demo", "none", "teacher_fit.space.epochs=0"), ("tiny", "two_teachers", "")):
        with pytest.raises(InputError, match=r"lite.-minilm:packages has towers without a joint space.*epochs=30"):
            require_heads(resolve(recipe, row, overrides))
    require_heads(resolve("demo", "finetune", "teacher_fit.space.epochs=0"))  # which has no teacher
    require_heads(resolve("demo", "two_teachers"))
