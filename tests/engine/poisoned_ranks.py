"""What each of two processes does in test_poisoned_ranks.py: `poisoned_ranks.py ROOT`; the fault is on rank 1 alone."""

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cmapkd_core import parallel
from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.checkpoint import Checkpoints
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.session import Session
from cmapkd_core.errors import Diverged
from cmapkd_core.stages.phases import run_phases
from cmapkd_core.tracking import Tracker

STEPS = (6, 7)
MOST = {"gradient": 5, "loss": 1, "weights": 3}  # updates that may be skipped: more than there are, or fewer
VALUES = {"nan": math.nan, "inf": math.inf, "spike": 100.0}


def toys() -> Any:
    """The toy phases of this folder's conftest."""
    spec = importlib.util.spec_from_file_location("toys", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = made
    spec.loader.exec_module(made)
    return made


def poison(one: Any, fault: str, value: float) -> None:
    """At STEPS; in the weights at the first of them, for good."""
    now, clean = [-1], one.rows.y.clone()

    def before(step: int) -> None:
        now[0] = step
        if fault == "loss":
            one.rows.y = clean * (value * 10 if value == 100 else value) if step in STEPS else clean
        if fault == "weights" and step == STEPS[0]:
            one.module.weight.data[0, 0] *= value * (100 if value == 100 else 1)

    one.rows.before = before
    if fault == "gradient":  # before the ranks' gradients are summed
        much = value * 20 if value == 100 else value
        one.module.weight.register_hook(lambda grad: grad * much if now[0] in STEPS else grad)


def train(module: Any, folder: Path, fault: str, value: float, most: int) -> dict[str, Any]:
    """One run of ten updates, and the same command once more where it stopped, without the fault."""
    optim = OptimConfig(batch=8, warmup=0.0, max_skipped=most)
    phases = (Phase(1, Rates(student=1e-2, pyramid=1e-2)),)
    runtime = dataclasses.replace(module.Toy.__dataclass_fields__["runtime"].default, checkpoint_every=5)
    found: dict[str, Any] = {"stopped": "", "resumed": []}
    for attempt in range(2):
        own = folder / str(parallel.rank())  # journal and scratch
        one = module.Toy(own, phases=phases, optim=optim, runtime=runtime)
        one.checkpoints = Checkpoints(str(folder / "work"), own / "scratch", "a")
        one.rows.x, one.rows.y = (x.roll(parallel.rank(), 0) for x in (one.rows.x, one.rows.y))
        if parallel.rank() == 1 and attempt == 0:
            poison(one, fault, value)
        try:
            session = one.run()
            break
        except Diverged as error:
            found["stopped"] = str(error)
    rows = session.watch.memory.skipped
    resumed = [line for line in one.said if "going on from" in line]
    weights = {name: x.tolist() for name, x in one.module.state_dict().items()}
    return found | {"rows": rows, "resumed": resumed, "weights": weights}


def roll_back(module: Any, folder: Path) -> dict[str, Any]:
    """Two bad updates in the usual order of the batches alone, one more than may be skipped."""
    optim = OptimConfig(batch=8, warmup=0.0, max_skipped=1, rollbacks=1)
    one = module.Toy(folder / str(parallel.rank()), phases=(Phase(1, Rates(student=1e-2)),), optim=optim)
    clean = one.rows.y.roll(parallel.rank(), 0)

    def before(step: int) -> None:
        bad = parallel.rank() == 1 and one.rows.turn == 0 and step in STEPS
        one.rows.y = clean * math.nan if bad else clean

    one.rows.before = before
    tracker = Tracker.open("", run="r", stage="s", journal=one.folder / "journal.jsonl", params={})
    recipe = SimpleNamespace(runtime=one.runtime, optim=optim)
    context = SimpleNamespace(recipe=recipe, tracker=tracker, workdir=str(folder / "work"), say=one.said.append)
    context.scratch, context.identity = one.folder / "scratch", "a"

    def run(plan: PhasePlan, session: Session) -> None:
        run_phase(one.module, one.rows, lambda batch: None, plan, session)

    session = run_phases(context, "toy", one.plans, run, seed=0)  # type: ignore[arg-type]
    weights = {name: x.tolist() for name, x in one.module.state_dict().items()}
    return {"rolled": session.rollbacks, "skipped": session.watch.memory.skipped, "weights": weights, "said": one.said}


def main(root: str) -> None:
    torch.set_num_threads(1)
    parallel.start()
    module, found = toys(), {}
    runs = [(fault, kind) for fault in MOST for kind in VALUES]
    for fault, kind in (("none", "nan"), *runs):
        folder = Path(root, f"{fault}-{kind}")
        found[folder.name] = train(module, folder, fault, VALUES[kind], MOST.get(fault, 0))
    found["back"] = roll_back(module, Path(root, "back"))
    Path(root, f"rank{parallel.rank()}.json").write_text(json.dumps(found))
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1])
