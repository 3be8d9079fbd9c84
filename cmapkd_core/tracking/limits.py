"""What MLflow takes as a name or a value. Nothing is cut without the value itself saying so."""

from __future__ import annotations

import re
from hashlib import sha256

NAME = 250  # characters of a metric's, parameter's or tag's name, and of a run's
PARAM = 6000
TAG = 5000  # as older servers take it; today's take 8000
DIGITS = 12  # of a digest that tells long values apart


def cut(text: str, limit: int, rest: str) -> str:
    """`text` where it fits, else its beginning and what is missing; equal texts stay equal and others differ.

    Args:
        rest: where the whole text is.
    """
    if len(text) <= limit:
        return text
    end = f" .. ({len(text)} characters, sha256 {_digest(text)}; {rest})"
    return text[: limit - len(end)] + end


def mlflow_name(name: str) -> str:
    """MLflow allows letters, digits and `_-. :/` in a name that a file could have: R@1 becomes R_1, a//b a/_/b."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    plain = "/".join(part if part.strip(".") else "_" * max(len(part), 1) for part in parts)
    return plain if len(plain) <= NAME else f"{plain[: NAME - DIGITS - 1]}_{_digest(plain)}"


class Names:
    """MLflow's names of ours; of two that would become the same the second one gets a digest."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """MLflow's name for it; one that is taken by another gets a digest."""
        plain = mlflow_name(name)
        if self._taken.setdefault(plain, name) == name:
            return plain
        return mlflow_name(f"{plain[: NAME - DIGITS - 1]}_{_digest(name)}")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:DIGITS]
