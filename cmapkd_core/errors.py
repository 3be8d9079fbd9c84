"""The exceptions for what a user can mend, and for what may mend itself; how a complete stage runs again."""

from cmapkd_core.commands import PYTHON, submit

_MODULES = {"warmup": "train", "alsn": "train", "joint": "train"}  # of stages that are not called as their module
_TASKS = ("prepare", "teacher", *_MODULES, "levels", "export", "report")  # stages whose tasks in a run are called so


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the thing and the way out; commands print it without a traceback and exit 2, or with what lies
    behind it (exits.py).
    """

    end = "input"  # of exits.ENDS


class BadImageError(InputError):
    """Bytes that are no usable picture; the message is the reason."""


class DamagedInput(InputError):
    """What is stored is not what was written, or is gone; the message says what makes it anew."""

    end = "damaged"


class Diverged(FloatingPointError):
    """Training left the finite numbers, or its loss went up and stayed there; what is saved is from before.

    The message names the step and the way out; commands print it without a traceback and exit 3.
    """

    end = "diverged"


class Interrupted(BaseException):
    """SIGTERM came; the step was finished and saved. Stages exit 143.

    As with Ctrl-C no `except Exception` on its way, ours or a library's, takes it for its own trouble: a picture that
    cannot be decoded, an export that failed.
    """


class OutsideError(InputError):
    """Something outside does not give what it may give the next time: a server, a network, a disk, a damaged copy.

    The same input and the same code can succeed when they are tried again.
    """

    end = "server"


def again(stage: str, run: str = "") -> str:
    """How a complete stage is made to run again, which answers at once where it is asked by the usual command.

    Args:
        stage: as its manifest calls it, such as `warmup` or `evaluate vqa on scenes of ..`.
        run: the run that made the artifact; "" where it is not known.
    """
    name, run = stage.partition(" ")[0], run or "RUN"
    is_part = name.startswith("prepare-part-")
    task = name if name in _TASKS or is_part else "TASK"
    module = "prepare_part" if is_part else _MODULES.get(name, name)
    return (
        f"run stage {name} again: {submit('--run', run, '--only', task)} (with the run's --root, and --local), "
        f"or by hand {PYTHON} -m cmapkd_core.stages.{module} with its arguments and --redo yes; "
        f"{submit('--verify', run)} names all that is damaged and its tasks, which in a suite and of a reference have "
        "longer names"
    )
