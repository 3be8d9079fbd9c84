"""`[retry]` of a site file, and what Argo gets of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from cmapkd_core.errors import InputError
from cmapkd_core.values import Must

# KFP's template for containers of tasks with a retry policy and as many labels as ours (argocompiler/container.go).
TEMPLATE = "metadata-0-2-retry-system-container-impl"
# What lets Argo start a failed container again, for the API server's variable; k8s/components/retries says why so.
PATCH_VARIABLE = "COMPILED_PIPELINE_SPEC_PATCH"
PATCH = {
    "templates": [
        {
            "name": TEMPLATE,
            "container": {"image": "gcr.io/ml-pipeline/should-be-overridden-during-runtime"},
            "retryStrategy": {"retryPolicy": "Always"},
        }
    ]
}
UNITS = {"s": 1, "m": 60, "h": 3600}
WAIT = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[smh])")
MOST = 100  # retries, and the largest factor
LIKE_WAIT = "a whole number of seconds, minutes or hours, like '60s'"
WHOLE = (
    f"a whole number from 1 to {MOST}, as Argo parses it as one (Atoi) and ends a task in an error, without a retry, "
    "where it cannot"
)
WEEK = 7 * 24 * 3600
GONE = "longest"  # a field of earlier site files


@dataclass(frozen=True)
class Retry:
    """A container that failed starts again and goes on from its last checkpoint, where the cluster retries those."""

    count: Annotated[int, Field(ge=0, le=MOST), Must(f"0 (no retries) to {MOST}")] = 3
    wait: Annotated[str, Field(pattern=f"^{WAIT.pattern}$"), Must(LIKE_WAIT)] = "60s"
    factor: Annotated[float, Field(ge=1, le=MOST, multiple_of=1), Must(WHOLE)] = 2.0

    @property
    def seconds(self) -> int:
        """The wait before the first retry."""
        match = WAIT.fullmatch(self.wait)
        assert match is not None  # its pattern
        return int(match["number"]) * UNITS[match["unit"]]


def total(retry: Retry, hours: float) -> int:
    """Seconds from the start of the first attempt after which Argo makes no other, and ends one that runs.

    Its backoff.maxDuration is no bound on a wait but on all attempts together (processNodeRetries), and counts from
    when the first is asked for: each may wait a week for its node, then run for `hours`, then wait for the next.
    """
    attempts = retry.count + 1
    return attempts * (round(hours * 3600) + WEEK) + _waits(retry)


def _waits(retry: Retry) -> int:
    return int(sum(retry.seconds * Fraction(retry.factor) ** i for i in range(retry.count)))


def refuse_gone(path: str) -> None:
    """Raises InputError: what `longest` was taken for, and what to do."""
    raise InputError(
        f"{path}: retry.{GONE} is no more: it was no bound on a wait but on all attempts of a task together, so that a "
        "stage of hours was never retried, or was ended in its retry; delete the line (that bound now follows from "
        "`hours` and the waits)"
    )


def refuse_waits(retry: Retry, path: str) -> None:
    """Raises InputError for waits that nobody would wait for."""
    if _waits(retry) > WEEK:
        raise InputError(
            f"{path}: [retry] count = {retry.count}, wait = '{retry.wait}' and factor = {retry.factor:g} wait "
            f"{_waits(retry) / 86400:.3g} days in all: make them less, to a week at most"
        )
