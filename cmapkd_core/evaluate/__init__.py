"""Tasks by name; `evaluate.tasks` of a recipe lists rows of `TASKS`, and a new task is one line here."""

from collections.abc import Callable

from cmapkd_core.evaluate.tasks import NotApplicable, Outcome, Subject, count_parameters, run_retrieval, run_zeroshot

__all__ = ["TASKS", "NotApplicable", "Outcome", "Subject", "count_parameters"]

TASKS: dict[str, Callable[[Subject], Outcome]] = {
    "retrieval": run_retrieval,
    "zeroshot": run_zeroshot,
}
