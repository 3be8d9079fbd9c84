"""The exceptions for what a user can mend, and for what may mend itself; how a complete stage runs again."""

_MODULES = {"warmup": "train", "alsn": "train", "joint": "train"}  # of stages that are not called as their module


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the thing and the way out; commands print it without a traceback and exit 2.
    """


class Diverged(FloatingPointError):
    """Training left the finite numbers, or its loss went up and stayed there; what is saved is from before.

    The message names the step and the way out; commands print it without a traceback and exit 3.
    """


class OutsideError(InputError):
    """Something outside does not give what it may give the next time: a server, a network, a disk, a damaged copy.

    The same input and the same code can succeed when they are tried again.
    """


def again(stage: str, run: str = "") -> str:
    """How a complete stage is made to run again, which answers at once where it is asked by the usual command.

    Args:
        stage: its name, which is its task's in a run too.
        run: the run that made the artifact; "" where it is not known.
    """
    return (
        f"run stage {stage} again: submit.py --run {run or 'RUN'} --only {stage} in a run, "
        f"or by hand python -m cmapkd_core.stages.{_MODULES.get(stage, stage)} with its arguments and --redo yes"
    )
