"""The command line of a stage, made from the signature of its `run`, so that the two cannot differ."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cmapkd_core import parallel
from cmapkd_core.errors import Diverged, InputError, Interrupted
from cmapkd_core.exits import ENDS, end_of, room
from cmapkd_core.fields import joined
from cmapkd_core.request import STRINGS, Request, flag_of


def parser(run: Callable[..., str]) -> argparse.ArgumentParser:
    """`--kebab-case VALUE` for each field of Request and each keyword-only parameter of `run`.

    All values are strings; a parameter that is a mapping takes `--name KEY VALUE KEY VALUE`. `--artifact FILE` names a
    file that gets the artifact's URL (KFP's output parameter). `--set FIELD=VALUE` adds to `--overrides`: what a
    message offers can be given to a stage as to submit.py.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m {run.__module__}", description=inspect.getdoc(run), allow_abbrev=False
    )
    for field in dataclasses.fields(Request):
        required = field.default is dataclasses.MISSING
        adds: dict[str, Any] = {"action": _Adds} if field.name == "overrides" else {}
        made.add_argument(flag_of(field.name), required=required, default=None if required else field.default, **adds)
    made.add_argument("--set", action=_Adds, dest="overrides", metavar="FIELD=VALUE", help="one more override")
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            required = parameter.default is inspect.Parameter.empty
            default = None if required else parameter.default
            several: dict[str, Any] = {"nargs": "*", "action": _Pairs, "metavar": ("KEY", "VALUE")}
            shape = several if parameter.annotation == Mapping[str, str] else {}
            made.add_argument(flag_of(name), required=required, default=default, **shape)
    made.add_argument("--artifact", default="", metavar="FILE")
    return made


class _Adds(argparse.Action):
    """Overrides one after another, as they stand or from `--set`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        text = joined([values]) if option == "--set" else values
        setattr(namespace, self.dest, f"{getattr(namespace, self.dest) or ''} {text}".strip())


class _Pairs(argparse.Action):
    """`KEY VALUE KEY VALUE` as a dict."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        pairs = dict(zip(values[::2], values[1::2], strict=False))
        if len(values) != 2 * len(pairs):
            parser.error(f"{option}: a value is missing, or a key stands twice: {option} KEY VALUE KEY VALUE ..")
        setattr(namespace, self.dest, pairs)


def main(run: Callable[..., str], argv: list[str] | None = None) -> int:
    """Run a stage from its argv; the exit code, one of exits.ENDS."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    given = vars(parser(run).parse_args(argv))
    artifact = given.pop("artifact")
    fields = {name: given.pop(name) for name in STRINGS}
    try:
        _refuse_placeholders(fields | given)
        request = Request(**fields)
        with _stopped_by_sigterm(_stage(run)):
            url = _checked(request, given) if request.check else run(request, **given)
    except (InputError, Diverged) as error:
        print(f"error: {_message(error)}{room(error)}", file=sys.stderr)
        return _failed(end_of(error).code)
    except _Stopped as stopped:  # on this rank alone
        print(_message(stopped), file=sys.stderr)
        # A launcher stops the ranks that are left when one is lost: then that one is why the stage ends.
        return _failed(ENDS["stopped"].code, why=parallel.world() == 1)
    except Interrupted as stopped:  # on all ranks at the same step
        print(_message(stopped), file=sys.stderr)
        parallel.stop()
        return parallel.leave_exit(ENDS["stopped"].code)
    except KeyboardInterrupt as stopped:
        print(f"stopped by Ctrl-C: the same command goes on from what is saved{_message(stopped)}", file=sys.stderr)
        return _failed(ENDS["interrupted"].code)
    except Exception as error:
        end = end_of(error)
        if parallel.world() == 1 and end == ENDS["other"]:
            raise
        if end == ENDS["full"]:
            print(f"error: {_message(error)}{room(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
        return _failed(end.code)
    parallel.stop()
    if artifact:
        Path(artifact).parent.mkdir(parents=True, exist_ok=True)
        Path(artifact).write_text(url)
    return 0


def _checked(request: Request, given: Mapping[str, Any]) -> str:
    from cmapkd_core.stages import check  # which asks torch for GPUs

    return check.run(request, given)


class _Stopped(Interrupted):
    """SIGTERM came where no step has to be finished first."""


def _stage(run: Callable[..., str]) -> str:
    """What messages call the stage: its module, which is `__main__` where it was started by that."""
    spec = getattr(sys.modules.get(run.__module__), "__spec__", None)
    return (spec.name if spec else run.__module__).rpartition(".")[2]


@contextmanager
def _stopped_by_sigterm(stage: str) -> Iterator[None]:
    """SIGTERM outside a training loop, which has its own way, ends the stage as an error does: MLflow gets it too."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait
        raise _Stopped(f"{stage} was asked to stop; the same command goes on from what is saved")

    if threading.current_thread() is not threading.main_thread():  # signals come to that one alone
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _message(error: BaseException) -> str:
    """The error, and behind it in the same line what else went wrong because of it."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{error}{notes}"


def _refuse_placeholders(given: Mapping[str, Any]) -> None:
    """Raises InputError for an argument that KFP should have filled in: as a URL it names an artifact that is not."""
    for name, value in given.items():
        if name != "executor_input" and "{{$" in str(value):
            raise InputError(
                f"{flag_of(name)} holds a placeholder that KFP did not fill in: {value}; submit the run "
                "again with today's pipelines/submit.py"
            )


def _failed(code: int, why: bool = True) -> int:
    """The exit code of this rank's failure; beside other ranks the process ends here.

    why: whether this failure is the stage's, and not another rank's behind it.

    They may be in a collective, and NCCL's teardown waits for them as they wait for us. Gone at once, this rank is the
    one that torchrun names, and its message is the one that stands in the log.
    """
    if why:
        parallel.leave_exit(code)
    if parallel.world() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
