"""`submit.py --deliver RUN`: delivers to MLflow what it did not get of a run's stages in their time."""

from __future__ import annotations

import argparse
import os

from cmapkd.pipelines.site import Site, on_this_machine
from cmapkd.pipelines.submission import laid_out, site_and_root
from cmapkd_core import storage, tracking
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import InputError
from cmapkd_core.logins import refuse_login
from cmapkd_core.stages.owed import LOOKS, Owed, deliver, find_owed

SECONDS = 600.0  # for one stage, as long as the server takes what it is given


def deliver_run(args: argparse.Namespace) -> int:
    """Deliver the journals of a run's stages from where they lie; prints a line each, 1 where something is left.

    What MLflow has it does not get a second time, so the command can be given again at any moment.

    Raises:
        InputError: no root, no such run, no MLflow, or one that cannot be used; says why and what to do.
    """
    site, root = site_and_root(args)
    uri = _server(args, site, root)
    job = laid_out(root, args.deliver)
    urls = list(dict.fromkeys(storage.absolute(job.urls[task.name]) for task in job.tasks))
    notes = in_order(urls, _look, LOOKS)
    owed = [(url, one) for url, one in zip(urls, notes, strict=True) if one is not None]
    if owed:
        tracking.check_reachable(uri, site.env)
    left = 0
    for url, one in owed:
        trouble = _deliver(uri, one)
        left += bool(trouble)
        print(f"{'left' if trouble else 'told':6}{url.removeprefix(root.rstrip('/') + '/')}{trouble}", flush=True)
    counts = f"{len(owed) - left} of {len(owed)} told to it now"
    print(
        f"MLflow lacked something of {len(owed)} stages, {counts}" if owed else f"MLflow has all of run {args.deliver}"
    )
    return 1 if left else 0


def _server(args: argparse.Namespace, site: Site, root: str) -> str:
    refuse_login("--tracking-uri", args.tracking_uri)
    uri: str = args.tracking_uri or (on_this_machine(site, root) if args.local else site).tracking_uri
    if not (uri or os.environ.get("MLFLOW_TRACKING_URI", "")):
        raise InputError(
            "no MLflow to deliver to: give --tracking-uri, fill in `tracking_uri` in the site file, or give --local"
            " for the database beside a root of this machine"
        )
    return uri


def _look(url: str) -> Owed | str | None:
    """What is owed of a stage, or why that cannot be read."""
    try:
        return find_owed(url)
    except InputError as error:
        return str(error)


def _deliver(uri: str, owed: Owed | str) -> str:
    """Why not all of it was taken; "" where it was."""
    if isinstance(owed, str):
        return f": {owed}"
    left = deliver(uri, owed, SECONDS, hurried=False)
    return f": {left.text}" if left.text else ""
