"""What the process of test_stopped.py does: `stopping.py FOLDER STOPS`, where FOLDER/stages.json names the stages.

Each is run, run again elsewhere and sent a SIGTERM in the middle of that, and then run there to its end;
FOLDER/found.json says what came of it.
"""

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from cmapkd_core import temporary
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main

TIMED = ("journal.jsonl", "history.json", ".html", ".pdf", ".png")  # hold times
KEPT = ("/work/checkpoints/", "/stored/", "/work/shards-")  # what a stopped stage goes on from
LIBRARY = ("/.ses",)  # onnxruntime's one file of a user's session, always the same


def run(root: Path, stage: list[str], after: float = 0.0) -> int:
    """The stage in this process, with a SIGTERM `after` seconds of its own work, if any."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(root / "tmp")
    done = threading.Event()
    thread = threading.Thread(target=stop, args=(root, after, done))
    if after:
        thread.start()
    argv = ["--recipe", "tiny", "--root", str(root / "root"), "--artifact", str(root / "url"), *stage[1:]]
    code = main(importlib.import_module(f"cmapkd_core.stages.{stage[0]}").run, argv)
    done.set()
    if after:
        thread.join()
    return code


def stop(root: Path, after: float, done: threading.Event) -> None:
    while not list((root / "tmp").glob(f"{temporary.PREFIX}*/out")):
        if done.wait(0.001):
            return
    if not done.wait(after):
        os.kill(os.getpid(), signal.SIGTERM)


def result(root: Path) -> dict[str, str]:
    """sha256 of the files that say what the stage found."""
    outputs = Artifact.open((root / "url").read_text()).manifest["outputs"]
    return {name: told["sha256"] for name, told in outputs.items() if not name.endswith(TIMED)}


def left_behind(root: Path) -> list[str]:
    """Files that a stopped stage should have taken with it; not an artifact that was complete by then."""
    whole = [path.parent for path in root.rglob("manifest.json")]
    loose = [path for path in root.rglob("*") if path.is_file() and not any(map(path.is_relative_to, whole))]
    files = [path.relative_to(root).as_posix() for path in loose]
    return [name for name in files if not any(kept in name for kept in KEPT + LIBRARY) and "run.json" not in name]


def found(folder: Path, name: str, stage: list[str], stops: int) -> list[dict[str, object]]:
    began = time.monotonic()
    assert run(folder / name, stage) == 0
    took, straight, chance, rows = time.monotonic() - began, result(folder / name), random.Random(name), []
    for number in range(stops):
        after = chance.uniform(0.05, 0.7) * took
        for attempt in range(8):  # a stage that was done by then is stopped sooner
            root = folder / f"{name}-{number}-{attempt}"
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # that comes between the stage's end and ours
            code = run(root, stage, after)
            if code:
                break
            after /= 2
        row = {"code": code, "after": after, "took": took, "left": left_behind(root)}
        rows.append(
            row
            | {
                "again": run(root, stage),
                "equal": result(root) == straight,
                "differ": [n for n, d in result(root).items() if straight.get(n) != d],
                "files": len(straight),
            }
        )
    return rows


if __name__ == "__main__":
    folder, stops = Path(sys.argv[1]), int(sys.argv[2])
    stages = json.loads((folder / "stages.json").read_text())
    told = {name: found(folder, name, stage, stops) for name, stage in stages.items()}
    (folder / "found.json").write_text(json.dumps(told))
