"""Whether the rows that were read make a data set, and what is said where they do not."""

from __future__ import annotations

import re
from collections import Counter

from cmapkd_core.config import DataConfig
from cmapkd_core.data.texts import printable
from cmapkd_core.errors import InputError

NOISE = 0.05  # share of bad rows up to which a bound that allows them is proposed; more are a fault to be mended
_SHOWN = 5  # kinds of reasons in an error message
_MOST = 1000  # kinds that are told apart
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/\\._=]\S*")  # what of a reason is this row's alone: names and numbers


class TooManyBadError(InputError):
    """More bad rows than `data.quarantine_bound` allows, or none that can train."""


class Reasons:
    """Why rows and questions were bad, counted by kind: a reason without what stands in it of this one row."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, shown: str, reason: str) -> None:
        """Count a reason; `shown` names the row too and may become the example of its kind."""
        kind = _OWN.sub("..", reason.partition(": ")[0])
        if kind not in self._counts and len(self._counts) >= _MOST:
            kind = "another reason"
        self._counts[kind] += 1
        self._examples.setdefault(kind, printable(shown))

    def kinds(self, most: int | None = None) -> list[tuple[int, str]]:
        """How often each kind occurs and an example of it, the most frequent first; `most` of them, or all."""
        return [(count, self._examples[kind]) for kind, count in self._counts.most_common(most)]

    def listed(self) -> str:
        """The kinds, the most frequent first, each with its number and an example; an indented line each."""
        lines = [f"{count} x {example}" for count, example in self.kinds(_SHOWN)]
        rest = self._counts.total() - sum(count for count, _ in self.kinds(_SHOWN))
        return "\n  ".join([*lines, *([f"{rest} x for other reasons"] if rest else [])])


def judge(counts: dict[str, int], rows: Reasons, questions: Reasons, config: DataConfig) -> None:
    """Refuse rows that make no data set.

    Args:
        counts: as `write_shards` returns them.
        rows, questions: why some were bad.

    Raises:
        TooManyBadError: more bad rows or questions than the bound allows, no row that can be used, or none to train on.
        InputError: there was no row, or none of the splits that are asked for.
    """
    total, bad = counts["seen"], counts["quarantined"]
    of = f" of data.splits={','.join(config.splits)}" if config.splits else ""
    if not total:
        raise InputError(f"data.source={config.source} {config.url} has no rows{of}: nothing to prepare")
    if not counts["used"] and not bad:
        raise InputError(f"data.splits={','.join(config.splits)} leaves none of the {total} rows: name another split")
    if not counts["used"]:
        problem = f"no row{of} can be used, whatever bound is set: {bad} of {total} are bad"
        raise TooManyBadError(f"{problem}\n  {rows.listed()}\nMend them")
    _within(bad, total, "rows", rows, config)
    bad_questions = counts.get("bad_questions", 0)
    _within(bad_questions, counts.get("questions", 0) + bad_questions, "questions", questions, config)
    # Rows without captions are for evaluation alone, and so is a data set of chosen splits without train.
    wanted = "train" in config.splits or (not config.splits and counts["captions"])
    if wanted and not counts["train"]:
        raise TooManyBadError(
            f"no row is in the training split ({counts['val']} val, {counts['test']} test, {bad} bad): "
            "name some rows' split train, or leave it empty; for evaluation alone name the splits: --set "
            f"data.splits={','.join(split for split in ('val', 'test') if counts[split])}"
        )


def _within(bad: int, total: int, what: str, reasons: Reasons, config: DataConfig) -> None:
    """Refuse more bad ones than the bound allows; one that allows them is proposed where they are few.

    A single one is no share of a fault that goes on, however few rows there are, and is refused by a bound of 0 alone.
    """
    bound = config.quarantine_bound
    if bad <= bound * total or (bad == 1 and bound):
        return
    share = bad / total
    out = (
        "Mend or remove them; to leave them out add this to the command: --set "
        f"data.quarantine_bound={int(share * 1000 + 1) / 1000}"
    )
    if share > NOISE:
        out = (
            f"More than {NOISE:.0%} are a fault to be mended before anything is trained. To leave them out all the "
            "same, raise data.quarantine_bound, the share of the rows that may be bad"
        )
    raise TooManyBadError(
        f"{bad} of {total} {what} cannot be used ({share:.2%}), data.quarantine_bound={bound} allows {bound:.2%}"
        f"{', or one' if bound else ''}:\n  {reasons.listed()}\n{out}"
    )
