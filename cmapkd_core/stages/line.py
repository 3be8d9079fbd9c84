"""What a person sees of a running stage."""

from __future__ import annotations

import sys
import time


class Line:
    """One progress line per stage: rewritten in place on a terminal, a line now and then in a log."""

    def __init__(self, quiet: bool, seconds: float = 10.0) -> None:
        self.quiet, self.seconds = quiet, seconds
        self.pending, self.width, self.last = "", 0, 0.0

    def __call__(self, text: str) -> None:
        """Show `text`; a text that ends in a new line always stays."""
        if self.quiet:
            return
        if text.endswith("\n"):
            self.end()
            sys.stdout.write(text)
        elif sys.stdout.isatty():
            sys.stdout.write("\r" + text.ljust(self.width))
            self.pending, self.width = text, len(text)
        elif time.monotonic() - self.last >= self.seconds:
            sys.stdout.write(text + "\n")
            self.pending, self.last = "", time.monotonic()
        else:
            self.pending = text
        sys.stdout.flush()

    def end(self) -> None:
        """Leave the newest text where it is, so that a stage's last state is seen."""
        if self.pending:
            sys.stdout.write("\n" if sys.stdout.isatty() else self.pending + "\n")
            sys.stdout.flush()
        self.pending, self.width = "", 0
