"""What a model is measured on, a row of catalog.EVALUATIONS each; `evaluate.tasks` and `evaluate.sets` list them."""

from cmapkd_core.evaluate.subject import Evaluated, NotApplicable, Subject, count_parameters

__all__ = ["Evaluated", "NotApplicable", "Subject", "count_parameters"]
