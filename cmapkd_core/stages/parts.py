"""The parts of a data set as stage prepare is given them: `--artifacts part-1 URL part-2 URL ..`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd_core.commands import submit
from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.places import part_fields

KEY = "part-{}"
AGAIN = (
    "start the run once more, or of an earlier one what its parts are joined to: "
    f"{submit('--run', 'RUN', '--only', 'prepare')} (with the run's --root, and --local); without --artifacts stage "
    "prepare reads all rows itself"
)


@dataclass(frozen=True)
class PartOf:
    """A part as it was given. number, of: from 1 on. url: its artifact. fields: what it has to be made from."""

    number: int
    of: int
    url: str
    fields: dict[str, Any]

    @property
    def stage(self) -> str:
        """What its manifest calls it."""
        return f"prepare-part-{self.number}"


def parts_of(recipe: Recipe, artifacts: Mapping[str, str]) -> tuple[PartOf, ...]:
    """The parts of the recipe's data set, in order.

    Raises:
        InputError: one of them is not given, or something else is.
    """
    wanted = [KEY.format(number + 1) for number in range(len(artifacts))]
    if set(wanted) != set(artifacts):
        given = ", ".join(artifacts)
        raise InputError(f"--artifacts {given}: all parts of one data set, as {', '.join(wanted)}")
    of = len(wanted)
    return tuple(
        PartOf(number, of, artifacts[name], part_fields(recipe, number, of)) for number, name in enumerate(wanted, 1)
    )
