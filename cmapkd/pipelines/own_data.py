"""What recipe `own` needs to know before a run starts: how many pairs there are, and the fields that follow from it.

The fields become overrides of the request, so that they are recorded and every stage gets them as strings.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

from cmapkd_core.config import DataConfig, Recipe
from cmapkd_core.data.rows import BadRow, Item, LazyRow
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, parse_overrides
from cmapkd_core.folders import reads_folder
from cmapkd_core.recipes import RECIPES, ROWS
from cmapkd_core.request import recipe_of
from cmapkd_core.sizing import SIZED, PairCount, sizes, updates
from cmapkd_core.storage import StorageError


def fitted(request: dict[str, str]) -> tuple[dict[str, str], PairCount | None]:
    """The request with the sizes that fit its data, where its recipe takes them; and what was counted.

    What the user or the row sets stays as it is set.

    Raises:
        InputError: what the source says of its folder, too few pairs, or pairs that cannot be counted from here.
    """
    if request["recipe"] not in SIZED:
        return request, None
    recipe, overrides = recipe_of(request), parse_overrides(request["overrides"])
    print(f"counting the pairs of {recipe.data.url or recipe.data.source}", file=sys.stderr, flush=True)
    count = count_pairs(recipe.data)
    made = sizes(count, recipe, {*overrides, *ROWS[request["ablation"]]})
    return {**request, "overrides": as_overrides(made | overrides)}, count


def count_pairs(data: DataConfig) -> PairCount:
    """The pictures that a source lists, none of which is opened.

    Raises:
        InputError: as its source says, or the source cannot be counted from here.
    """
    from cmapkd_core.data.sources import open_rows  # with numpy, which a recipe of given sizes does not need

    try:
        rows = open_rows(data)
        if not len(rows) and not data.size:
            raise InputError(
                f"recipe own sizes itself by the number of pairs, and source {data.source} does not know it before it "
                "is read: say how many there are, which is then read at most: --set data.size=N"
            )
        return _counted(rows) if len(rows) else PairCount(data.size, 0, {})
    except StorageError as error:
        if data.size:
            return PairCount(data.size, 0, {})
        raise InputError(
            f"recipe own sizes itself by the number of pairs, and from here they cannot be counted: {error}. Start it "
            "where the data can be read, or say how many there are, which is then read at most: --set data.size=N"
        ) from None


def _counted(rows: Iterable[Item]) -> PairCount:
    pairs, bad, named = 0, 0, Counter[str]()
    for row in rows:
        if isinstance(row, BadRow):
            bad += 1
            continue
        pairs += 1
        split = (row.row if isinstance(row, LazyRow) else row).split
        if split:
            named[split] += 1
    return PairCount(pairs, bad, named)


def size_notes(recipe: Recipe, count: PairCount | None) -> list[str]:
    """What a reader should know of the sizes of a run on pictures of their own; nothing of the demo on its own."""
    if count is None:
        return _demo(recipe)
    data, schedule = recipe.data, recipe.schedule
    split = count.within(data.val_share, data.test_share)
    by = "as the rows say" if sum(count.named.values()) == count.pairs else "about, by a hash"
    bad = f", and {count.bad} rows that cannot be used" if count.bad else ""
    used = f" (students train on {data.fraction:g} of them)" if data.fraction < 1 else ""
    phases = (schedule.coarse, schedule.medium, schedule.fine)
    epochs = sum(phase.epochs for phase in phases)
    steps = updates(split["train"] * data.fraction, recipe)
    return [
        f"{count.pairs} pictures with captions{bad}",
        f"{by}: {split['train']} to train on{used}, {split['val']} val, {split['test']} test",
        f"batches of {recipe.optim.batch}; a student {epochs} epochs "
        f"({' + '.join(f'{phase.epochs}' for phase in phases)}), {steps} updates",
    ]


def _demo(recipe: Recipe) -> list[str]:
    """A note where the demo's own shares are taken for other pictures than its own."""
    demo = RECIPES["demo"].data
    shares = (recipe.data.fraction, recipe.data.test_share)
    if recipe.name != "demo" or not reads_folder(recipe.data.source) or shares != (demo.fraction, demo.test_share):
        return []
    return [
        f"students train on {demo.fraction:.0%} of the training pairs and {demo.test_share:.0%} are for testing, as is "
        "right for the demo's pictures; --recipe own takes what fits yours"
    ]
