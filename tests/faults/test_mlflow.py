"""MLflow hangs, fails, refuses or dies while a stage trains: it trains as without it, and each point is told once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from mlflow_at_fault import Faulty, faulty_server

from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import main, parser
from cmapkd_core.records import record_run
from cmapkd_core.stages.artifact import Artifact

from .conftest import OVERRIDES, World

pytestmark = pytest.mark.heavy

STAGE, STEPS = "joint", "schedule.fine.epochs=8 runtime.log_every=1"
FAULTS = ("hang", "500", "401", "dies")


@pytest.fixture(scope="module")
def server(mlflow_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with faulty_server(mlflow_database, tmp_path_factory.mktemp("artifacts")) as faulty:
        yield faulty


def journal(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Artifact.open(url).fetch("journal.jsonl").read_text().splitlines()]


def step_time(url: str) -> float:
    """Milliseconds of an update, as the stage's own points tell."""
    times = [point["time"] for point in journal(url) if "samples_per_second" in point["metrics"]]
    return median(after - before for before, after in pairwise(times))


def told(database: str, run: str) -> list[tuple[str, int, float]]:
    """(metric, step, value) of a run's stages in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database)
    where = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(where, f"tags.`cmapkd.run` = '{run}'")
    names = [(one.info.run_id, name) for one in found for name in one.data.metrics]
    return sorted((m.key, m.step, m.value) for run_id, name in names for m in client.get_metric_history(run_id, name))


def test_training_goes_on_as_without_it_and_is_told_once(
    world: World,
    server: Faulty,
    root: Callable[..., str],
    made: Any,
    count: Any,
    draw: random.Random,
    tally: Any,
    mlflow_database: str,
) -> None:
    tried, held, ratios = count(0, 12), 0, list[float]()
    if not tried:
        pytest.skip("with --faults all; tests/stages/test_owed.py has each fault once")
    overrides = f"{OVERRIDES} {STEPS}"
    for number in range(tried):
        alone, _ = world.finish(STAGE, root("here", f"alone{number}"), overrides)
        place, fault = root("here", f"mlflow{number}"), FAULTS[number % len(FAULTS)]
        if fault == "dies":
            server.batches, server.then = 1, draw.choice(FAULTS[:-1])
        else:
            server.mode = fault
        run = f"mlflow-{number}"
        words = [*world.argv(STAGE, place, overrides), "--run", run, "--tracking-uri", server.uri]
        url, said = world.finished([world.started(STAGE, words)])
        assert "--deliver" in said
        server.well()
        given = [word for override in overrides.split() for word in ("--set", override)]
        asked = ["--recipe", "tiny", "--root", place, "--run", run, "--local", *given]
        record_run(place, run, decide(parser().parse_args(asked)).request)
        deliver = ["--deliver", run, "--root", place, "--tracking-uri", server.uri]
        assert main(deliver) == main(deliver) == 0
        wanted = sorted((name, p["step"], value) for p in journal(url) for name, value in p["metrics"].items())
        held += made(url) == made(alone) and told(mlflow_database, run) == wanted
        ratios.append(step_time(url) / step_time(alone))
    note = f"{median(ratios):.2f} x the time of an update ({min(ratios):.2f} to {max(ratios):.2f})"
    tally("MLflow hangs, 500, 401, dies", "the same artifact, each point told once", tried, held, note)
