"""Tasks by name; `evaluate.tasks` of a recipe lists rows of `TASKS`, and a new task is one line here."""

from collections.abc import Callable

from cmapkd_core.evaluate.tasks import Outcome, Subject, run_retrieval, run_zeroshot

TASKS: dict[str, Callable[[Subject], Outcome]] = {
    "retrieval": run_retrieval,
    "zeroshot": run_zeroshot,
}
