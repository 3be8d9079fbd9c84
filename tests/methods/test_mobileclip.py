"""MobileCLIP: a quarter pairs, three quarters soft targets."""

import torch
import torch.nn.functional as F

from cmapkd_core.engine.passes import weighted_total


def test_the_total_written_out(terms_of_row):
    method, said, pairs, terms = terms_of_row("mobileclip")
    student = method.student
    image, text = student.encode_image(pairs.images["student"]), student.encode_text(pairs.tokens["student"])
    ours, theirs = student.scale() * image @ text.T, said.scale * said.image @ said.text.T
    own = torch.arange(5)
    hard = (F.cross_entropy(ours, own) + F.cross_entropy(ours.T, own)) / 2
    soft = (F.cross_entropy(ours, theirs.softmax(1)) + F.cross_entropy(ours.T, theirs.T.softmax(1))) / 2
    total = weighted_total(terms, vars(method.recipe.method.weights))
    assert torch.allclose(total, 0.25 * hard + 0.75 * soft, rtol=1e-4)


def test_it_owns_nothing_beside_the_student(terms_of_row):
    method, *_ = terms_of_row("mobileclip")
    assert all(name.startswith("student.") for name in method.state_dict())
