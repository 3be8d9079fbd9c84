"""How long a stage that ends waits for MLflow: briefly, as what it does not take can be delivered later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

SILENCE = 4.0  # seconds since the latest answer, after which a server is left alone
QUICK = 10.0  # seconds in all for points, parameters and the status, however often it answers


class Patience:
    """Says when the wait is over. Until `begin` it never is; a database of this machine has all of the time."""

    def __init__(self, uri: str) -> None:
        self._here = uri.startswith("sqlite:")
        self._end = self._quick = self._answered = float("inf")
        self._unhurried, self._over, self._begun = 0, False, False

    def begin(self, seconds: float, hurried: bool) -> None:
        """The stage ends now and waits `seconds` at most, and all of them unless it is `hurried`."""
        self._here = self._here or not hurried
        now = time.monotonic()
        self._end, self._quick, self._answered, self._begun = now + seconds, now + QUICK, now, True

    def answered(self) -> None:
        """The server has answered."""
        self._answered = time.monotonic()

    def failed(self) -> None:
        """It has failed, so that further answers, such as those to connecting again, prolong nothing."""
        self._quick = min(self._quick, self._answered + SILENCE)

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """What takes long though all is well: the upload of files, an import. Where it fails it prolongs nothing."""
        self._unhurried += 1
        try:
            yield
            self.answered()
            self._quick = max(self._quick, self._answered + SILENCE)
        finally:
            self._unhurried -= 1

    @property
    def over(self) -> bool:
        """Once it is, it stays so: an answer that comes later changes nothing."""
        hurried = self._begun and not (self._here or self._unhurried)
        end = min(self._end, self._quick, self._answered + SILENCE) if hurried else self._end
        self._over = self._over or time.monotonic() >= end
        return self._over


class GaveUp(Exception):
    """The stage has ended: what is not sent yet will be delivered by another."""


class Listened:
    """A client whose every answer is noted, and that asks nothing more once the wait is over."""

    def __init__(self, client: Any, patience: Patience) -> None:
        self._client, self._patience = client, patience

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        @wraps(call)
        def listened(*args: Any, **kwargs: Any) -> Any:
            if self._patience.over:  # a server that hung may answer in the end: nobody waits for it any more
                raise GaveUp
            answer = call(*args, **kwargs)
            self._patience.answered()
            return answer

        return listened
