"""What every test concept adds to the numbers of a retrieval, row by row and seed by seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

RowSeed = tuple[str, str]


@dataclass(frozen=True, eq=False)
class ConceptSums:
    """Sums over each concept's queries, by direction as in results.SIDES.

    Attributes:
        counts: queries, [C,2] of C concepts.
        sums: (row, seed) -> [C,2,4]: hits at each of results.KS, and the sum of the logarithms of the ranks.
        lacking: (row, seed) -> why there is nothing of it.
    """

    counts: np.ndarray
    sums: dict[RowSeed, np.ndarray]
    lacking: dict[RowSeed, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts)
