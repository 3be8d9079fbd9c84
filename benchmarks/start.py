"""What a command costs before it works, in seconds of CPU; and a finished run that is asked for again.

    python pipelines/submit.py --recipe tiny --local --root runs/tiny      # once
    python benchmarks/start.py --recipe tiny --root runs/tiny

Each row is the median of `--rounds` processes, rows in turn, with all that their children take. Seconds of CPU count
little of what else runs on the machine; time on a clock is beside it. First each stage is seen to answer that its
artifact stands, with the URL that the run has for it. The peers are imports alone: of torch, and of open_clip, which
has the models.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from cmapkd.pipelines.ir import command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.submission import Submission, decide
from cmapkd.pipelines.submit import parser as command

REPOSITORY = Path(__file__).resolve().parents[1]
SUBMIT = [sys.executable, str(REPOSITORY / "pipelines/submit.py")]


@dataclass
class Row:
    """A command, and what its rounds took. goal: seconds of CPU; of the whole run, on the clock."""

    name: str
    argv: list[str]
    goal: str = ""
    cpu: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)

    def measure(self) -> str:
        """Run it once; what it printed."""
        with tempfile.TemporaryFile() as printed:
            began = time.monotonic()
            process = subprocess.Popen(self.argv, cwd=REPOSITORY, stdout=printed, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.clock.append(time.monotonic() - began)
            self.cpu.append(used.ru_utime + used.ru_stime)
            printed.seek(0)
            text = printed.read().decode()
        if process.returncode:
            raise SystemExit(f"{self.name} ended with exit code {process.returncode}:\n{text}")
        return text

    def line(self) -> str:
        """Its row of the table."""
        cpu, clock = (statistics.median(seconds) for seconds in (self.cpu, self.clock))
        return f"| {self.name} | {cpu:.2f} | {clock:.2f} | {self.goal} |"


def stages(job: Submission, folder: Path) -> list[Row]:
    """Every task of the run as the process that `--local` would start."""
    spec, _ = load_package(job.package(folder / "pipeline.yaml"))
    form = spec.root.input_definitions.parameters.items()
    given = {name: one.default_value.string_value for name, one in form if one.HasField("default_value")}
    ordered = steps(spec, [task.name for task in job.tasks])
    outputs = {step.key: {"artifact": job.urls[step.name]} for step in ordered}
    rows = []
    for step in ordered:
        (folder / step.key).mkdir()
        inputs = resolve_inputs(step, given | dict(job.arguments), outputs, job.run)
        argv = command_line(step, executor_input(step, inputs, folder / step.key))
        rows.append(Row(f"{step.name}, complete", [sys.executable, *argv[1:]], "3"))
    return rows


def refuse_others(rows: list[Row], job: Submission) -> None:
    """Hold each stage's answer to the run's; one that would work, or has another place, is no start."""
    for row in rows:
        text, url = row.measure(), job.urls[row.name.removesuffix(", complete")]
        if "already complete" not in text or url not in text:
            raise SystemExit(f"{row.name}: {url} is not there as this checkout makes it; run it first:\n{text}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--root", required=True, help="of a finished run")
    cli.add_argument("--recipe", default="tiny")
    cli.add_argument("--rounds", type=int, default=3)
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    run = ["--recipe", args.recipe, "--local", "--root", args.root]
    job = decide(command().parse_args(run))
    with tempfile.TemporaryDirectory() as folder:
        asked = stages(job, Path(folder))
        refuse_others(asked, job)
        rows = [
            *(
                Row(f"import {name}", [sys.executable, "-c", f"import {name}"], "peer")
                for name in ("torch", "open_clip")
            ),
            Row("submit.py --help", [*SUBMIT, "--help"], "0.5"),
            Row("submit.py --dry-run", [*SUBMIT, *run, "--dry-run"], "1.5"),
            *asked,
            Row(f"a finished run of {len(asked)} tasks again", [*SUBMIT, *run], "15 on the clock"),
        ]
        for row in asked:
            row.cpu.clear()
            row.clock.clear()
        for _ in range(args.rounds):
            for row in rows:
                row.measure()
    print("| command | CPU s | s | goal |\n|---|---|---|---|")
    for row in rows:
        print(row.line())


if __name__ == "__main__":
    main()
