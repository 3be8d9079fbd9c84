"""A suite's runs executed as a cluster would: each a process of its own, behind real gates, at a root in S3."""

from __future__ import annotations

import calendar
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmapkd.pipelines import suite_runs
from cmapkd.pipelines.submit import main
from cmapkd_core import storage

SITE = 'image = "registry.test/cmapkd@sha256:1"\nroot = "s3://box/root"\nrecipe = "tiny"\n[pods.train]\ngpus = 0\n'
SUITE = ["--suite", "smoke", "--recipe", "tiny", "--seeds", "1"]
NAME, AT_A_TIME = "tiny-smoke-1seeds", 2
RUN = "import json, sys, pathlib, cmapkd.pipelines.local as local; local.run_package(pathlib.Path(sys.argv[1]),"
RUN += " json.loads(sys.argv[2]), '', parallel=9)"
KEPT = (".safetensors", ".parquet", "metrics.json")


class Cluster:
    """Executes the package of each run that is created, but for those in `fails`, which end at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fails = folder, {"finetune", "report"}
        self.ended: list[threading.Thread] = []

    def take(self, run: dict[str, Any]) -> None:
        name = run["display_name"].removeprefix(f"{NAME}.")
        if name in self.fails:
            self.fails.discard(name)
            run["state"] = "FAILED"
            return
        spec = run["pipeline_spec"]
        package = self.folder / f"{name}.yaml"
        package.write_text(yaml.safe_dump_all([spec["pipeline_spec"], spec["platform_spec"]]))
        given = json.dumps(run["runtime_config"]["parameters"])
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen([sys.executable, "-c", RUN, str(package), given], stdout=log, stderr=log)
        run["state"] = "RUNNING"
        self.ended.append(threading.Thread(target=self._end, args=(run, process)))
        self.ended[-1].start()

    def _end(self, run: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        run["state"] = "FAILED" if process.wait() else "SUCCEEDED"

    def close(self) -> None:
        for thread in self.ended:
            thread.join()


def manifests(root: str) -> dict[str, Any]:
    names = [name for name in storage.list_files(root) if name.endswith("/manifest.json")]
    return {name.removesuffix("/manifest.json"): storage.read_json(f"{root}/{name}") for name in names}


def at_a_time(found: dict[str, Any]) -> int:
    """The most stages at work in the middle of one; a manifest knows its end to a second."""
    spans = []
    for one in found.values():
        end = calendar.timegm(time.strptime(one["finished"], "%Y-%m-%dT%H:%M:%SZ"))
        spans.append((end - one["seconds"] + 1, end - 1))
    return max(sum(start <= (first + last) / 2 <= end for start, end in spans) for first, last in spans)


def made(root: str) -> dict[str, str]:
    every = [(f"{place}/{n}", o) for place, one in manifests(root).items() for n, o in one["outputs"].items()]
    return {name: output["sha256"] for name, output in every if name.endswith(KEPT)}


@pytest.mark.slow
def test_a_suite_in_a_cluster_makes_what_it_makes_here(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when a run had failed, and the same command added it."""
    Path("site.toml").write_text(SITE)  # a rank each: this machine plays the cluster
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    follow = suite_runs.follow
    monkeypatch.setattr(suite_runs, "follow", lambda *given: follow(*given, interval=2))
    there = [*SUITE, "--root", "s3://box/sim", "--parallel", str(AT_A_TIME), "--wait"]
    cluster = Cluster(tmp_path)
    api.on_run = cluster.take
    try:
        assert main(there) == 1
        assert f"failed: {NAME}.finetune, {NAME}.report" in capsys.readouterr().out
        assert main(there) == 0
        assert [run["display_name"].rpartition(".")[2] for run in api.runs[4:]] == ["finetune", "report"]
        assert main(there) == 0
        assert "nothing is missing" in capsys.readouterr().out
    finally:
        cluster.close()
    assert not [name for name in storage.list_files("s3://box/sim") if name.endswith("turn.json")]
    assert at_a_time(manifests("s3://box/sim")) <= AT_A_TIME
    assert main([*SUITE, "--root", "here", "--local"]) == 0
    assert made("s3://box/sim") == made("here")
    assert any(name.startswith("joint/") for name in made("here"))
