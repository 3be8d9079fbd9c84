"""The KL of similarities whose scale and mean do not count: each query's logits are z-scored first.

Logit standardisation (Sun et al., CVPR 2024, arXiv 2403.01427, section 3): a student need not have the teacher's
spread of logits, only its relations between them. As the rest of losses/streamed.py without the similarities: a softmax
does not see a shift, and the variance of a query's logits follows from the candidates' covariance.

Shapes: B batch of all ranks, E and E' embedding widths; unit embeddings, though any vectors do.
"""

from __future__ import annotations

from torch import Tensor

from cmapkd_core.losses.streamed import ALONE, Ranks, Similarities, relative_entropy

EPS = 1e-12  # least variance: where all candidates are one, none is preferred


def z_scored(logits: Tensor) -> Tensor:
    """Each row with mean 0 and variance 1 (of the row itself: divided by B, as the paper has it), [..,B] -> [..,B]."""
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).clamp_min(EPS).sqrt()


def over_spread(queries: Tensor, candidates: Tensor) -> Tensor:
    """The queries [B,E] divided by the standard deviation of their products with the candidates [C,E], [B,E].

    Their products with the candidates are then the z-scored logits but for a shift of each row.
    """
    centred = candidates - candidates.mean(0)
    covariance = centred.T @ centred / len(candidates)
    variance = ((queries @ covariance) * queries).sum(1, keepdim=True)
    return queries / variance.clamp_min(EPS).sqrt()


def standardised_entropy(
    teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], tau: float, ranks: Ranks = ALONE
) -> Tensor:
    """1/2 tau^2 sum over both directions of KL(softmax(z(T) / tau) || softmax(z(S) / tau)), mean over the batch.

    z: `z_scored` over the candidates of a query. Of ranks as losses/streamed.py has it.

    Args:
        teacher, student: images and captions, [B,E'] and [B,E] each; the teacher's get no gradient.
    """
    (image_t, caption_t), (image, caption) = teacher, student
    forth = _rows((image_t, caption_t), (image, caption), tau, ranks)
    return forth + _rows((caption_t, image_t), (caption, image), tau, ranks)


def _rows(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], tau: float, ranks: Ranks) -> Tensor:
    """Of the first's embeddings as queries alone."""
    wanted, guess = (
        Similarities.of(over_spread(queries, candidates), candidates, 1.0, ranks)
        for queries, candidates in (teacher, student)
    )
    return relative_entropy(wanted, guess, tau, columns=False)
