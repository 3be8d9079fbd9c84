"""What any stage does with `--check TASK:GPUS`: can it run here? Each line says ok, or what to do.

    python -m cmapkd_core.stages.prepare --recipe tiny --root s3://bucket/cmapkd --check here:0

`submit.py --check` starts every component of a run with it. Its result is {root}/checks/{run}/{TASK}.json, in the place
of an artifact; nothing else stays. `--check TASK:0:once` fails once on purpose, which tells whether the cluster starts
what failed again.
"""

from __future__ import annotations

import html
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cmapkd_core import __version__, parallel, storage, tracking
from cmapkd_core.commands import submit
from cmapkd_core.errors import InputError
from cmapkd_core.executor_output import show
from cmapkd_core.places import OF_ITSELF, ON_PURPOSE, check_url, failed_once_url
from cmapkd_core.request import Request
from cmapkd_core.stages.workflows import workflow_access

CheckResult = dict[str, Any]  # name, ok, text
ASKED = re.compile(r"(?P<task>[\w-]+):(?P<gpus>\d+)(?::((?P<inputs>\d+)|(?P<once>once)))?")
PAGES = ("html", "markdown")  # local files of a stage that shows something in KFP's UI
OTHERS = "make images from this checkout, put its line into the site file, and check again"
OUTPUTS = (*PAGES, "metrics", "executor_input")


def run(request: Request, given: Mapping[str, Any]) -> str:
    """Check this process, or these ranks. What another process of the same task found well is said again.

    Args:
        request: of the stage; its `check` is TASK:GPUS or TASK:GPUS:INPUTS: a name of the result, how many GPUs this
            pod must see, and how many inputs of the stage must arrive; or TASK:0:once.
        given: the stage's other arguments: each is the result of another task, which shall be readable here, or
            check:ITS_NAME. The stage's pages are written, so that KFP's own store is tried too.

    Raises:
        InputError: a line is not ok.
    """
    asked = ASKED.fullmatch(request.check)
    if not asked:
        raise InputError(f"--check {request.check}: TASK:GPUS, such as here:0")
    url = check_url(request.root, request.run, asked["task"])
    if asked["once"]:
        return _once(request, asked["task"], url)
    parallel.start()
    machines = parallel.all_objects({"host": platform.node(), "gpus": torch.cuda.device_count()})
    if parallel.rank() > 0:
        return url
    lines = _earlier(request, url) or list(_lines(request, given, machines, asked))
    for line in lines:
        print(f"{'ok' if line['ok'] else 'failed':8}{line['name']:11}{line['text']}", flush=True)
    failed = [line["name"] for line in lines if not line["ok"]]
    if request.run and "root" not in failed:
        storage.write_json(url, {"check": request.check, "lines": lines})
    if failed:
        raise InputError(f"not ok: {', '.join(failed)}")
    page = "".join(f"<p>ok {line['name']}: {html.escape(line['text'])}</p>\n" for line in lines).encode()
    pages = {given[name]: page for name in PAGES if name in given}
    show(pages, {"lines": len(lines)}, given.get("metrics", ""), given.get("executor_input", ""))
    return url


def _once(request: Request, task: str, url: str) -> str:
    """The first attempt leaves a mark and fails; the one that finds the mark is well."""
    if storage.create(failed_once_url(request.root, request.run, task), b"{}"):
        raise InputError(f"this attempt {ON_PURPOSE}: does the cluster start the container again?")
    storage.write_json(url, {"check": request.check, "lines": [_line("retries", lambda: "started again")]})
    print("ok      retries    a container that failed was started again", flush=True)
    return url


def _earlier(request: Request, url: str) -> list[CheckResult]:
    """Lines of the pods of a TrainJob, of which this process is the launcher, or of a retried pod, if all were well.

    None also where the root cannot be read: the lines tell why.
    """
    if not request.run:
        return []
    try:
        stored = storage.read_object(url, {"check": str, "lines": list})
        well = stored["check"] == request.check and all(
            line["ok"] and {"name", "text"} <= line.keys() for line in stored["lines"]
        )
    except (FileNotFoundError, InputError, KeyError, TypeError, AttributeError):
        return []
    return list(stored["lines"]) if well else []


def _lines(
    request: Request, given: Mapping[str, Any], machines: list[dict[str, Any]], asked: re.Match[str]
) -> Iterator[CheckResult]:
    versions = f"cmapkd {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    yield _line("image", lambda: f"{versions}, user {os.getuid()}")
    yield _line("root", lambda: _root(request.root))
    yield _line("arguments", lambda: _arguments(request, given, asked["inputs"]))
    yield _line("MLflow", lambda: _mlflow(request.tracking_uri))
    yield _line("GPUs", lambda: _gpus(machines, int(asked["gpus"])))
    if "waits" in given:  # a gate
        yield _line("runs", workflow_access)
    if len(machines) > 1:
        hosts = len({one["host"] for one in machines})
        yield _line("ranks", lambda: f"{len(machines)} on {hosts} machine{'s'[: hosts - 1]} reach each other")


def _line(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return {"name": name, "ok": True, "text": check()}
    except InputError as error:
        return {"name": name, "ok": False, "text": str(error)}


def _arguments(request: Request, given: Mapping[str, Any], wanted: str | None) -> str:
    """Every input is the one that was sent: a result of this check, to be seen from here, or its own name.

    Args:
        wanted: number of inputs; None for a stage started by hand, whose inputs are anything.
    """
    request.resolved()
    if wanted is None:
        return "taken; the recipe is known"
    values = {name: value for name, value in given.items() if name not in OUTPUTS}
    flat = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    flat |= {
        f"{name} {key}": url for name, one in values.items() if isinstance(one, Mapping) for key, url in one.items()
    }
    sent = {name: value for name, value in flat.items() if value}
    if len(sent) != int(wanted):
        raise InputError(f"{len(sent)} of {wanted} inputs arrive: {', '.join(sent) or 'none'}; {OTHERS}")
    below = check_url(request.root, request.run, "").rpartition("/")[0]
    results = {name: value for name, value in sent.items() if value.startswith(f"{below}/")}
    for name, value in sent.items():
        if name not in results and value != OF_ITSELF + name:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} arrives as {value}, sent was {OF_ITSELF}{name}; {OTHERS}")
    if missing := sorted({url for url in results.values() if not storage.exists(url)}):
        raise InputError(
            f"{', '.join(missing)}: written by another pod, not seen in this one: `root` must be one place for all "
            "pods, such as s3://bucket/prefix, and its S3 answer with what was written last"
        )
    tasks = len(set(results.values()))
    return f"all {wanted} inputs arrive" + (f", and what {tasks} other tasks wrote can be read" if tasks else "")


def _root(root: str) -> str:
    storage.check_writable(root)
    return f"{root} can be listed, written once, read and deleted"


def _mlflow(uri: str) -> str:
    server = tracking.check_reachable(uri)
    return (
        f"{server} answers and can be written" if server else "no tracking_uri: metrics stay in the artifacts' journals"
    )


def _gpus(machines: list[dict[str, Any]], wanted: int) -> str:
    """Counted on every machine, and the first one computes."""
    fewest = min(one["gpus"] for one in machines)
    if fewest < wanted:
        raise InputError(
            f"{fewest} of {wanted} seen: check that the node has its driver and device plugin, and that the image has"
            " CUDA (make images TARGET=cuda), or ask for fewer with `gpus` of these [pods] in the site file"
        )
    if fewest:
        torch.ones(8, device=parallel.device()).sum().item()
    shm = shutil.disk_usage("/dev/shm").total / 2**30
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return f"{fewest} seen{''.join(f', {name}' for name in sorted(names))}; /dev/shm has {shm:.2g} GiB"


if __name__ == "__main__":  # as packages of before would start it; in silence it would seem well
    sys.exit(f"check is what every stage does with --check TASK:GPUS: submit the check again: {submit('--check')}")
