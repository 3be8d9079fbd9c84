"""FitNet: what trains below the hint, what the regressors hear, what ships."""

import copy

import torch
import torch.nn.functional as F

from cmapkd_core.methods.fitnet import means_of, same_tokens, tokens_of
from cmapkd_core.models.hierarchy import masked_mean
from cmapkd_core.models.pyramid import resize
from cmapkd_core.recipes import resolve


def test_the_hint_is_the_squared_error_of_both_regressors(terms_of_row):
    method, said, pairs, terms = terms_of_row("fitnet", "coarse")
    vision, text = method.towers(pairs)
    guess = method.map_regressor(vision.taps[1]).movedim(1, -1)
    target = F.layer_norm(resize(said.vision.taps[1], guess.shape[1]).movedim(1, -1), guess.shape[-1:])
    expected = 0.5 * (guess - target).square().mean()
    rows = []
    for i, mask in enumerate(text.mask):
        words = method.token_regressor(text.taps[1][i][mask])
        rows.append((words - F.layer_norm(said.language.taps[1][i][mask], words.shape[-1:])).square().mean())
    expected = expected + 0.5 * torch.stack(rows).mean()
    assert torch.allclose(terms["hint"], expected, rtol=1e-5)


def test_the_first_phase_trains_what_is_below_the_hint(terms_of_row):
    method, *_ = terms_of_row("fitnet", "coarse")
    recipe = method.recipe
    names = {id(p): name for name, p in method.named_parameters()}

    def trained(phase):
        return {group: {names[id(p)] for p in params} for group, params in method.groups(phase).items()}

    coarse, fine = trained(recipe.schedule.coarse), trained(recipe.schedule.fine)
    blocks = {n.split("resblocks.")[1][0] for n in coarse["student"] if "resblocks" in n}
    assert blocks == {"0", "1"}  # two of four
    assert not any(n.endswith(("visual.proj", "text_projection", "logit_scale")) for n in coarse["student"])
    assert not any("ln_post" in n or "ln_final" in n for n in coarse["student"])
    assert {"student.model.visual.conv1.weight", "student.model.token_embedding.weight"} < coarse["student"]
    assert len(coarse["extra"]) == 4
    assert fine["student"] == {n for n in names.values() if n.startswith("student.")}
    assert fine["extra"] == set()


def test_hint_and_kd_together_train_everything(terms_of_row):
    method, *_ = terms_of_row("fitnet_joint", "coarse")
    groups = method.groups(method.recipe.schedule.coarse)
    assert sum(len(params) for params in groups.values()) == len(list(method.parameters()))


def test_other_tokens_are_compared_as_means(tiny_models, terms_of_row):
    teacher, student = tiny_models("tiny-teacher"), tiny_models("tiny-student")
    assert same_tokens(student, teacher)
    shorter = copy.copy(teacher)
    shorter.tokenize = lambda texts: teacher.tokenize(texts)[:, :12]
    assert same_tokens(student, shorter)
    other = copy.copy(teacher)
    other.tokenize = lambda texts: teacher.tokenize([text[::-1] for text in texts])
    assert not same_tokens(student, other)
    method, said, pairs, _ = terms_of_row("fitnet")
    _, text = method.towers(pairs)
    assert method.pair is tokens_of
    ours, theirs, mask = means_of(text, said.language)
    assert ours.shape == (5, 1, 24)
    assert theirs.shape == (5, 1, 32)
    assert mask.all()
    assert torch.allclose(ours[:, 0], masked_mean(text.taps[1], text.mask))


def test_regressors_are_drawn_from_the_seed_and_not_shipped(terms_of_row):
    one, two = (terms_of_row("fitnet")[0] for _ in range(2))
    assert torch.equal(one.map_regressor.weight, two.map_regressor.weight)
    assert "map_regressor.weight" in one.state_dict()
    assert one.exported(None) is one.student
    assert resolve("tiny", "fitnet").schedule.coarse.terms == ("hint",)
