"""What submit.py does once its command is read: run here or there, compile, retry, follow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmapkd.pipelines import client, deliver, dryrun, endpoint, site_check, size, suite_retry, suite_runs, verify
from cmapkd.pipelines.ir import display_names
from cmapkd.pipelines.local import StageError, run_package
from cmapkd.pipelines.own_data import size_notes
from cmapkd.pipelines.placeholders import empty_in_form, refuse_placeholders
from cmapkd.pipelines.site import Site, load_site
from cmapkd.pipelines.started import to_paste
from cmapkd.pipelines.submission import Submission, check_mode, cron, decide, laid_out
from cmapkd_core import temporary, tracking
from cmapkd_core.command_line import until_enough
from cmapkd_core.errors import InputError
from cmapkd_core.exits import EXPLAINED
from cmapkd_core.records import give_up, read_record, record_run
from cmapkd_core.stages.artifact import find
from cmapkd_core.storage import StorageError


def run_here(job: Submission, command: Sequence[str]) -> int:
    """Run all tasks on this machine; returns the exit code."""
    take_name(job)
    open_tracker(job)
    with temporary.folder() as folder:
        package = job.package(Path(folder) / "pipeline.yaml")
        try:
            print(f"run {job.run} below {job.arguments['root']}")
            if job.recipes:
                print(
                    *(f"  {line}\n" for line in size_notes(job.recipes["run"], job.pairs)), sep="", end="", flush=True
                )
            if job.suite:
                print(dryrun.counts(job))
            order = [task.name for task in job.tasks]
            outputs = run_package(
                package, job.arguments, job.run, order, parallel=job.site.parallel, places=job.urls, alone=job.timed
            )
        except StageError as error:
            print(f"\n{error}\nrun it again: {to_paste(*command)}", file=sys.stderr)
            print("finished stages answer at once, the failed one goes on from its last checkpoint", file=sys.stderr)
            mark_killed(job, error)
            return error.code
    from cmapkd.pipelines.closing import closing  # with pyarrow, which no dry run and no submission should pay for

    print(closing(outputs, job.urls, job.request["data"]))
    return 0


def take_name(job: Submission) -> None:
    """Write the run's record; a name of which nothing is complete is taken from the recipe that had it."""
    root = job.arguments["root"]
    if changed := [] if stands(root, job.run) else give_up(root, job.run, job.request):
        lines = "\n  ".join(changed)
        print(f"run {job.run} had another recipe, of which no stage was complete; it has this one now:\n  {lines}")
    record_run(root, job.run, job.request)


def stands(root: str, run: str) -> bool:
    """Whether a stage of an earlier run of this name is complete, its report aside: others may share what it made."""
    try:
        read_record(root, run)
    except InputError:  # there is none, or `record_run` says what is wrong with it
        return False
    return any(find(url) for url in laid_out(root, run).urls.values())


def open_tracker(job: Submission) -> None:
    """Make a database of this machine before tasks that run side by side would each make its tables."""
    uri = job.arguments["tracking_uri"]
    if uri.startswith("sqlite:") and job.site.parallel > 1:
        try:
            tracking.check_reachable(uri, job.site.env)
        except InputError as error:
            print(error, file=sys.stderr)


def mark_killed(job: Submission, error: StageError) -> None:
    """A stage that could not say in MLflow that it ended, having been killed, is ended there."""
    parts = {task.name: task.part for task in job.tasks}
    for part in {parts.get(name, "") for name, code in error.codes.items() if code not in EXPLAINED}:
        for stage in tracking.mark_killed(job.arguments["tracking_uri"], job.run + part, job.site.env):
            print(f"MLflow now has {stage} as failed: it was killed and could not say so", file=sys.stderr)


def run_there(job: Submission, wait: bool, every: str = "") -> int:
    """Submit to the site's endpoint, once or on a schedule; returns the exit code."""
    endpoint.address(job.site)
    refuse_placeholders(job.site, root=job.arguments["root"], data=job.request["data"], recipe=job.request["recipe"])
    root, image = job.arguments["root"], job.arguments["image"]
    if "://" not in root:
        raise InputError(
            f"root '{root}' is no place that pods can reach: give --root s3://bucket/prefix, or `root` in the site file"
        )
    if not image:
        raise InputError("no image: fill in `image` in the site file (by digest), or use --local")
    api = endpoint.connect(job.site)
    if not every:
        keep_record(job)
    if job.suite:
        ids = suite_runs.start(api, job)
        return see_suite(api, job.site, suite_runs.SuiteProgress(job.run, ids, urls_of(job), job.old), wait)
    with temporary.folder() as folder:
        package = job.package(Path(folder) / "pipeline.yaml")
        size.refuse_too_large(package, suite_runs.WAY_OUT)
        if every:
            made = client.schedule(api, job.site, job.run, package, job.arguments, every)
            print(f"recurring run {job.run}: {client.link(job.site, made, 'recurringrun')}", flush=True)
            return 0
        tasks = display_names(package)
        run_id = client.start(api, job.site, job.run, package, job.arguments, keep=job.whole)
    return see(api, job.site, job.run, run_id, tasks, wait, {name: job.urls[name] for name in tasks.values()})


def urls_of(job: Submission) -> dict[str, dict[str, str]]:
    """Of every run of a suite the artifacts' URLs of what it does, by task."""
    return {run.name: {name: run.urls[name] for name in job.left(run)} for run in job.runs}


def compile_only(job: Submission, path: Path) -> None:
    """Write the package, of a suite one for each of its runs, and say how large a workflow each becomes."""
    if job.runs:
        path.mkdir(parents=True, exist_ok=True)
    made = suite_runs.packages(job, path).values() if job.runs else [job.package(path, filled=True)]
    for package in made:
        print(f"{package}: {size.measure(package)}")


def keep_record(job: Submission) -> None:
    """Write the run's record; a run started by a schedule has another name each time, and its first stage writes it."""
    try:
        record_run(job.arguments["root"], job.run, job.request)
    except StorageError as error:
        print(f"the run's record is left to its first stage, from here it cannot be written: {error}", file=sys.stderr)


def retry_there(site: Site, name: str, wait: bool) -> int:
    """Have the failed tasks of a run, or of all runs of a suite, run again; returns the exit code."""
    api = endpoint.connect(site)
    if client.of_suite(api, site, name):
        turns = suite_retry.retry(api, site, name)
        if turns.left and not wait:
            print(f"{turns.again()}, or with --wait, which retries them in turn")
        return see_suite(api, site, turns.progress(), wait) if wait else 0
    run_id, tasks = client.retry(api, site, name)
    return see(api, site, name, run_id, tasks, wait)


def see_suite(api: endpoint.Client, site: Site, progress: suite_runs.SuiteProgress, wait: bool) -> int:
    """Where asked to, follow a suite's runs; returns the exit code."""
    if not wait or not progress.ids:
        return 0
    try:
        states = suite_runs.follow(api, site, progress)
    except KeyboardInterrupt:
        rest = progress.turns.again() if progress.turns else ""
        print(f"\nno longer watching; suite {progress.name} goes on{rest and f'; {rest}'}")
        return 130
    failed = [f"{progress.name}.{run}" for run, state in states.items() if state != "SUCCEEDED"]
    print(f"suite {progress.name}: {'failed: ' + ', '.join(failed) if failed else 'succeeded'}")
    if failed:
        print(f"mend what failed, then: {to_paste('--retry', progress.name)}")
    return 1 if failed else 0


def see(
    api: endpoint.Client,
    site: Site,
    name: str,
    run_id: str,
    tasks: Mapping[str, str],
    wait: bool,
    urls: Mapping[str, str] | None = None,
) -> int:
    """Print the run's link and, where asked to, follow it; returns the exit code."""
    print(f"run {name}: {client.link(site, run_id)}", flush=True)
    if not wait:
        return 0
    try:
        state = client.follow(api, site, run_id, tasks, urls=urls)
    except KeyboardInterrupt:
        print(f"\nno longer watching; run {name} goes on")
        return 130
    print(f"run {name} {state.lower()}")
    return 0 if state == "SUCCEEDED" else 1


def obey(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Do what the command says; returns the exit code.

    Args:
        args: what `submit.parser` made of `command`.
    """
    try:
        check_mode(args)
        if args.check is not None:
            return site_check.check(load_site(args.site or "site.toml", required=True), args.check)
        if args.retry:
            return retry_there(load_site(args.site or "site.toml", required=bool(args.site)), args.retry, args.wait)
        if args.verify is not None:
            return verify.verify(args)
        if args.deliver:
            return deliver.deliver_run(args)
        every = cron(args.schedule) if args.schedule else ""
        job = decide(args)
        if args.dry_run:
            with until_enough():
                print(dryrun.describe(job))
            return 0
        if args.compile_only:
            compile_only(job, Path(args.compile_only))
            if note := empty_in_form(job.arguments):
                print(note, file=sys.stderr)
            return 0
        return run_here(job, command) if args.local else run_there(job, args.wait, every)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except endpoint.EndpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
