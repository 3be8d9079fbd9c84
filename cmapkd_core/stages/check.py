"""Stage check: can a stage run here? Root, MLflow, GPUs and ranks, each line ok or what to do.

    python -m cmapkd_core.stages.check --recipe tiny --root s3://bucket/cmapkd --run NAME --kind train --gpus 8

Its result is {root}/checks/{run}/{kind}.json; no artifact, and nothing else stays.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cmapkd_core import __version__, parallel, storage, tracking
from cmapkd_core.errors import InputError
from cmapkd_core.places import check_url
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.common import Request

Line = dict[str, Any]  # name, ok, text


def run(request: Request, *, kind: str = "here", gpus: str = "0") -> str:
    """Check this process, or these ranks; a result that is there already is left as it is.

    Args:
        kind: name of the result, the kind of pod.
        gpus: how many this pod must see.

    Raises:
        InputError: a line is not ok.
    """
    url = check_url(request.root, request.run, kind)
    parallel.start()
    found = parallel.all_objects({"host": platform.node(), "gpus": torch.cuda.device_count()})
    if parallel.rank() > 0:
        return url
    if request.run and _done(url):
        return url
    lines = list(_lines(request, found, int(gpus)))
    for line in lines:
        print(f"{'ok' if line['ok'] else 'failed':8}{line['name']:8}{line['text']}", flush=True)
    failed = [line["name"] for line in lines if not line["ok"]]
    if request.run and "root" not in failed:
        storage.write_json(url, {"kind": kind, "lines": lines})
    if failed:
        raise InputError(f"not ok: {', '.join(failed)}")
    return url


def _done(url: str) -> bool:
    """False also where the root cannot be read: the lines tell why."""
    try:
        return storage.exists(url)
    except InputError:
        return False


def _lines(request: Request, found: list[dict[str, Any]], gpus: int) -> Iterator[Line]:
    versions = f"cmapkd {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    yield _line("image", lambda: f"{versions}, user {os.getuid()}")
    yield _line("root", lambda: _root(request.root))
    yield _line("MLflow", lambda: _mlflow(request.tracking_uri))
    yield _line("GPUs", lambda: _gpus(found, gpus))
    if len(found) > 1:
        hosts = len({one["host"] for one in found})
        yield _line("ranks", lambda: f"{len(found)} on {hosts} machine{'s'[: hosts - 1]} hear each other")


def _line(name: str, check: Callable[[], str]) -> Line:
    try:
        return {"name": name, "ok": True, "text": check()}
    except InputError as error:
        return {"name": name, "ok": False, "text": str(error)}


def _root(root: str) -> str:
    storage.check_writable(root)
    return f"{root} can be listed, written once, read and deleted"


def _mlflow(uri: str) -> str:
    server = tracking.check_reachable(uri)
    return f"{server} answers" if server else "no tracking_uri: metrics stay in the artifacts' journals"


def _gpus(found: list[dict[str, Any]], wanted: int) -> str:
    """Counted on every machine, and the first one computes."""
    fewest = min(one["gpus"] for one in found)
    if fewest < wanted:
        raise InputError(
            f"{fewest} of {wanted} seen: check that the node has its driver and device plugin, and that the image has"
            " CUDA (target cuda)"
        )
    if fewest:
        torch.ones(8, device=parallel.device()).sum().item()
    shm = shutil.disk_usage("/dev/shm").total / 2**30
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return f"{fewest} seen{''.join(f', {name}' for name in sorted(names))}; /dev/shm has {shm:.2g} GiB"


if __name__ == "__main__":
    sys.exit(main(run))
