"""A fixed bank of the teacher's embeddings that students are compared with beside the batch (docs/decisions/0026).

    bank = 1/2 mean_b [KL(p(v^T; T) || p(h_v(v^S); T)) + KL(p(t^T; V) || p(h_t(t^S); V))]
    p(x; Y) = softmax(s_T x Y^T / tau)                                                  (losses/embeddings.py)

V, T: the teacher's embeddings of N training pairs' pictures and captions, the same from the first step to the last; h:
into the teacher's space (methods/lifts.py). SEED (Fang et al., ICLR 2021) has a queue of one modality in their place.
Of several teachers: the mean over them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmapkd_core.losses.embeddings import bank_divergence
from cmapkd_core.models.frozen_teacher import Embeddings


class Bank(nn.Module):
    """V and T, [N,E'] each, and what follows from them; nothing at all where no pair is wanted.

    They are in no checkpoint: the recipe says which pairs they are of, and a stage fills them in before it trains.
    """

    image: Tensor
    text: Tensor

    def __init__(self, wanted: int, width: int) -> None:
        super().__init__()
        self.wanted = wanted
        for name in ("image", "text"):
            self.register_buffer(name, torch.empty(0, width), persistent=False)

    def lacks(self) -> int:
        """Pairs that are still to be given to `fill`."""
        return 0 if len(self.image) else self.wanted

    def fill(self, image: Tensor, text: Tensor) -> None:
        """Take the teacher's unit embeddings [N,E'] of pictures and of captions."""
        self.image, self.text = (x.to(self.image.device, torch.float32) for x in (image, text))

    def rows(self, lifted: tuple[Tensor, Tensor], teacher: Embeddings, tau: float) -> dict[str, Tensor]:
        """`bank_v` and `bank_l`, [b] each: what every picture and every caption pays.

        Args:
            lifted: the local batch's pictures and captions in the teacher's space, [b,E'] each.
        """
        if not self.wanted:
            return {}
        assert len(self.image), "its stage fills a bank before the first step"
        sides = {"bank_v": (lifted[0], teacher.image, self.text), "bank_l": (lifted[1], teacher.text, self.image)}
        result = {}
        for name, side in sides.items():
            each = zip(*map(teacher.each, side), teacher.scales(), strict=True)
            paid = [bank_divergence(own, given, bank, scale, tau) for own, given, bank, scale in each]
            result[name] = paid[0] if len(paid) == 1 else torch.stack(paid).mean(0)
        return result

    def terms(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Term `bank` of these rows; none where no pair is wanted."""
        return {"bank": 0.5 * (rows["bank_v"].mean() + rows["bank_l"].mean())} if self.wanted else {}
