"""How many comparisons a table makes, which of them all together still tell, and what its intervals cover."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cmapkd_core.report.read.concept_sums import CLASSES, CONCEPTS
from cmapkd_core.report.read.concepts import QUERIES
from cmapkd_core.report.resampling import LEAST, Ends
from cmapkd_core.report.row_differences import Difference, adjusted, wider_of
from cmapkd_core.report.significance import LEVEL, counted
from cmapkd_core.report.tables.table import MARK, Cell, Table

OVER_SEEDS = f"Bold: the {100 * LEVEL:.0f} % paired t-interval over the seeds, in [ ], excludes zero."
SEEDS_ALONE = (
    "No interval here holds what other test data would change: one over test concepts needs the ranks of single "
    f"queries ({QUERIES} of the evaluations), {LEAST} concepts, and values that differ between seeds."
)
DRAWN_ANEW = {
    CONCEPTS: "{} test concepts, each a group of queries that share a right answer",
    CLASSES: "for zero-shot accuracy {} classes",
}
NO_RANKS = (
    "Where the second interval is not given, the evaluations keep no results of single queries (VQA, "
    "captions), or those of a seed are not there."
)


def with_marks(made: Table, plain: str = OVER_SEEDS) -> Table:
    """The table with Holm's p-values over all of its differences, and notes on what its marks and intervals say.

    Args:
        plain: what bold is.
    """
    cells = {(i, j): cell for i, row in enumerate(made.rows) for j, cell in enumerate(row.cells) if cell.difference}
    if not cells:
        return made
    tests = adjusted({place: cell.interval for place, cell in cells.items() if cell.interval})
    rows = tuple(
        replace(row, cells=tuple(replace(c, test=tests.get((i, j))) for j, c in enumerate(row.cells)))
        for i, row in enumerate(made.rows)
    )
    made_comparisons = sum(test.p is not None for test in tests.values())
    notes = [_marks(plain, made_comparisons), *_cover(cells.values()), *made.notes]
    return replace(made, rows=rows, notes=tuple(filter(None, notes)))


def _marks(plain: str, comparisons: int) -> str:
    """What bold and the dagger are; nothing where no comparison has an interval."""
    if not comparisons:
        return ""
    if comparisons == 1:
        return f"{plain} This table makes 1 comparison, which needs no adjustment: {MARK} says the same as bold."
    return (
        f"{plain} This table makes {comparisons} comparisons; where nothing differs, one in twenty is bold by chance "
        f"alone. {MARK}: Holm's rule over all {comparisons} tells the two apart too (adjusted p below {1 - LEVEL:.2f})."
    )


def _drawn(wider: Iterable[Ends], of: str, words: str) -> str:
    """How many of them there are, and what they are; "" of none."""
    found = [one.concepts for one in wider if one.of == of]
    return words.format(counted(found)) if found else ""


def _cover(cells: Iterable[Cell]) -> list[str]:
    """What the second intervals cover, where there are any."""
    known = [cell.interval for cell in cells if isinstance(cell.interval, Difference)]
    wider = [ends for one in known if (ends := wider_of(one))]
    if not wider:
        return [SEEDS_ALONE] if known else []
    what = " and ".join(words for of, said in DRAWN_ANEW.items() if (words := _drawn(wider, of, said))) + ", drawn anew"
    sentence = (
        f"In ( ): the interval over the test concepts alone ({what}). There is one seed, and another one moves the "
        "numbers too."
        if all(one.n == 1 for one in wider)
        else f"In ( ): the interval over seeds and test concepts together ({what}): what other seeds and other test "
        "data of the same kind would change, where [ ] holds the seeds alone."
    )
    return [sentence, *([NO_RANKS] if len(wider) < len(known) else [])]
