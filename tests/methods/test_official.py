"""The losses against what the published code gave for the same tensors.

`official.json` names for each entry the repository, its commit, the file and the function that was run, in float64, on
tensors that `wave` makes here too; values are losses, gradients are those of their sum (where a note says nothing
else), by norm and first entries.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.embeddings import class_divergence, interactive, soft_cross_entropy, squared_error
from cmapkd_core.losses.hints import map_hint
from cmapkd_core.losses.kendall import kendall_tau, non_target, row_divergence
from cmapkd_core.losses.patches import patch_relation, patch_responses
from cmapkd_core.losses.similarity import info_nce, relative_entropy
from cmapkd_core.methods.base import Method, Rows
from cmapkd_core.methods.lifts import add_raw
from cmapkd_core.models.compose import layers_of
from cmapkd_core.models.features import Features
from cmapkd_core.models.frozen_teacher import Embeddings
from cmapkd_core.recipes import resolve

OFFICIAL: dict[str, Any] = json.loads((Path(__file__).parent / "official.json").read_text())
PAIRS, OURS, THEIRS, CLASSES = 5, 24, 32, 7
SCALE_S, SCALE_T = torch.tensor(5.0), torch.tensor(8.0)
EXACT, SINGLE = 1e-9, 2e-6  # a function in float64; a method, whose losses are in float32
TINY = "optim.batch=5"


def wave(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    """Numbers without a generator: size sin((0.61 + 0.17 seed) i^2 + 1.7 i + seed), i = 1, 2, .. in float64."""
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (size * torch.sin((0.61 + 0.17 * seed) * i * i + 1.7 * i + seed)).view(shape)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(True)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(wave(*shape, seed=seed), dim=-1)


def student() -> tuple[Tensor, Tensor]:
    return leaf(unit(PAIRS, OURS, seed=1)), leaf(unit(PAIRS, OURS, seed=2))


def teacher() -> tuple[Tensor, Tensor]:
    return unit(PAIRS, THEIRS, seed=3), unit(PAIRS, THEIRS, seed=4)


def same(name: str, values: dict[str, Tensor], leaves: dict[str, Tensor], total: Tensor | None = None) -> None:
    """Losses and gradients of the entry `name`, to EXACT in float64 and to SINGLE in float32."""
    expected = OFFICIAL[name]
    assert set(values) == set(expected["values"])
    assert set(leaves) == set(expected["gradients"])
    for term, value in values.items():
        rel = EXACT if value.dtype is torch.float64 else SINGLE
        assert value.item() == pytest.approx(expected["values"][term], rel=rel), term
    found = torch.autograd.grad(sum(values.values()) if total is None else total, list(leaves.values()))
    for (leaf_name, wanted), gradient in zip(
        ((n, expected["gradients"][n]) for n in leaves), (g.double() for g in found), strict=True
    ):
        close = EXACT if next(iter(values.values())).dtype is torch.float64 else 10 * SINGLE
        assert gradient.norm().item() == pytest.approx(wanted["norm"], rel=close), leaf_name
        bound = {"rel": close, "abs": close * wanted["norm"]}
        assert gradient.flatten()[: len(wanted["first"])].tolist() == pytest.approx(wanted["first"], **bound), leaf_name


def test_clips_loss() -> None:
    image, text = student()
    scale = leaf(SCALE_S.double())
    same("L_clip", {"task": info_nce(scale * image @ text.T)}, {"image": image, "text": text, "scale": scale})


def test_open_clips_distillation_loss() -> None:
    (image, text), (image_t, text_t), scale = student(), teacher(), leaf(SCALE_S.double())
    logits = scale * image @ text.T
    values = {"task": info_nce(logits), "soft": soft_cross_entropy(SCALE_T * image_t @ text_t.T, logits)}
    same("open_clip distillation", values, {"image": image, "text": text, "scale": scale})


def test_mobileclips_loss() -> None:
    (image, text), (image_t, text_t), scale = student(), teacher(), leaf(SCALE_S.double())
    logits, weights = scale * image @ text.T, vars(resolve("tiny", "mobileclip").method.weights)
    values = {"task": info_nce(logits), "soft": soft_cross_entropy(100 * image_t @ text_t.T, logits)}
    weighted = {name: weights[name] * value for name, value in values.items()}
    same("MobileCLIP", weighted, {"image": image, "text": text, "scale": scale})


def test_kd_of_rows_and_columns() -> None:
    """alpha CE + (1 - alpha) tau^2 KL with alpha = 1/2: half of what task and kd sum to at equal weights."""
    ours, theirs = leaf(wave(PAIRS, PAIRS, seed=1, size=3)), wave(PAIRS, PAIRS, seed=2, size=3)
    total = info_nce(ours) + relative_entropy(theirs, ours, 2.0)
    expected = OFFICIAL["KD"]
    assert total.item() == pytest.approx(sum(expected["values"].values()), rel=EXACT)
    (gradient,) = torch.autograd.grad(total, [ours])
    assert gradient.norm().item() == pytest.approx(expected["gradients"]["student"]["norm"], rel=EXACT)


def features(raw: Tensor) -> Features:
    """What a tower of the tests' tiny models gives, with this projection."""
    return Features(F.normalize(raw, dim=-1), raw, [raw], raw=raw)


def hearing(method: Method, width: int, size: float = 4.0) -> tuple[dict[str, Tensor], Embeddings]:
    """Let `method` see given projections in place of towers: the leaves by name, and what the teacher says."""
    raw = [leaf(wave(PAIRS, width, seed=seed, size=size).float()) for seed in (1, 2)]
    method.towers = lambda batch: (features(raw[0]), features(raw[1]))  # type: ignore[method-assign]
    image_t, text_t = (x.float() for x in teacher())
    return {"image": raw[0], "text": raw[1]}, Embeddings(image_t, text_t, SCALE_T)


def lifted(method: Method) -> dict[str, Tensor]:
    """The lifts' parameters by name, with the fixture's values."""
    named = {n: p for n, p in method.named_parameters() if n.startswith("lifts.")}
    for seed, name in enumerate(("image.weight", "image.bias", "text.weight", "text.bias"), 5):
        named[f"lifts.{name}"].data.copy_(wave(*named[f"lifts.{name}"].shape, seed=seed, size=0.4))
    return named


def scaled(method: Method, scale: Tensor = SCALE_S) -> Method:
    method.student.model.logit_scale.data.fill_(scale.log())
    return method


def total_of(method: Method, terms: dict[str, Tensor]) -> Tensor:
    weights = vars(method.recipe.method.weights)
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


@pytest.fixture
def pairs(batch: Callable[..., Batch]) -> Batch:
    return batch()


def test_clip_kd_lifts_the_raw_projections(make_method, make_teacher, pairs) -> None:
    method = scaled(make_method(resolve("tiny", "clip_kd", TINY), make_teacher()))
    leaves, said = hearing(method, OURS)
    leaves |= lifted(method)
    terms = method(pairs, said, method.recipe.schedule.fine, 0).terms
    same("CLIP-KD, widths that differ", terms, leaves, total_of(method, terms))


def test_clip_kd_of_equal_widths_has_nothing_to_lift(twins, pairs) -> None:
    method, _ = twins(resolve("tiny", "clip_kd", TINY))
    leaves, said = hearing(scaled(method), THEIRS)
    terms = method(pairs, said, method.recipe.schedule.fine, 0).terms
    same("CLIP-KD, equal widths", terms, leaves, total_of(method, terms))


def test_clip_rd_of_equal_widths(twins, pairs) -> None:
    method, _ = twins(resolve("tiny", "clip_rd", TINY))
    leaves, said = hearing(scaled(method), THEIRS)
    leaves |= {n: p for n, p in method.named_parameters() if n.endswith("log_scale")}
    terms = method(pairs, said, method.recipe.schedule.fine, 0).terms
    same("CLIP-RD, equal widths", terms, leaves, total_of(method, terms))


def test_cmapkd_shares_the_lift(make_method, make_teacher) -> None:
    """fd is 1 - cos, so THEIRS / 2 of the released error; icl at the released scale."""
    method = scaled(make_method(resolve("tiny", overrides=TINY), make_teacher()))
    _, said = hearing(method, OURS)
    lifted(method)
    vision, text = method.towers(None)
    embeddings = [vision.embedding, text.embedding, said.image, said.text]
    rows = add_raw(Rows({}, {}, [], []), vision, text)
    expected = OFFICIAL["CLIP-KD, widths that differ"]["values"]
    released = replace(said, scale=torch.tensor(1 / 0.07))
    terms = method._on_embeddings(embeddings, method.lifts(rows, *embeddings[:2]), released)
    assert terms["fd"].item() == pytest.approx(expected["mse"] * THEIRS / 2, rel=SINGLE)
    assert terms["icl"].item() == pytest.approx(expected["icl"], rel=SINGLE)


def test_the_functions_of_clip_kd_in_float64() -> None:
    (image, text), (image_t, text_t) = student(), teacher()
    lifts = [F.linear(4 * wave(PAIRS, OURS, seed=s), wave(THEIRS, OURS, seed=w, size=0.4), wave(THEIRS, seed=w + 1,
             size=0.4)) for s, w in ((1, 5), (2, 7))]  # fmt: skip
    ours = [F.normalize(x, dim=-1) for x in lifts]
    expected = OFFICIAL["CLIP-KD, widths that differ"]["values"]
    found = {
        "kd": relative_entropy(SCALE_T * image_t @ text_t.T, SCALE_S * image @ text.T, 1.0),
        "mse": squared_error(ours[0], image_t) + squared_error(ours[1], text_t),
        "icl": interactive(ours[0] @ text_t.T / 0.07, ours[1] @ image_t.T / 0.07),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name], rel=EXACT), name


def test_tinyclip_mimics_at_a_scale_of_50_whatever_the_models_say(make_method, make_teacher, pairs) -> None:
    """The release has the cross entropy: the KL and what the teacher's rows and columns have of their own."""
    method = make_method(resolve("tiny", "tinyclip", TINY), make_teacher())
    _, said = hearing(method, OURS)
    theirs = 50 * said.image @ said.text.T
    kd = method(pairs, said, method.recipe.schedule.fine, 0).terms["kd"]
    found = (kd + soft_cross_entropy(theirs, theirs)).item()
    assert found == pytest.approx(OFFICIAL["TinyCLIP"]["values"]["soft"], rel=SINGLE)
    assert method.student.scale().item() == pytest.approx(50)
    (image, text), (image_t, text_t) = student(), teacher()
    exact = soft_cross_entropy(50 * image_t @ text_t.T, 50 * image @ text.T)
    same("TinyCLIP", {"soft": exact}, {"image": image, "text": text})


def test_tinyclip_inherits_the_released_layers() -> None:
    for depths, layers in OFFICIAL["TinyCLIP layers"]["layers"].items():
        deep, shallow = map(int, depths.split(" to "))
        assert layers_of(deep, shallow) == layers, depths


@pytest.mark.parametrize("tau", [1, 2])
def test_promptkd_with_its_projector(make_method, make_teacher, tau) -> None:
    method = scaled(make_method(resolve("tiny", "promptkd", f"{TINY} method.kd_tau={tau}"), make_teacher()).train())
    named = dict(method.projector.named_parameters())
    values = {
        "layers.0.weight": wave(THEIRS, OURS, seed=5, size=0.4),
        "layers.1.weight": 1 + wave(THEIRS, seed=9, size=0.3),
        "layers.1.bias": wave(THEIRS, seed=10, size=0.3),
        "layers.3.weight": wave(THEIRS, THEIRS, seed=7, size=0.4),
        "layers.3.bias": wave(THEIRS, seed=8, size=0.4),
    }
    assert set(named) == set(values)
    for name, value in values.items():
        named[name].data.copy_(value)
    image = leaf(wave(PAIRS, OURS, seed=1, size=4).float())
    image_t, classes = teacher()[0].float(), unit(CLASSES, THEIRS, seed=11).float()
    terms = {"prompt": method.divergence(image, image_t, SCALE_T, classes)}
    same(f"PromptKD, tau {tau}", terms, {"features": image} | {name: named[name] for name in values})


def test_class_divergence_in_float64() -> None:
    ours, theirs = wave(PAIRS, CLASSES, seed=1, size=3), wave(PAIRS, CLASSES, seed=2, size=3)
    plain = F.kl_div((ours / 2).log_softmax(1), (theirs / 2).softmax(1), reduction="sum") * 4 / ours.numel()
    assert class_divergence(theirs, ours, 2.0).item() == pytest.approx(plain.item(), rel=EXACT)


def c2kd_rows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z_s, z_t, proxy_s, proxy_t = (wave(PAIRS, PAIRS, seed=seed, size=3) for seed in (1, 2, 3, 4))
    proxy_t[:3] += 2 * proxy_s[:3]
    proxy_t[3:] -= 2 * proxy_s[3:]
    return leaf(z_s), z_t, leaf(proxy_s), leaf(proxy_t)


@pytest.mark.parametrize("krc", [0, 0.7])
def test_c2kd_agreement_mask_and_terms(krc) -> None:
    z_s, z_t, proxy_s, proxy_t = c2kd_rows()
    expected = OFFICIAL[f"C2KD, krc {krc:g}"]
    tau = kendall_tau(proxy_t, proxy_s)
    assert tau.tolist() == pytest.approx(expected["kendall"], abs=1e-6)
    kept = tau > krc
    assert kept.int().tolist() == expected["mask"]
    values = {
        "task": (z_s.logsumexp(1) - z_s.diagonal()).mean(),
        "s_to_proxy": row_divergence(z_s, proxy_s).mean(),
        "proxy_to_s": row_divergence(proxy_s, z_s).mean(),
        "t_to_proxy": row_divergence(z_t, proxy_t).mean(),
        "nt_student": non_target(proxy_t, proxy_s, kept),
        "nt_teacher": non_target(proxy_s, proxy_t, kept),
    }
    leaves = {"student": z_s, "proxy_student": proxy_s, "proxy_teacher": proxy_t}
    same(f"C2KD, krc {krc:g}", values, leaves)


def test_c2kd_puts_them_together(make_method, make_teacher) -> None:
    method = make_method(resolve("tiny", "c2kd", f"{TINY} method.kendall=0.7"), make_teacher())
    z_s, z_t, proxy_s, proxy_t = (x.float() for x in c2kd_rows())
    proxy, nontarget, kept = method._direction(z_s, proxy_s, z_t, proxy_t)
    expected = OFFICIAL["C2KD, krc 0.7"]
    values = expected["values"]
    assert proxy.item() == pytest.approx(sum(values[n] for n in ("s_to_proxy", "proxy_to_s", "t_to_proxy")), rel=SINGLE)
    assert nontarget.item() == pytest.approx(values["nt_student"] + values["nt_teacher"], rel=SINGLE)
    assert kept.item() == pytest.approx(sum(expected["mask"]) / PAIRS)


def test_fitnets_hint_up_to_its_constant() -> None:
    """Half of the mean (RepDistiller), which is the sum (torchdistill) over all elements."""
    ours, theirs = leaf(wave(3, 4, 5, 5, seed=1, size=2)), wave(3, 4, 5, 5, seed=2, size=2)
    hint = map_hint(ours, theirs)
    same("FitNet", {"mse": 2 * hint}, {"student": ours})
    same("FitNet, torchdistill", {"sse": 2 * ours.numel() * map_hint(ours, theirs)}, {"student": ours})


def test_llava_kds_relation_of_patches() -> None:
    ours, theirs = leaf(wave(2, 9, OURS, seed=1)), wave(2, 9, THEIRS, seed=2)
    relation = patch_relation(F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1))
    same("LLaVA-KD relation", {"relation": relation}, {"student": ours})


def test_llava_kds_responses_up_to_the_teachers_entropy() -> None:
    ours, theirs = leaf(wave(2, 9, CLASSES, seed=1, size=3).float()), wave(2, 9, CLASSES, seed=2, size=3).float()
    entropy = -(theirs.softmax(-1) * theirs.log_softmax(-1)).sum(-1).mean()
    same("LLaVA-KD responses", {"cross_entropy": patch_responses(ours, theirs) + entropy}, {"student": ours})
