"""What the messages of a submission and of the site file offer leads out: each offer is taken, and it passes."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines import endpoint, submit
from cmapkd.pipelines.site import load_site
from cmapkd.pipelines.started import started_as
from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import main
from cmapkd_core.errors import InputError
from cmapkd_core.records import record_run
from cmapkd_core.request import DECIDING

pytestmark = pytest.mark.usefixtures("elsewhere")

REPOSITORY = Path(__file__).parents[2]

# What is wrong in a site file, what its message offers, and the line with the offer taken.
SITES = [
    ("pods.train.trainjob = 'yes'", "a value like false", "pods.train.trainjob = false"),
    ("parallel = '2'", "a value like 4", "parallel = 4"),
    ("pods.train.cpu = 8", "a value like '64'", "pods.train.cpu = '64'"),
    ("image_pull_secrets = 'registry'", 'a list of texts like ["a"]', 'image_pull_secrets = ["a"]'),
    (
        "[secrets]\nname = 's3'",
        "such as [{ name = 'secret', env = { VARIABLE = 'key' } }]",
        "secrets = [{ name = 'secret', env = { VARIABLE = 'key' } }]",
    ),
    ("[secrets]\nname = 's3'", "or [[secrets]]", "[[secrets]]\nname = 's3'\nenv = { VARIABLE = 'key' }"),
    (
        "pods.train.tolerations = 'gpu'",
        "such as [{ key = 'nvidia.com/gpu' }]",
        "pods.train.tolerations = [{ key = 'nvidia.com/gpu' }]",
    ),
    ("env = 'X=1'", "like { name = 'text' } or [env]", "env = { name = 'text' }"),
    ("pods = 'x'", "a table [pods]", "[pods]"),
    (
        "env = { MY_PASSWORD = 'x' }",
        "name a Kubernetes secret in [[secrets]]",
        "[[secrets]]\nname='x'\nenv={MY_PASSWORD='k'}",
    ),
    (
        "secrets = [{ name = 'x' }]",
        "env = { VARIABLE = 'key' }",
        "secrets = [{ name = 'x', env = { VARIABLE = 'key' } }]",
    ),
    (
        "weights = { 'ViT-L-14 openai' = 's3://b/x.pt' }",
        '"TAG@FILE"',
        "weights = { 'ViT-L-14 openai' = 'openai@s3://b/x.pt' }",
    ),
    (
        "weights = { 'hf-hub:a/b own' = 's3://b/x' }",
        '"local-dir:FOLDER"',
        "weights = { 'hf-hub:a/b own' = 'local-dir:s3://b/x' }",
    ),
    ("retry = { longest = '1h' }", "delete the line", ""),
    ("retry = { count = 101 }", "0 (no retries) to 100", "retry = { count = 0 }"),
    ("retry = { wait = 'a minute' }", "like '60s'", "retry = { wait = '60s' }"),
    ("retry = { factor = 1.5 }", "a whole number from 1 to 100", "retry = { factor = 1 }"),
    ("retry = { count = 20 }", "make them less", "retry = { count = 10 }"),
    ("image_pull_policy = 'always'", "one of Always", "image_pull_policy = 'Always'"),
    ("parallel = 0", "at least one task at a time", "parallel = 1"),
    ("shutdown_timeout = 30", "1 to 29 seconds", "shutdown_timeout = 29"),
    ("pods.train.hours = 0", "a second to a year", "pods.train.hours = 8760"),
    ("pods.evaluate.nodes = 2", "1, or more for pods.train alone", "pods.train.nodes = 2"),
    ("pods.evaluate.trainjob = true", "for pods.train alone", "pods.train.trainjob = true"),
    ("pods.train.gang = 'kueue'", "one of coscheduling, volcano", "pods.train = { gang = 'volcano', nodes = 2 }"),
    ("pods.train.gang = 'volcano'", "or trainjob = true", "pods.train = { gang = 'volcano', trainjob = true }"),
    ("pods.train.cpu = '8 cores'", "cores ('8') or millicores ('500m')", "pods.train.cpu = '500m'"),
    ("pods.train.memory = '16 GB'", "a size like '16Gi'", "pods.train.memory = '16Gi'"),
]


@pytest.mark.parametrize(("wrong", "offer", "remedy"), SITES)
def test_what_a_refused_site_file_is_offered_leads_out(wrong: str, offer: str, remedy: str) -> None:
    Path("site.toml").write_text(wrong)
    with pytest.raises(InputError) as caught:
        load_site("site.toml")
    assert offer in str(caught.value)
    Path("site.toml").write_text(remedy)
    load_site("site.toml")


# What is wrong in a command, what its message offers, and the command with the offer taken. All are run dry.
COMMANDS = [
    ("--recipe tiny --parallel 2", "give --local", "--recipe tiny --local --parallel 2"),
    ("--recipe tiny --parallel 2", "or a suite", "--recipe tiny --suite smoke --parallel 2"),
    ("--recipe tiny --local --parallel none", "at least 1", "--recipe tiny --local --parallel 1"),
    ("--recipe tiny --local --expectations", "give --suite", "--recipe tiny --local --suite smoke --expectations"),
    ("--recipe tiny --local --seeds 3", "give --suite", "--recipe tiny --local --seeds 3 --suite smoke"),
    ("--recipe tiny --local --seeds 3", "or --seed for a single run", "--recipe tiny --local --seed 3"),
    ("--recipe tiny --local --suite smoke --seeds 0", "at least 1", "--recipe tiny --local --suite smoke --seeds 1"),
    ("--recipe tiny --local --suite smoke --seed 1", "leave out --seed", "--recipe tiny --local --suite smoke"),
    ("--recipe tiny --local --suite smoke --method kd", "leave out --method", "--recipe tiny --local --suite smoke"),
    ("--recipe tiny --local --method kd --ablation no_alsn", "give one", "--recipe tiny --local --method kd"),
    (
        "--recipe tiny --local --method kd --ablation no_alsn",
        "--set changes single",
        "--recipe tiny --local --set optim.batch=8",
    ),
    ("--local --only joint", "name it with --run", "--local --only joint --run RUN"),
    ("--recipe tiny --local --only joint --run RUN", "leave out --recipe", "--local --only joint --run RUN"),
    ("--only joint --run RUN", "give --root", "--only joint --run RUN --root runs/local"),
    ("--local --only joint --run RU", "'RUN'", "--local --only joint --run RUN"),
    ("--local", "--data folder:/data/folder", "--local --data folder:pictures"),
    ("--recipe tiny --local --data ./pictured", "pictures?", "--recipe tiny --local --data ./pictures"),
    (
        "--recipe tiny --local --set data.crop_scale=x",
        "such as data.crop_scale=0.9,1.0",
        "--recipe tiny --local --set data.crop_scale=0.9,1.0",
    ),
    (
        "--recipe tiny --local --set schedule.fine.selects=1",
        "such as schedule.fine.selects=true",
        "--recipe tiny --local --set schedule.fine.selects=true",
    ),
    ("--local --site my.toml --recipe tiny", "copy site.example.toml", "--local --site copy.toml --recipe tiny"),
]


@pytest.mark.parametrize(("wrong", "offer", "remedy"), COMMANDS)
def test_what_a_refused_command_is_offered_leads_out(
    wrong: str, offer: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(REPOSITORY / "site.example.toml", "copy.toml")
    Path("pictures").mkdir(exist_ok=True)
    record_run("runs/local", "RUN", dict.fromkeys(DECIDING, "") | {"recipe": "tiny", "ablation": "none"})
    assert main(["--dry-run", *shlex.split(wrong)]) == 2
    assert offer in capsys.readouterr().err
    assert main(["--dry-run", *shlex.split(remedy)]) == 0


# The same of commands that start something on a cluster.
STARTS = [
    ("--recipe tiny --schedule '0 2 * *'", "five fields such as '0 2 * * 1'", "--recipe tiny --schedule '0 2 * * 1'"),
    ("--recipe tiny --schedule '0 2 * * 1' --local", "leave out --local", "--recipe tiny --schedule '0 2 * * 1'"),
    ("--recipe tiny --schedule '0 2 * * 1' --wait", "leave out --wait", "--recipe tiny --schedule '0 2 * * 1'"),
    ("--recipe tiny --schedule '0 2 * * 1' --suite smoke", "leave out --suite", "--recipe tiny --schedule '0 2 * * 1'"),
    ("--recipe tiny --root runs", "give --root s3://bucket/prefix", "--recipe tiny --root s3://box/prefix"),
    ("--retry R --set optim.batch=8", "leave out --set", "--retry R"),
    ("--retry S", "give its name, or the id at the end of its link", "--retry run-0"),
]


@pytest.mark.parametrize(("wrong", "offer", "remedy"), STARTS)
def test_what_a_refused_start_is_offered_leads_out(
    wrong: str, offer: str, remedy: str, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.runs.append({"run_id": "run-0", "display_name": "R", "experiment_id": "e", "state": "FAILED"})
    assert main(shlex.split(wrong)) == 2
    assert offer in capsys.readouterr().err
    assert main(shlex.split(remedy)) == 0


def test_each_way_to_an_endpoint_an_image_and_a_token(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Path("site.toml").read_text()
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    with pytest.raises(InputError, match="fill in `endpoint`, or set KF_PIPELINES_ENDPOINT"):
        endpoint.connect(load_site("site.toml"))
    Path("site.toml").write_text(f"endpoint = '{api.url}'\n{site}")
    endpoint.connect(load_site("site.toml"))
    api.token = "word"
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "Bearer word")
    with pytest.raises(InputError, match="put the token alone into it, without the word Bearer"):
        endpoint.connect(load_site("site.toml"))
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "word")
    endpoint.connect(load_site("site.toml"))


def test_what_a_run_that_is_too_large_is_offered_trains_nothing_twice() -> None:
    """Its evaluations in two submissions: they read the same trained student."""
    here = ["--recipe", "tiny", "--local"]
    more = [*here, "--set", "evaluate.sets=vqa=easy_vqa", "--run", "more"]
    first, second = (decide(submit.parser().parse_args(one)) for one in (here, more))
    assert first.urls["joint"] == second.urls["joint"]
    assert first.run != second.run


@pytest.mark.parametrize(
    ("typed", "path", "said"),
    [
        ("pipelines/submit.py", "", [".venv/bin/python", "pipelines/submit.py"]),
        ("pytest", "", [".venv/bin/python", "pipelines/submit.py"]),  # of a notebook or a test
        ("cmapkd/__main__.py", "", [".venv/bin/python", "-m", "cmapkd", "submit"]),
        (".venv/bin/cmapkd", "", [".venv/bin/cmapkd", "submit"]),
        (".venv/bin/cmapkd", ".venv/bin", ["cmapkd", "submit"]),
        (".venv/bin/cmapkd", "other", [".venv/bin/cmapkd", "submit"]),  # another one is first there
    ],
)
def test_a_command_that_is_offered_begins_as_the_one_that_was_typed(
    typed: str, path: str, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in (".venv/bin", "other"):
        command = tmp_path / folder / "cmapkd"
        command.parent.mkdir(parents=True)
        command.touch(mode=0o755)
    root = REPOSITORY if said[-1].endswith(".py") else tmp_path
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "executable", str(root / ".venv/bin/python"))
    monkeypatch.setattr(sys, "argv", [str(root / typed)])
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else "")
    assert started_as() == said
