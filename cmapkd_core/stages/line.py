"""What a person sees of a running stage."""

from __future__ import annotations

import sys
import time


class Line:
    """One progress line per stage: rewritten in place on a terminal, a line now and then in a log."""

    def __init__(self, quiet: bool, seconds: float = 10.0) -> None:
        self.quiet, self.seconds = quiet, seconds
        self.width, self.last = 0, 0.0

    def __call__(self, text: str) -> None:
        """Show `text`; a text that ends in a new line always stays."""
        if self.quiet:
            return
        stays, text = text.endswith("\n"), text.rstrip("\n")
        if sys.stdout.isatty():
            sys.stdout.write("\r" + text.ljust(self.width) + ("\n" if stays else ""))
            self.width = 0 if stays else len(text)
        elif stays or time.monotonic() - self.last >= self.seconds:
            sys.stdout.write(text + "\n")
            self.last = time.monotonic()
        sys.stdout.flush()

    def end(self) -> None:
        """Leave the last text where it is."""
        if self.width:
            self("\n")
