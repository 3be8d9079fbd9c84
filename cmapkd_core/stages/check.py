"""What any stage does with `--check TASK:GPUS`: can it run here? Each line says ok, or what to do.

    python -m cmapkd_core.stages.prepare --recipe tiny --root s3://bucket/cmapkd --check here:0

`submit.py --check` starts every component of a run with it. Its result is {root}/checks/{run}/{TASK}.json, in the place
of an artifact; nothing else stays.
"""

from __future__ import annotations

import html
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cmapkd_core import __version__, parallel, storage, tracking
from cmapkd_core.errors import InputError
from cmapkd_core.executor_output import show
from cmapkd_core.places import check_url
from cmapkd_core.stages.common import Request

Line = dict[str, Any]  # name, ok, text
PAGES = ("html", "markdown")  # local files of a stage that shows something in KFP's UI


def run(request: Request, given: Mapping[str, Any]) -> str:
    """Check this process, or these ranks; once all was well it stays so.

    Args:
        request: of the stage; `check` names the result and says how many GPUs this pod must see.
        given: the stage's other arguments: artifacts of other tasks among them shall be readable here, and its pages
            are written, so that KFP's own store is tried too.

    Raises:
        InputError: a line is not ok.
    """
    task, _, gpus = request.check.rpartition(":")
    if not (task and gpus.isdecimal()):
        raise InputError(f"--check {request.check}: TASK:GPUS, such as here:0")
    url = check_url(request.root, request.run, task)
    parallel.start()
    found = parallel.all_objects({"host": platform.node(), "gpus": torch.cuda.device_count()})
    if parallel.rank() > 0:
        return url
    if request.run and _done(url):
        return url
    lines = list(_lines(request, given, found, int(gpus)))
    for line in lines:
        print(f"{'ok' if line['ok'] else 'failed':8}{line['name']:11}{line['text']}", flush=True)
    failed = [line["name"] for line in lines if not line["ok"]]
    if request.run and "root" not in failed:
        storage.write_json(url, {"task": task, "lines": lines})
    if failed:
        raise InputError(f"not ok: {', '.join(failed)}")
    page = "".join(f"<p>ok {line['name']}: {html.escape(line['text'])}</p>\n" for line in lines).encode()
    pages = {given[name]: page for name in PAGES if name in given}
    show(pages, {"lines": len(lines)}, given.get("metrics", ""), given.get("executor_input", ""))
    return url


def _done(url: str) -> bool:
    """Whether a process before this one was well; False also where the root cannot be read: the lines tell why."""
    try:
        return all(line["ok"] for line in storage.read_json(url)["lines"])
    except (FileNotFoundError, InputError):
        return False


def _lines(request: Request, given: Mapping[str, Any], found: list[dict[str, Any]], gpus: int) -> Iterator[Line]:
    versions = f"cmapkd {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    yield _line("image", lambda: f"{versions}, user {os.getuid()}")
    yield _line("root", lambda: _root(request.root))
    yield _line("arguments", lambda: _arguments(request, given))
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


def _arguments(request: Request, given: Mapping[str, Any]) -> str:
    """That they came at all is the parser's word; those that other tasks of this check wrote are looked for."""
    values = [value for one in given.values() for value in (one.values() if isinstance(one, Mapping) else [one])]
    below = check_url(request.root, request.run, "").rpartition("/")[0]
    theirs = sorted({value for value in values if value.startswith(f"{below}/")})
    if missing := [url for url in theirs if not storage.exists(url)]:
        raise InputError(f"{', '.join(missing)}: written by another pod, not seen in this one")
    return "as this stage takes them" + (f"; what {len(theirs)} other tasks wrote can be read" if theirs else "")


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
