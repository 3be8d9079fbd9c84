"""The exceptions for what a user can mend, and for what may mend itself."""


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


def made_again(stage: str) -> str:
    """The way out where a complete artifact is damaged: without --redo its stage would say that it is complete."""
    return f"run stage {stage} again with --redo yes (submit.py: --run RUN --only STAGE)"
