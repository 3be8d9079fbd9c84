"""Distillation of CLIP models: what people start and call. The library is cmapkd_core.

    from cmapkd import distil, evaluate, load_student, prepare

What is imported from here is imported when it is first asked for, so that `import cmapkd` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cmapkd_core import __version__

if TYPE_CHECKING:
    from cmapkd.api import DataSet, Evaluation, Run, distil, evaluate, prepare
    from cmapkd.students import Student, load_student

__all__ = [
    "DataSet",
    "Evaluation",
    "Run",
    "Student",
    "__version__",
    "distil",
    "evaluate",
    "load_student",
    "prepare",
]

_OF_STUDENT = ("Student", "load_student")

if not TYPE_CHECKING:  # a type checker shall know that there are no other names

    def __getattr__(name):
        """A name of `__all__`, from its module."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{'students' if name in _OF_STUDENT else 'api'}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
