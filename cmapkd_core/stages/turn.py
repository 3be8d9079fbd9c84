"""Who works on an artifact: one task at a time, so that nothing is trained twice because two runs wanted it at once.

`{artifact}/turn.json` names the task at work and changes every BEAT seconds while it lives. Another task that wants the
same artifact waits for its end, and then finds the result. Who was killed is passed at once by its own retry in a new
pod and by anyone on its machine who sees that it is gone, and by others once it has been silent for SILENT seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import time
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cmapkd_core import parallel, storage
from cmapkd_core.errors import DamagedInput

if TYPE_CHECKING:
    from cmapkd_core.request import Request


TURN = "turn.json"
BEAT, SILENT = 20.0, 120.0
SHAPE = {"owner": str, "seat": str, "run": str, "host": str, "pid": int, "beat": int}
SETTLE = 1.0  # seconds after which the last one of several that pass a silent task is the one


class Turn:
    """The turn of this process at one artifact; a context that gives it back."""

    def __init__(self, request: Request, stage: str, url: str) -> None:
        """`url` is the artifact's."""
        self._url = storage.join(url, TURN)
        asked = [request.run, request.recipe, request.ablation, request.all_overrides, request.seed, request.data]
        # Two runs may have one name: the Workflow says which is which (a TrainJob's pods have its job). Of what is
        # started by hand no run says that two are one and the same.
        here = parallel.workflow() if request.run else platform.node()
        self._record: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "seat": hashlib.sha256(json.dumps([stage, here, *asked]).encode()).hexdigest()[:16],
            "run": request.run,
            "host": platform.node(),
            "pid": os.getpid(),
            "beat": 0,
        }
        self._last_sign: tuple[Any, float] = ("", 0.0)  # the other's last sign of life, and when it was new
        self._over = threading.Event()
        self._asked = False
        self._beating: threading.Thread | None = None

    def take(self) -> str:
        """Take the turn: "" where it is ours now, else who has it.

        Raises:
            StorageError: the store does not answer.
        """
        try:
            if who := self._ahead():
                return who
        except FileNotFoundError:  # given back just now
            return "a task that has just ended"
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        return ""

    def _ahead(self) -> str:
        """Who has the turn; "" where it is ours now, of nobody or of one that may be passed."""
        self._asked = True
        if storage.create(self._url, json.dumps(self._record).encode()):
            return ""
        other = self._there()
        if not self._may_pass(other):
            return self._who(other)
        began = time.monotonic()
        storage.write_json(self._url, self._record)
        time.sleep(SETTLE + time.monotonic() - began)  # as slow as the store is for us, it may be for another
        return "" if self._there()["owner"] == self._record["owner"] else "another task that waited too"

    def _there(self) -> dict[str, Any]:
        """The record that lies there; ours in place of a damaged one, which holds the turn for nobody.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the store does not answer.
        """
        try:
            return storage.read_object(self._url, SHAPE)
        except DamagedInput:
            return self._record

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back, where it was taken; what the store says then is nobody's trouble: silence tells the same."""
        self._over.set()
        if not self._asked:
            return
        if self._beating is not None:
            self._beating.join()
        try:
            if self._there()["owner"] == self._record["owner"]:
                storage.delete(self._url)
        except (FileNotFoundError, storage.StorageError):
            pass

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._record["beat"] += 1
            try:
                if self._there()["owner"] != self._record["owner"]:
                    return  # passed while we were silent; the first manifest counts, as ever
                storage.write_json(self._url, self._record)
            except FileNotFoundError:  # its place was cleared
                with contextlib.suppress(storage.StorageError):
                    storage.create(self._url, json.dumps(self._record).encode())
            except storage.StorageError:
                continue  # the next one may arrive

    def _may_pass(self, other: dict[str, Any]) -> bool:
        """Whether the other is this task's earlier attempt, is gone from this machine, or was silent for long."""
        if other["host"] == self._record["host"] and other["pid"] != self._record["pid"]:
            gone = not _alive(other["pid"])  # the same command given twice is no retry
        else:
            gone = other["seat"] == self._record["seat"]
        if gone:
            return True
        sign = (other["owner"], other["beat"])
        if sign != self._last_sign[0]:
            self._last_sign = (sign, time.monotonic())
        return time.monotonic() - self._last_sign[1] > SILENT

    def _who(self, other: dict[str, Any]) -> str:
        silent = time.monotonic() - self._last_sign[1]
        holder = f"run {other['run']}" if other["run"] else "a stage started by hand"
        return f"{holder} (on {other['host']}, its last sign of life {silent:.0f} s ago)"


def _alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone, or the number of none
        return False
    except PermissionError:
        pass
    return True
