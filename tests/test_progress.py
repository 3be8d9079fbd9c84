"""What a person sees of work that goes on: the texts, a log's few lines, a terminal's bar."""

import io
import itertools
import sys

import pytest

from cmapkd_core.progress import Progress, ProgressDisplay, State, in_words, per_second


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def said_at(seconds: float, done: int, total: int, unit: str = "rows", state: str = "", **more) -> list[str]:
    """What is said `seconds` after the start."""
    said: list[str] = []
    times = itertools.chain([100.0], itertools.repeat(100.0 + seconds))
    Progress(said.append, "prepare", total, unit, now=lambda: next(times), **more)(done, state)
    return said


def test_the_number_the_speed_and_the_rest():
    assert said_at(2.0, 50, 600) == ["prepare: 50/600 rows  25 rows/s  ETA 22 s"]
    assert said_at(2.0, 50, 0) == ["prepare: 50 rows  25 rows/s"]
    assert said_at(10.0, 5, 600) == ["prepare: 5/600 rows  0.5 rows/s  ETA 19:50"]
    assert said_at(2.0, 50, 100, state="epoch 1/2  loss 0.5") == ["prepare: epoch 1/2  loss 0.5  25 rows/s  ETA 2 s"]


def test_what_an_earlier_attempt_did_takes_no_time_and_others_than_every_are_not_said():
    assert said_at(2.0, 150, 200, before=100) == ["prepare: 150/200 rows  25 rows/s  ETA 2 s"]
    assert said_at(2.0, 49, 200, every=50) == []
    assert said_at(2.0, 100, 200, before=100) == ["prepare: 100/200 rows"]  # nothing tells the speed yet


def test_a_text_knows_its_share():
    (text,) = said_at(2.0, 50, 200)
    assert text.share == 0.25
    assert said_at(2.0, 250, 200)[0].share == 1.0  # more rows than the source had told


def test_numbers_of_any_size_are_readable():
    assert [per_second(speed) for speed in (764.6, 10.2, 9.8, 0.031)] == ["765", "10", "9.8", "0.031"]
    assert [in_words(seconds) for seconds in (0.4, 119, 120, 7384)] == ["0 s", "119 s", "2:00", "2:03:04"]


def test_a_log_has_a_line_now_and_then_and_the_last_state(capsys: pytest.CaptureFixture[str]):
    show = ProgressDisplay(quiet=False, seconds=3600)
    for text in ("1 of 3", "2 of 3", "3 of 3", "done\n", "4"):
        show(text)
    show.end()
    assert capsys.readouterr().out == "1 of 3\n3 of 3\ndone\n4\n"


def test_a_quiet_one_shows_nothing(capsys: pytest.CaptureFixture[str]):
    show = ProgressDisplay(quiet=True)
    show("1 of 3")
    show("done\n")
    show.end()
    assert capsys.readouterr().out == ""


def test_a_terminal_has_a_bar_that_is_drawn_over_and_texts_that_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    show = ProgressDisplay(quiet=False)
    show(State.of("a: 1/4", 0.25))
    show(State.of("a: 3/4", 0.75))
    show("then\n")
    show("b")
    show.end()
    bars, after = sys.stdout.getvalue().split("then\n")
    first, second, *_ = (part for part in bars.split("\r") if part.startswith("a: "))
    assert first.startswith("a: 1/4  |")
    assert second.startswith("a: 3/4  |")
    assert 0 < first.count("█") < second.count("█")
    assert bars.endswith("\n")
    assert "\rb" in after
    assert after.endswith("\n")


def test_a_narrow_terminal_shows_how_long_it_takes_and_leaves_the_whole_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    text = "warmup foundation: epoch 10/30  step 12340/45000  loss 12.3456  1234 samples/s  ETA 12:34:56"
    show = ProgressDisplay(quiet=False)
    show(State.of(text, 0.5))
    shown = sys.stdout.getvalue().split("\r")[-1].rstrip()
    assert shown == "warmup foundation: epoch 10/.. 1234 samples/s  ETA 12:34:56"
    assert len(shown) == 59
    show.end()
    assert sys.stdout.getvalue().endswith(f"{text}\n")
