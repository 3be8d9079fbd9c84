"""Pairs with another pair's caption: wrong on purpose, and known (data.noise).

Which pairs are wrong, and whose captions they have, follows from the keys: not from a seed, so that all seeds and
methods meet the same ones, and what was prepared and what is stored of the teacher stay as they are.
"""

from __future__ import annotations

import numpy as np

from cmapkd_core.data.order import mix
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError


def caption_owners(shards: ShardSet, split: str, ids: np.ndarray, share: float) -> np.ndarray | None:
    """Positions of the pictures whose captions are shown with the pictures of a split, int64 [n]; None: all their own.

    The chosen pictures pass their captions round, in an order of their hashes, so that none keeps its own and none gets
    one of its group (concept), which could be right.

    Args:
        ids: of the pictures that take part, int64 [k]; round(k * share) of them are wrong.

    Raises:
        InputError: fewer than two of them, or so many of one group that some would get a right one.
    """
    if not share:
        return None
    count = round(len(ids) * share)
    if count < 2:
        raise InputError(
            f"data.noise={share:g} of {len(ids)} pairs is {count or 'no pair'}, and two at least exchange their "
            "captions: raise data.noise or data.fraction, or set data.noise=0"
        )
    order = ids[np.argsort(mix(shards.key_hashes(split)[ids], 0x5A3D), kind="stable")[:count]]
    groups = np.unique(np.array(shards.table(split)["group"].take(order).to_pylist()), return_inverse=True)[1]
    owners = np.arange(shards.count(split))
    owners[order] = order[_passed_on(groups, share)]
    return owners


def _passed_on(groups: np.ndarray, share: float) -> np.ndarray:
    """Whose caption each of k pictures gets, int64 [k]: the next one's, exchanged where that is of its own group."""
    givers = np.roll(np.arange(len(groups)), -1)
    for i in np.flatnonzero(groups[givers] == groups).tolist():
        if groups[givers[i]] != groups[i]:  # an exchange before has mended it
            continue
        fitting = np.flatnonzero((groups[givers] != groups[i]) & (groups != groups[givers[i]]))
        if not len(fitting):
            raise InputError(
                f"data.noise={share}: {len(groups)} pictures cannot exchange their captions, as too many of them are "
                "of one group, whose captions are right for each other: raise data.noise or data.fraction, or set "
                "data.noise=0"
            )
        other = fitting[np.argmax(fitting > i)]
        givers[[i, other]] = givers[[other, i]]
    return givers
