"""C2KD: proxies in both directions, and who is left out."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau

from cmapkd_core.recipes import resolve


def kl(target: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
    return F.kl_div(guess.log_softmax(1), target.log_softmax(1), log_target=True, reduction="batchmean")


def rows(method, said, pairs):
    """Both directions as (z_S, proxy_S, z_T, proxy_T), written out."""
    vision, text = method.towers(pairs)
    s, t = method.student.scale(), said.scale
    v, l = vision.embedding, text.embedding
    ours, theirs = method.student_proxies, method.teacher_proxies

    def unit(proxy, state):
        return F.normalize(proxy(state), dim=1)

    images = (
        s * v @ l.T,
        s * unit(ours["image"], vision.pooled) @ l.T,
        t * said.text @ said.image.T,
        t * unit(theirs["text"], said.language.pooled) @ said.image.T,
    )
    texts = (
        s * l @ v.T,
        s * unit(ours["text"], text.pooled) @ v.T,
        t * said.image @ said.text.T,
        t * unit(theirs["image"], said.vision.pooled) @ said.text.T,
    )
    return images, texts


def test_the_terms_written_out(terms_of_row):
    method, said, pairs, terms = terms_of_row("c2kd")
    proxy, nontarget = [], []
    for z_s, proxy_s, z_t, proxy_t in rows(method, said, pairs):
        proxy.append(kl(z_s, proxy_s) + kl(proxy_s, z_s) + kl(z_t, proxy_t))
        pairs_of_rows = zip(proxy_t.detach().numpy(), proxy_s.detach().numpy(), strict=True)
        kept = torch.tensor([kendalltau(a, b).statistic > 0 for a, b in pairs_of_rows])
        others = 1 - torch.eye(5)
        a, b = proxy_s * others, proxy_t * others
        nontarget.append(
            sum(kl(b[k : k + 1], a[k : k + 1]) + kl(a[k : k + 1], b[k : k + 1]) for k in range(5) if kept[k]) / 5
        )
    image, text = (direction[0] for direction in rows(method, said, pairs))
    task = (F.cross_entropy(image, torch.arange(5)) + F.cross_entropy(text, torch.arange(5))) / 2
    assert torch.allclose(terms["task"], task, rtol=1e-5)
    assert torch.allclose(terms["proxy"], sum(proxy) / 2, rtol=1e-4)
    assert terms["nontarget"].item() == pytest.approx(sum(nontarget).item() / 2, rel=1e-4)


@pytest.mark.parametrize(("omega", "kept"), [(-1.1, 1.0), (1.0, 0.0)])
def test_omega_decides_who_counts(make_method, make_teacher, batch, ask, omega, kept):
    recipe = resolve("tiny", "c2kd", f"optim.batch=5 method.kendall={omega}")
    teacher, pairs = make_teacher(), batch()
    outcome = make_method(recipe, teacher)(pairs, ask(teacher, pairs, ()), recipe.schedule.fine, 0)
    assert outcome.stats["kendall/kept"].item() == kept
    assert (outcome.terms["nontarget"].item() > 0) == bool(kept)


def test_each_proxy_learns_from_its_own_side_and_from_the_other(terms_of_row):
    method, _, _, terms = terms_of_row("c2kd")
    theirs = list(method.teacher_proxies.parameters())
    assert all(g is not None for g in torch.autograd.grad(terms["proxy"], theirs, retain_graph=True))
    tower = [method.student.model.visual.conv1.weight]
    assert torch.autograd.grad(terms["proxy"], tower, retain_graph=True)[0].abs().sum() > 0
    assert all(name.split(".")[0] in ("student", "student_proxies", "teacher_proxies") for name in method.state_dict())
