"""What every test concept, or class, adds to the numbers of an evaluation, row by row and seed by seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

RowSeed = tuple[str, str]
CONCEPTS, CLASSES = "concepts", "classes"  # what is drawn of a test split


@dataclass(frozen=True, eq=False)
class ConceptSums:
    """Sums over the queries of each of C concepts: in retrieval by direction as in results.SIDES; or of C classes.

    Attributes:
        counts: queries, [C,2]; pictures of each class, [C,1].
        sums: (row, seed) -> [C,2,4]: hits at each of results.KS, and the sum of the logarithms of the ranks; of classes
            [C,1,1]: hits at 1.
        lacking: (row, seed) -> why there is nothing of it.
        of: what the C are, CONCEPTS or CLASSES.
    """

    counts: np.ndarray
    sums: dict[RowSeed, np.ndarray]
    lacking: dict[RowSeed, str] = field(default_factory=dict)
    of: str = CONCEPTS

    def __len__(self) -> int:
        return len(self.counts)
