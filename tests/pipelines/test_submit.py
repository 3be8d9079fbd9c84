"""submit.py as a command: what it prints, starts and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest

from cmapkd.pipelines import client, endpoint, submit
from cmapkd.pipelines.package import PARAMETERS
from cmapkd.pipelines.placeholders import refuse_placeholders
from cmapkd.pipelines.site import Local, Site, load_site
from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import main
from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.records import read_record
from cmapkd_core.request import recipe_of

REPOSITORY = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_row_that_leaves_its_recipe_as_it_is_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--recipe", "calibrated", "--data", "emoji", "--dry-run"]
    assert main([*command, "--ablation", "no_alsn"]) == 0
    told = "note: row no_alsn changes nothing here, since recipe calibrated with its overrides has selector.kind=fixed"
    assert told in capsys.readouterr().err
    for row in ("alsn", "manual_alsn", "none"):
        assert main([*command, "--ablation", row]) == 0
        assert "changes nothing" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (["--method", "clip_kd", "--set", "method.weights.bank=1"], "run reads method.weights.bank=1"),
        (["--method", "finetune", "--set", "teachers=tiny-student:random"], "run reads teachers=tiny-student:random"),
        (["--suite", "smoke", "--set", "method.weights.hint=2 seed=1"], "suite reads method.weights.hint=2"),
    ],
)
def test_a_field_that_nothing_reads_is_told_of(
    command: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "tiny", "--local", "--dry-run", *command]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert notes == [f"note: nothing of this {field}: its results are the same without"]


@pytest.mark.parametrize("field", ["optim.batch=8", "evaluate.batch=8", "runtime.workers=1", "method.weights.task=0.1"])
def test_a_field_that_is_read_or_that_no_result_hangs_on_is_not(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor one that the recipe has already."""
    assert main(["--recipe", "tiny", "--local", "--dry-run", "--set", field]) == 0
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--recipe", "bench", "--ablation", "lift_128"], "not for tf_efficientnet_lite0: leave student.lift at 0"),
        (["--set", "student.lift=512"], "student.lift=512 is below the width of the student's image tower, 768"),
        (["--set", "student.lift=512 student.model=RN50"], "not for a ResNet: leave student.lift at 0"),
        (["--recipe", "bench", "--suite", "twins"], "row lift_128 of suite twins: student.lift=128 is for"),
        (
            ["--recipe", "tiny", "--suite", "similarities"],
            "row two_teachers of suite similarities: teacher lite0",
        ),
        (
            ["--recipe", "tiny", "--suite", "noise"],
            "and has data.noise=0.0 here: --set data.noise=0.3",
        ),
        (["--recipe", "tiny", "--ablation", "oracle_alsn", "--set", "data.val_share=0"], "leaves source scenes none"),
        (["--recipe", "bench", "--data", "glyphs:nowhere", "--local"], "there is no folder nowhere"),
        (
            ["--recipe", "tiny", "--set", "evaluate.sets=zeroshot=emoji:nowhere"],
            "and reads no folder: leave out its place",
        ),
        (["--recipe", "bench", "--suite", "narrow", "--set", "method.one_map=true"], "both have 256 numbers here"),
        (["--recipe", "tiny", "--suite", "narrow"], "and has method.one_map=false here: --set method.one_map=true"),
        (["--recipe", "demo", "--data", "emoji:nowhere"], "carries its pictures and reads no folder"),
        (["--recipe", "dem"], "unknown recipe 'dem': did you mean 'demo'"),
        (["--ablation", "no_alsm"], "unknown ablation 'no_alsm': did you mean 'no_alsn'"),
        (["--method", "fintune"], "unknown method 'fintune': did you mean 'finetune'"),
        (["--set", "optim.bach=3"], "unknown field 'optim.bach': did you mean 'optim.batch'"),
        (["--set", "optim.batch"], "has no '='"),
        (["--seed", "one"], "seed=one: expected int"),
        (["--set", "student.model=ViT-B-61"], "unknown model 'ViT-B-61': did you mean 'ViT-B-16'"),
        (["--set", "teacher.weights=opnai"], "unknown weights 'opnai' of ViT-L-14: did you mean 'openai'"),
        (["--set", "teacher.weights=openai@x.pt"], "convert it once"),
        (["--local", "--set", "teacher.weights=openai@x.safetensors"], "there is no weights file x.safetensors"),
        (["--local", "--set", "student.model=x.json student.weights=random"], "there is no model config x.json"),
        (["--local", "--set", "student.model=local-dir:x student.weights=own"], "x has no open_clip_config.json"),
        (["--method", "kd", "--ablation", "no_alsn"], "give one"),
        (["--site", "none.toml"], "no site file 'none.toml'"),
        (["--only", "joint"], "name it with --run"),
        (["--only", "joint", "--run", "r", "--seed", "1", "--local"], "leave out --seed"),
        (["--from-stage", "joint", "--run", "r", "--local"], "no run 'r' below runs/local/runs"),
        (["--local", "--parallel", "0"], "--parallel 0: a number of tasks at a time, at least 1"),
        (["--parallel", "2"], "give --local, or a suite"),
    ],
)
def test_mistakes_end_with_2_and_the_way_out(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", *command]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("", "no endpoint"),
        ("endpoint = 'http://x'", "root '' is no place"),
        ("endpoint='x'\nroot='s3://b'", "no image"),
    ],
)
def test_a_submission_needs_endpoint_root_and_image(
    site: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("site.toml").write_text(site)
    assert main(["--data", "emoji"]) == 2
    assert message in capsys.readouterr().err


EXAMPLE = (REPOSITORY / "site.example.toml").read_text()


def test_the_example_s_placeholders_are_named_and_what_fills_them_in_submits(
    api: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site.toml").write_text(EXAMPLE)
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert main(["--ablation", "no_alsn"]) == 2
    fields = capsys.readouterr().err
    assert all(f"{name} = " in fields for name in ("endpoint", "data", "root", "image"))
    assert not re.search("local|namespace|experiment", fields)
    assert main(["--check"]) == 1
    assert re.search(r"failed +site file +the site file still has placeholders.*endpoint = ", capsys.readouterr().out)
    text = EXAMPLE.replace("<bucket>", "box").replace("https://<kubeflow>/pipeline", api.url)
    Path("site.toml").write_text(text.replace("<registry>", "r.test").replace("<digest>", 64 * "0"))
    assert main(["--ablation", "no_alsn"]) == 0
    assert api.runs[0]["runtime_config"]["parameters"]["data"] == "folder:s3://box/pictures"
    assert main(["--recipe", "tiny"]) == 0  # it comes with its own
    assert api.runs[1]["runtime_config"]["parameters"]["data"] == ""


@pytest.mark.parametrize("host", ["https://kubeflow.example.org/pipeline", "https://kf.example", "<kubeflow>"])
def test_hosts_that_are_nobody_s_are_placeholders(host: str) -> None:
    with pytest.raises(InputError, match=f'placeholders, put in what is yours: endpoint = "{host}"$'):
        refuse_placeholders(Site(endpoint=host, local=Local(root="<root>")))
    refuse_placeholders(Site(endpoint="https://kubeflow.myexample.org", image="r.test/example/cmapkd@sha256:0"))


@pytest.mark.parametrize("mode", [["--dry-run"], ["--local"], []])
@pytest.mark.parametrize(
    ("given", "message", "way_out"),
    [
        ([], "data.source=folder needs data.url", ["--data", "folder:s3://bucket/folder"]),
        (["--suite", "smoke"], "data.source=folder needs data.url", ["--data", "folder:s3://bucket/folder"]),
        (
            ["--data", "emoji", "--set", "evaluate.sets=vqa=vqav2"],
            "evaluate.sets=vqa=vqav2 needs a URL",
            ["--set", "evaluate.sets=vqa=vqav2:s3://bucket/vqav2"],
        ),
    ],
)
def test_data_without_a_folder_is_refused_before_anything_starts(
    mode: list[str], given: list[str], message: str, way_out: list[str], api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "calibrated", *given, *mode]) == 2
    refused = capsys.readouterr().err
    assert message in refused
    assert " ".join(way_out) in refused
    assert not api.runs
    if mode == ["--dry-run"]:
        assert main(["--recipe", "calibrated", *given, *way_out, *mode]) == 0


WEIGHTS = """
[weights]
"ViT-L-14 openai" = "openai@s3://box/l.safetensors"
"ViT-B-16 openai" = "openai@s3://box/b.safetensors"
"ViT-B-16-SigLIP webli" = "local-dir:s3://box/siglip"
"""


@pytest.mark.parametrize(
    ("given", "teacher", "student", "note"),
    [
        ([], "openai@s3://box/l.safetensors", "openai@s3://box/b.safetensors", ""),
        (["--suite", "smoke"], "openai@s3://box/l.safetensors", "openai@s3://box/b.safetensors", ""),
        (
            ["--set", "teacher.weights=openai@s3://me/l.safetensors"],
            "openai@s3://me/l.safetensors",
            "openai@s3://box/b.safetensors",
            "",
        ),
        (["--set", "student.weights=random"], "openai@s3://box/l.safetensors", "random", ""),
        (["--method", "scratch"], "openai@s3://box/l.safetensors", "random", "student ViT-B-16 openai"),
        (["--set", "student.model=ViT-B-32"], "openai@s3://box/l.safetensors", "openai", "student ViT-B-32 openai"),
        (["--recipe", "tiny"], "random", "random", ""),
        (
            ["--set", "teacher.model=ViT-B-16-SigLIP", "--set", "teacher.weights=webli"],
            *("own", "openai@s3://box/b.safetensors", ""),
        ),
    ],
)
def test_a_site_s_files_take_the_place_of_what_a_hub_has(
    given: list[str], teacher: str, student: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("site.toml").write_text(WEIGHTS)
    command = ["--recipe", "calibrated", "--data", "emoji", *given]
    job = decide(submit.parser().parse_args([*command, "--root", "s3://box/root"]))
    recipe = recipe_of(job.request)
    assert (recipe.teacher.weights, recipe.student.weights) == (teacher, student)
    assert recipe.teacher.model.startswith("local-dir:s3://box/siglip") == (teacher == "own")
    fetched = capsys.readouterr().err
    assert note in fetched
    assert bool(fetched) == bool(note)
    here = decide(submit.parser().parse_args([*command, "--local"]))
    assert "s3://box" not in here.request["overrides"]


def test_a_package_compiled_without_a_site_says_what_its_form_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compile-only", "out.yaml"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("out.yaml: 14 tasks, Workflow ")
    assert "image and root are empty in this package" in printed.err
    assert main(["--compile-only", "out.yaml", "--root", "s3://box/root"]) == 0
    assert "note: image is empty" in capsys.readouterr().err
    Path("site.toml").write_text("image = 'r.test/a'\nroot = 's3://box/root'")
    assert main(["--compile-only", "out.yaml"]) == 0
    assert not capsys.readouterr().err


def test_dry_run_tells_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--recipe", "demo", "--ablation", "no_alsn", "--root", "s3://box/root", "--dry-run", "--seed", "3"]) == 0
    )
    text = capsys.readouterr().out
    assert "selector.kind = fixed" in text
    assert "fine: 8 epochs; trains student at 0.0003, pyramid at 0.0005; levels P2 P3 P4 P5 L1 L2 L3 L4" in text
    assert "hands the warm-up's artifact on" in text
    assert "runs  8 GPU, 64 cores, 256Gi, /dev/shm 64Gi, at most 72 h, torchrun with 8" in text
    assert "reference-joint (row finetune)" in text
    assert "to    s3://box/root/joint/" in text
    assert all(f"\n  {name} " in text for name in PARAMETERS)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("given", "source"),
    [
        (["--data", "folder:/pictures"], "source folder /pictures\n"),
        (["--data", "folder:/pictures", "--set", "data.size=7"], "source folder /pictures, its first 7 rows\n"),
    ],
)
def test_dry_run_tells_a_limit_of_rows(capsys: pytest.CaptureFixture[str], given: list[str], source: str) -> None:
    assert main(["--recipe", "tiny", "--root", "s3://box/root", "--dry-run", *given]) == 0
    assert source in capsys.readouterr().out


def test_dry_run_tells_what_the_data_may_lack_and_where_a_root_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "tiny", "--data", "folder:/pictures", "--dry-run"]) == 0
    text = capsys.readouterr().out
    student = text.partition(" evaluate-student\n")[2].splitlines()
    assert student[0].strip() == "retrieval, zeroshot on split test"
    assert student[1].strip() == "zeroshot is left out where the pictures have no classes"
    assert "levels of teacher and student on split test" in text
    assert "to    {root}/joint/" in text
    assert "{root} below is the root, which nothing names yet: give --root s3://bucket/prefix" in text
    assert main(["--recipe", "tiny", "--suite", "table4", "--data", "folder:/pictures", "--dry-run"]) == 0
    assert "{root} below is the root" in capsys.readouterr().out
    assert main(["--recipe", "tiny", "--root", "s3://box/root", "--dry-run"]) == 0  # its own data have classes
    text = capsys.readouterr().out
    assert "left out where" not in text
    assert "{root}" not in text


def test_the_reference_has_no_teacher_whatever_is_overridden() -> None:
    def urls(overrides: str) -> dict[str, str]:
        given = [word for text in overrides.split() for word in ("--set", text)]
        return decide(submit.parser().parse_args(["--recipe", "tiny", "--root", "r", "--local", *given])).urls

    changed, plain = urls("method.name=kd method.weights.kd=1"), urls("")
    assert changed["joint"] != plain["joint"]
    assert changed["reference-joint"] == urls("method.weights.kd=1")["reference-joint"] != changed["joint"]
    assert (
        urls("method.weights.task=0 method.weights.fd=1 selector.toward=fd")["reference-joint"]
        == plain["reference-joint"]
    )


def test_the_script_works_from_anywhere(tmp_path: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "pipelines" / "submit.py")]
    done = subprocess.run([*script, "--compile-only", "out.yaml", "--ablation", "kd"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert "defaultValue: kd" in (tmp_path / "out.yaml").read_text()


def test_a_submission_uploads_once_and_gives_the_link(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ablation", "no_alsn", "--set", "optim.batch=8", "--run", "first"]) == 0
    assert f"{api.url}/#/runs/details/run-0" in capsys.readouterr().out
    assert main(["--seed", "1", "--run", "实验二"]) == 0
    assert api.runs[1]["display_name"] == read_record("s3://box/root", "实验二")["run"] == "实验二"
    assert (len(api.experiments), len(api.pipelines), len(api.versions), len(api.runs)) == (1, 1, 1, 2)
    run = api.runs[0]
    assert run["display_name"] == "first"
    assert "service_account" not in run
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v0"}
    parameters = run["runtime_config"]["parameters"]
    assert set(parameters) == set(PARAMETERS)
    assert (parameters["ablation"], parameters["overrides"]) == ("no_alsn", "optim.batch=8")


@pytest.mark.parametrize("command", [[], ["--schedule", "0 2 * * 1"]])
def test_the_pods_have_the_service_account_of_the_site(api: Any, command: list[str]) -> None:
    with Path("site.toml").open("a") as site:
        site.write('service_account = "cmapkd-runner"\n')
    assert main(command) == 0
    assert [run["service_account"] for run in api.runs + api.recurring] == ["cmapkd-runner"]


def test_a_changed_recipe_on_a_run_is_refused_before_it_starts(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", "changed"]) == 0
    assert main(["--run", "changed", "--set", "optim.batch=8"]) == 2
    assert "optim.batch: 16 -> 8" in capsys.readouterr().err
    assert len(api.runs) == 1


def test_one_stage_of_an_earlier_run_goes_with_its_own_package(api: Any) -> None:
    assert main(["--run", "again", "--ablation", "no_relation"]) == 0
    assert main(["--run", "again", "--only", "joint"]) == 0
    part = api.runs[1]
    assert part["runtime_config"]["parameters"]["ablation"] == "no_relation"
    assert "s3://box/root/alsn/" in json.dumps(part["pipeline_spec"])
    assert len(api.versions) == 1


def test_a_suite_goes_with_its_own_package_and_keeps_its_rows_and_seeds(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--suite", "smoke", "--seeds", "2", "--run", "pair", "--set", "optim.batch=8"]) == 0
    assert (len(api.versions), len(api.runs)) == (0, 4)
    assert all(set(run["runtime_config"]["parameters"]) == {"root", "tracking_uri", "image"} for run in api.runs)
    specs = [json.dumps(run["pipeline_spec"]) for run in api.runs]
    assert sum(spec.count('"constant": "optim.batch=8"') for spec in specs) == 20 + 3  # and three gates
    assert "pair.finetune-s1" in specs[1]
    record = read_record("s3://box/root", "pair")
    assert (record["suite"], record["seeds"], record["overrides"]) == ("smoke", "2", "optim.batch=8")
    assert main(["--suite", "smoke", "--seeds", "3", "--run", "pair", "--set", "optim.batch=8"]) == 2
    assert "seeds: 2 -> 3" in capsys.readouterr().err
    assert main(["--run", "pair", "--only", "suite-report"]) == 0
    tasks = api.runs[-1]["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]
    assert [task["taskInfo"]["name"] for task in tasks.values()] == ["suite-report"]


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_wait_follows_the_run(api: Any, state: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    api.ends_as = state
    assert main(["--wait", "--run", f"waited-{state}"]) == code
    text = capsys.readouterr().out
    assert "prepare running" in text
    assert f"prepare {state.lower()}" in text
    assert "driver" not in text


def test_wait_tells_of_a_task_that_no_container_was_started_for(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """KFP's driver failed, as for an input that a task leaves to its default; the task itself then has no state."""
    details = [{"display_name": "prepare-driver", "state": "FAILED"}, {"display_name": "prepare"}]
    api.on_run = lambda run: run.update(state="FAILED", run_details={"task_details": details})
    assert main(["--wait"]) == 1
    assert "prepare refused by its driver\n" in capsys.readouterr().out


def test_wait_looks_at_the_manifests_where_kfp_has_no_details_any_more(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a run whose status Argo compressed, which it does from about twenty finished tasks on."""
    job = decide(submit.parser().parse_args(["--run", "large"]))
    states = iter(["RUNNING", "RUNNING", "SUCCEEDED"])

    def seen(run_id: str) -> dict[str, Any]:
        storage.write_bytes(f"{job.urls['prepare']}/manifest.json", manifest())
        return {**api.runs[0], "state": next(states)}

    api.run_as_seen_now = seen
    assert main(["--run", "large", "--wait"]) == 0
    assert capsys.readouterr().out.count(" prepare succeeded\n") == 1


def test_following_outlasts_a_short_failure_and_gives_up_on_a_refusal(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", "patient"]) == 0
    site = load_site("site.toml")
    connected = endpoint.connect(site)
    api.fail_with, api.fail_times = 503, 2
    assert client.follow(connected, site, "run-0", {"prepare": "prepare"}) == "SUCCEEDED"
    assert capsys.readouterr().out.count("asking again") == 2
    api.fail_with, api.fail_times = 403, -1
    with pytest.raises(endpoint.EndpointError, match="answers 403"):
        client.follow(connected, site, "run-0", {})


def test_a_token_comes_from_the_environment(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.token = "secret-word"
    assert main(["--run", "token"]) == 3
    assert "KF_PIPELINES_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "secret-word")
    assert main(["--run", "token"]) == 0
    printed = capsys.readouterr()
    assert "secret-word" not in printed.out + printed.err + json.dumps(api.runs)


def test_rows_of_a_suite_are_checked_with_the_data_of_the_command() -> None:
    """COCO may have a split of its own, which recipe tiny's scenes have not."""
    data = ["--data", "coco:s3://box/coco", "--set", "data.val_share=0"]
    assert main(["--dry-run", "--recipe", "tiny", "--suite", "controls", *data]) == 0
