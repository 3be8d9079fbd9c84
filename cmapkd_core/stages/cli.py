"""The command line of a stage, made from the signature of its `run`, so that the two cannot differ."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import os
import re
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
from cmapkd_core.command_line import Parser
from cmapkd_core.commands import submit
from cmapkd_core.errors import Diverged, InputError, Interrupted
from cmapkd_core.exits import ENDS, end_of, room
from cmapkd_core.fields import joined
from cmapkd_core.request import INNER, METAVARS, OPTIONS, STRINGS, Request, flag_of


def parser(run: Callable[..., str], prog: str = "") -> argparse.ArgumentParser:
    """`--kebab-case VALUE` for each field of Request and each keyword-only parameter of `run`.

    All values are strings; a parameter that is a mapping takes `--name KEY VALUE KEY VALUE`. `--artifact FILE` names a
    file that gets the artifact's URL (KFP's output parameter). `--set FIELD=VALUE` adds to `--overrides`: what a
    message offers can be given to a stage as to submit.py. What help says of an option is what the code says of it:
    the metadata of Request, the `Args:` of `run`.

    Args:
        prog: what a person types for it; "" is `python -m MODULE`.
    """
    own = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.kind is one.KEYWORD_ONLY]
    made = Parser(
        prog=prog or f"python -m {_module(run)}",
        usage=f"%(prog)s --recipe NAME --root PLACE{''.join(map(_needed, own))} [options]",
        description=_about(run),
        allow_abbrev=False,
    )
    reads, common, inner = map(made.add_argument_group, ("of this stage", "of all stages", "given by a pipeline"))
    docs = argument_docs(run)
    for one in own:
        group = inner if one.name in _OF_KFP else reads
        group.add_argument(flag_of(one.name), help=_help(docs.get(one.name, "")), **_shape(one))
    for field in dataclasses.fields(Request):
        required = field.default is dataclasses.MISSING
        shape: dict[str, Any] = {"required": required, "default": None if required else field.default}
        shape |= {"action": _Adds} if field.name == "overrides" else {}
        group = inner if field.name in INNER else common
        group.add_argument(
            flag_of(field.name), help=_help(OPTIONS[field.name]), metavar=METAVARS.get(field.name), **shape
        )
    common.add_argument(
        "--set", action=_Adds, dest="overrides", metavar="FIELD=VALUE", help="changes one field; repeatable"
    )
    inner.add_argument("--artifact", default="", metavar="FILE", help="a file that gets the URL of the result")
    return made


_OF_KFP = ("html", "markdown", "metrics", "executor_input")  # what it gives a stage that shows something in its UI


def _shape(parameter: inspect.Parameter) -> dict[str, Any]:
    required = parameter.default is inspect.Parameter.empty
    shape: dict[str, Any] = {"required": required, "default": None if required else parameter.default}
    if parameter.annotation == Mapping[str, str]:
        shape |= {"nargs": "*", "action": _Pairs, "metavar": ("KEY", "VALUE")}
    return shape


def _needed(parameter: inspect.Parameter) -> str:
    return f" {flag_of(parameter.name)} {parameter.name.upper()}" if _shape(parameter)["required"] else ""


def _about(run: Callable[..., str]) -> str:
    """The first paragraph of a stage's file, or of its function where that has none."""
    text = inspect.getdoc(sys.modules[run.__module__]) or inspect.getdoc(run) or ""
    return _help(" ".join(text.partition("\n\n")[0].split()))


def argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` of a docstring in Google's style, by name."""
    match = re.search(r"^Args:\n(.*?)(?:\n\S|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    parts = re.findall(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", match[1] if match else "", re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in parts for name in names.split(", ")}


def _help(text: str) -> str:
    """As argparse wants it, to which a percent sign is the start of a placeholder."""
    return text.replace("%", "%%")


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


def main(run: Callable[..., str], argv: list[str] | None = None, prog: str = "") -> int:
    """Run a stage from its argv; the exit code, one of exits.ENDS. prog: as of `parser`."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parallel.let_threads_sleep()
    given = vars(parser(run, prog).parse_args(argv))
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
    """What messages call the stage."""
    return _module(run).rpartition(".")[2]


def _module(run: Callable[..., str]) -> str:
    """The module of a stage, which is `__main__` where it was started by that."""
    spec = getattr(sys.modules.get(run.__module__), "__spec__", None)
    return spec.name if spec else run.__module__


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
                f"again with today's {submit()}"
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
