"""A user's own pictures from the command: how the folder may be written, recipe own's sizes, what the dry run says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cmapkd.pipelines.start import obey
from cmapkd.pipelines.submission import Submission, decide
from cmapkd.pipelines.submit import main, parser
from cmapkd_core import storage
from cmapkd_core.config import Recipe
from cmapkd_core.fields import parse_overrides
from cmapkd_core.request import recipe_of
from cmapkd_core.stages import cli, prepare

pytestmark = pytest.mark.usefixtures("elsewhere")


def pictures(folder: Path, count: int, bad: int = 0, **more: str) -> Path:
    """A captions file of so many pictures, none of which is there: nothing here opens one."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"file": f"{at}.png", "caption": "a mug" if at >= bad else "", **more}) for at in range(count)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def submission(*command: str) -> Submission:
    return decide(parser().parse_args(["--local", "--root", "runs", *command]))


def decided(*command: str) -> tuple[Recipe, dict[str, str]]:
    job = submission(*command)
    return job.recipes["run"], job.request


@pytest.mark.parametrize("written", ["pics", "./pics", "{}/pics", "~/pics", "folder:~/pics", "folder:{}/pics"])
def test_a_folder_may_be_written_as_a_path(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    here = Path.cwd()
    monkeypatch.setenv("HOME", str(here))
    pictures(here / "pics", 20)
    recipe, request = decided("--recipe", "own", "--data", written.format(here))
    assert (recipe.data.source, recipe.data.url) == ("folder", str(here / "pics"))
    assert request["data"] == f"folder:{here}/pics"


def test_a_source_wins_over_a_folder_of_its_name_and_s3_needs_no_word() -> None:
    pictures(Path("emoji"), 20)
    assert decided("--recipe", "demo", "--data", "emoji")[0].data.source == "emoji"
    assert decided("--recipe", "demo", "--data", "./emoji")[0].data.url == str(Path.cwd() / "emoji")
    recipe, request = decided("--recipe", "demo", "--data", "s3://bucket/pictures")
    assert (recipe.data.source, recipe.data.url) == ("folder", "s3://bucket/pictures")
    assert request["data"] == "folder:s3://bucket/pictures"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("./picz", "did you mean {}/pics?"),
        ("folder:pics/deeper/still", "there is no folder pics/deeper/still: {}/pics has no folder in it"),
        ("pics/captions.jsonl", "unknown data source 'pics/captions.jsonl'"),
        ("./pics/captions.jsonl", "is a file: name the folder in which it lies"),
    ],
)
def test_a_folder_that_is_none_is_refused_with_the_nearest(
    data: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(Path("pics"), 20)
    assert main(["--recipe", "tiny", "--data", data, "--local", "--dry-run"]) == 2
    assert message.format(Path.cwd()) in capsys.readouterr().err


def test_recipe_own_is_sized_by_its_pairs_and_recorded() -> None:
    pictures(Path("pics"), 503, bad=3)
    recipe, request = decided("--recipe", "own", "--data", "pics")
    assert (recipe.data.test_share, recipe.optim.batch, recipe.schedule.fine.epochs) == (0.1, 32, 16)
    assert recipe.data.fraction == 1
    assert recipe_of(request) == recipe  # stages make the same recipe of the strings
    assert parse_overrides(request["overrides"])["optim.batch"] == "32"


def test_the_users_values_and_the_rows_win_over_the_sizes() -> None:
    pictures(Path("pics"), 500)
    command = ("--recipe", "own", "--data", "pics")
    recipe, _ = decided(*command, "--set", "optim.batch=8 data.test_share=0.4")
    assert (recipe.optim.batch, recipe.data.test_share) == (8, 0.4)
    assert recipe.schedule.fine.epochs == 6  # 250 to train on: 31 steps; 400 / 31 -> 12 epochs
    assert decided(*command, "--ablation", "random_teacher_pyramid")[0].teacher_fit.pyramid.epochs == 0


def test_the_dry_run_says_what_follows_from_the_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(Path("pics"), 62, bad=2)
    command = ["--recipe", "own", "--data", "pics", "--local", "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "60 pictures with captions, and 2 rows that cannot be used" in said
    assert "about, by a hash: 30 to train on, 6 val, 24 test" in said
    assert "batches of 8; a student 40 epochs (10 + 10 + 20), 120 updates" in said
    pictures(Path("pics"), 40, split="train")
    assert main(command) == 0
    assert "as the rows say: 40 to train on, 0 val, 0 test" in capsys.readouterr().out
    assert main([*command, "--suite", "smoke", "--seeds", "1"]) == 0
    assert "as the rows say: 40 to train on" in capsys.readouterr().out


def test_the_demo_on_own_pictures_says_that_its_shares_are_the_demos(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(Path("pics"), 20)
    command = ["--recipe", "demo", "--local", "--dry-run"]
    note = (
        "train on 25% of the training pairs and 30% are for testing, as is right for the demo's pictures; --recipe own"
    )
    for more, told in (
        (["--data", "pics"], True),
        ([], False),
        (["--data", "pics", "--set", "data.fraction=1"], False),
    ):
        assert main([*command, *more]) == 0
        assert (note in capsys.readouterr().out) == told


def test_who_names_a_folder_and_no_recipe_is_told_of_recipe_own(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(Path("pics"), 20)
    note = "note: no --recipe is given, so ViT-L-14 teaches ViT-B-16 as of recipe calibrated; --recipe own has small"
    for words, told in (
        (["--data", "pics"], True),
        (["--data", "pics", "--recipe", "tiny"], False),
        (["--recipe", "tiny"], False),
    ):
        decide(parser().parse_args(["--root", "s3://b/r", *words]))
        assert (note in capsys.readouterr().err) == told


def test_pairs_that_cannot_be_counted_are_refused_or_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "own", "--data", "img2dataset:pics", "--dry-run"]) == 2
    capsys.readouterr()
    pictures(Path("pics"), 9)
    assert main(["--recipe", "own", "--data", "pics", "--local", "--dry-run"]) == 2
    assert "9 pairs can be used of 9 rows: recipe own needs at least 10" in capsys.readouterr().err


def test_pairs_on_s3_are_counted_and_where_it_does_not_answer_given(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put(pictures(Path("pics"), 500) / "captions.jsonl", storage.join(s3_root, "captions.jsonl"))
    assert decided("--recipe", "own", "--data", s3_root)[0].optim.batch == 32
    monkeypatch.setattr("cmapkd_core.data.sources.open_rows", _away)
    args = parser().parse_args(["--recipe", "own", "--data", s3_root, "--local", "--root", "runs", "--dry-run"])
    assert obey(args, []) == 2
    recipe, _ = decided("--recipe", "own", "--data", s3_root, "--set", "data.size=500")
    assert (recipe.optim.batch, recipe.data.size) == (32, 500)


def test_a_stage_by_itself_says_whose_sizes_it_takes_and_takes_those_of_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(pictures(Path("pics"), 20) / f"{number}.png")
    words = ["--recipe", "own", "--data", "pics", "--set", "data.leakage=ids"]
    alone = ["--root", "runs", "--artifact", "url"]
    assert cli.main(prepare.run, [*words, *alone]) == 0
    said = capsys.readouterr().out
    assert "1,000 pairs here, since only a run counts yours: data.val_share=0.1 data.test_share=0.1\n" in said
    assert f"--recipe own --data folder:{Path.cwd()}/pics --local --dry-run` prints a run's" in said
    job = submission(*words)
    assert Path("url").read_text() != storage.absolute(job.urls["prepare"])
    assert cli.main(prepare.run, [*words[:4], "--overrides", job.request["overrides"], *alone]) == 0
    assert "1,000" not in capsys.readouterr().out
    assert Path("url").read_text() == storage.absolute(job.urls["prepare"])


def _away(config: object) -> None:
    raise storage.StorageError("cannot reach the place")
