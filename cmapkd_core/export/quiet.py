"""Other libraries' progress bars and advice, kept off the terminal; what they raise still comes through."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "transformers", "open_clip")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing below an error of the export libraries is shown."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    output = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
