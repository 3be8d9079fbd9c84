"""`[retry]`: what Argo is told of it, counted by hand, and what no site file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmapkd.pipelines.retries import Retry, total
from cmapkd.pipelines.site import load_site
from cmapkd_core.errors import InputError

WEEK = 604800


@pytest.mark.parametrize(
    ("retry", "hours", "seconds"),
    [
        (Retry(count=0), 2, 7200 + WEEK),
        (Retry(count=1, wait="60s"), 2, 2 * (7200 + WEEK) + 60),
        # Four attempts of 72 hours (259,200 s) and the waits 60, 120 and 240 s: not the 1800 s of all together.
        (Retry(count=3, wait="60s", factor=2), 72, 4 * (259200 + WEEK) + 420),
        (Retry(count=2, wait="5m", factor=1), 0.5, 3 * (1800 + WEEK) + 600),
        (Retry(count=3, wait="1h", factor=3), 1, 4 * (3600 + WEEK) + 3600 + 10800 + 32400),
        (Retry(count=5, wait="0s", factor=100), 1, 6 * (3600 + WEEK)),
    ],
)
def test_the_total_leaves_every_attempt_its_hours(retry: Retry, hours: float, seconds: int) -> None:
    assert total(retry, hours) == seconds


def loaded(folder: Path, text: str) -> Retry:
    (folder / "site.toml").write_text(f"[retry]\n{text}")
    return load_site(str(folder / "site.toml")).retry


def test_whole_numbers_are_taken(tmp_path: Path) -> None:
    assert loaded(tmp_path, "factor = 3") == loaded(tmp_path, "factor = 3.0") == Retry(factor=3.0)
    assert loaded(tmp_path, "count = 0\nwait = '2m'") == Retry(count=0, wait="2m")
    assert Retry(wait="2m").seconds == 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factor = 1.5", r"retry.factor = 1.5: a whole number from 1 to 100, as Argo parses it as one \(Atoi\)"),
        ("factor = 0", "retry.factor = 0: a whole number from 1"),
        ("factor = 101", "retry.factor = 101: a whole number from 1 to 100"),
        ("factor = nan", "retry.factor = nan"),
        ("factor = inf", "retry.factor = inf"),
        ("count = -1", r"retry.count = -1: 0 \(no retries\) to 100"),
        ("count = 1.5", "retry.count = 1.5: expected a value like 3"),
        ("wait = '60'", "retry.wait = '60': a whole number of seconds, minutes or hours, like '60s'"),
        ("wait = '1.5m'", "retry.wait = '1.5m'"),
        ("count = 30", "count = 30, wait = '60s' and factor = 2 wait 7.46e[+]05 days in all: make them less"),
        ("longest = '1800s'", "retry.longest is no more: .* delete the line"),
    ],
)
def test_what_argo_could_not_do_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(tmp_path, text)
