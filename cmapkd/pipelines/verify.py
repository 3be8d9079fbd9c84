"""`submit.py --verify [RUN]`: every file of every artifact against its manifest, and what makes a damaged one anew."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from cmapkd.pipelines.started import to_paste
from cmapkd.pipelines.submission import Submission, laid_out, site_and_root
from cmapkd_core import storage
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import InputError, again
from cmapkd_core.records import record_url, run_names
from cmapkd_core.stages.artifact import MANIFEST, Artifact, look
from cmapkd_core.stages.manifest import DamagedError

DOWNLOADS = 4  # files at a time; a remote one is read and not kept
_FOLDERS = 2  # STAGE/KEY below the root; a report's is runs/RUN/report


def verify(args: argparse.Namespace) -> int:
    """Check the artifacts of one run, or all below the root; prints a line each.

    Returns:
        1 where one is damaged, or the run has one still to make.

    Raises:
        InputError: no root, no such run, or nothing that could be checked.
    """
    _, root = site_and_root(args)
    makers = _makers(args, root, [args.verify] if args.verify else run_names(root))
    order = list(makers)
    artifacts = [url for url in _artifacts(root) if url in makers or not args.verify]
    artifacts.sort(key=lambda url: order.index(url) if url in makers else len(order))
    if not artifacts and not args.verify:  # a run that has made nothing yet has all still to make
        raise InputError(f"nothing to verify: the root has no complete artifact below {root}")
    damaged = 0
    for url in artifacts:
        faults = list(_faults(url))
        damaged += bool(faults)
        print(f"{'damaged' if faults else 'ok':8}{_name(url, root)}", flush=True)
        for fault in faults:
            print(f"        {fault}")
        if faults:
            print(f"        then: {_way_out(args, root, url, makers)}", flush=True)
    missing = [url for url in order if args.verify and url not in artifacts]
    for url in missing:
        print(f"missing {_name(url, root)}\n        then: {_way_out(args, root, url, makers)}", flush=True)
    lacks = f", {len(missing)} missing" * bool(missing)
    first = ": first ones first, what follows runs again" * bool(damaged or missing)
    print(f"{len(artifacts)} artifacts, {damaged} damaged{lacks}{first}")
    return 1 if damaged or missing else 0


def _name(url: str, root: str) -> str:
    return url.removeprefix(f"{root.rstrip('/')}/")


def _artifacts(root: str) -> list[str]:
    """URLs of what has a manifest, not of checkpoints."""
    names = (name for name in storage.list_files(root) if name.endswith(f"/{MANIFEST}"))
    kept = (name for name in names if name.count("/") == _FOLDERS + name.startswith("runs/"))
    return [storage.join(root, name.removesuffix(f"/{MANIFEST}")) for name in kept]


def _makers(args: argparse.Namespace, root: str, runs: list[str]) -> dict[str, tuple[str, str]]:
    """Artifact -> a run and its task that make it, in the order of the tasks."""
    by_url: dict[str, tuple[str, str]] = {}
    for run in runs:
        try:
            job: Submission = laid_out(root, run)
        except InputError as error:
            if args.verify:
                raise
            print(f"note    {record_url(root, run)} cannot be read, so no command names that run: {error}")
            continue
        for task in (task for task in job.tasks if not task.passing):  # those are gone once they are joined
            by_url.setdefault(storage.absolute(job.urls[task.name]), (run, task.name))
    return by_url


def _faults(url: str) -> Iterator[str]:
    """What is wrong with the artifact at `url`, a line each."""
    try:
        artifact = look(url)
    except DamagedError as error:
        yield f"{MANIFEST}: {error.why}"
        return
    if artifact is None:
        yield f"{MANIFEST}: it is gone"
        return
    yield from filter(None, in_order(artifact.manifest["outputs"].items(), partial(_fault, artifact), DOWNLOADS))


def _fault(artifact: Artifact, output: tuple[str, dict[str, Any]]) -> str:
    name, written = output
    try:
        digest = storage.sha256(artifact.file_url(name))
    except FileNotFoundError:
        return f"{name}: it is gone"
    return "" if digest == written["sha256"] else f"{name}: it is not what was written"


def _way_out(args: argparse.Namespace, root: str, url: str, makers: dict[str, tuple[str, str]]) -> str:
    """The command that makes an artifact anew."""
    if url not in makers:
        try:
            artifact = look(url)
        except DamagedError:
            artifact = None
        return again(artifact.manifest["stage"] if artifact else url.rsplit("/", 2)[-2]).partition("; ")[0]
    run, task = makers[url]
    here = ["--local"] if args.local or "://" not in root else []
    here += ["--site", args.site] if args.site else []
    return to_paste("--run", run, "--only", task, "--root", root, *here)
