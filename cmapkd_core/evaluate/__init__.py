"""Tasks by name; `evaluate.tasks` of a recipe lists rows of `TASKS`, and a new task is one line here."""

from collections.abc import Callable

from cmapkd_core.evaluate.captioning import run_captioning
from cmapkd_core.evaluate.efficiency import run_efficiency
from cmapkd_core.evaluate.tasks import NotApplicable, Outcome, Subject, count_parameters, run_retrieval, run_zeroshot
from cmapkd_core.evaluate.vqa import run_vqa

__all__ = ["TASKS", "NotApplicable", "Outcome", "Subject", "count_parameters"]

TASKS: dict[str, Callable[[Subject], Outcome]] = {
    "retrieval": run_retrieval,
    "zeroshot": run_zeroshot,
    "vqa": run_vqa,
    "efficiency": run_efficiency,
    "captioning": run_captioning,
}
