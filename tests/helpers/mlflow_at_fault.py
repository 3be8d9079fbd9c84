"""A real MLflow server on a free port, which can be made to hang, to fail, to refuse and to be away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
ERRORS = {401: "401 UNAUTHORIZED", 403: "403 FORBIDDEN", 500: "500 INTERNAL SERVER ERROR"}


class Faulty:
    """What answers. mode: "" as MLflow does, "hang", or a status of ERRORS; batches: metrics it takes before `then`."""

    def __init__(self, app: Wsgi) -> None:
        self.app, self.mode, self.batches, self.then, self.uri = app, "", -1, "", ""
        self.released = threading.Event()

    def well(self) -> None:
        self.mode, self.batches = "", -1
        self.released.set()
        self.released = threading.Event()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        mode = self.mode
        if mode == "hang":
            self.released.wait(30)
        if mode in ("", "hang"):
            answer = list(self.app(environ, start))
            if environ["PATH_INFO"].endswith("log-batch"):
                self.batches -= 1
                if self.batches == 0:
                    self.mode = self.then
            return answer
        start(ERRORS[int(mode)], [("Content-Type", "text/plain")])
        return [b"no"]


@contextmanager
def faulty_server(database: str, artifacts: Path) -> Iterator[Faulty]:
    """Serves the database of MLflow at the URI `database`."""
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    handlers._tracking_store = handlers._tracking_store_registry.get_store(database, str(artifacts))
    faulty = Faulty(app)
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    server.daemon_threads = True
    faulty.uri = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield faulty
    faulty.well()
    server.shutdown()
    thread.join()
    handlers._tracking_store = None
