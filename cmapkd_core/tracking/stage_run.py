"""One stage's run on an MLflow server. Every call here may raise or hang; delivery.py bears it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd_core.tracking.journal import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

RUN_TAG = "cmapkd.run"
STAGE_TAG = "cmapkd.stage"
PARENT_STAGE = "pipeline"  # the parent run's value of STAGE_TAG
PARENT_ID_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # what the UI shows as a run's description
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then shows training runs with their metrics

# A stage that made a parent run waits this long for one made at the same time to appear.
SETTLE_SECONDS = 0.5

# Limits of one log_batch call.
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100
_NOTE_LENGTH = 7000  # characters; a tag holds 8000


@dataclass(frozen=True)
class Target:
    """Where a stage's metrics go. `experiment_id` and `parent_id` are "" unless KFP made them."""

    uri: str
    experiment: str
    run: str
    stage: str
    params: dict[str, Any]
    experiment_id: str = ""
    parent_id: str = ""


def mlflow_name(name: str) -> str:
    """MLflow allows letters, digits and `_-. :/` in a name: R@1 becomes R_1."""
    return re.sub(r"[^\w\-. :/]", "_", name)


class StageRun:
    """The nested run of one stage, open for logging through MlflowClient.

    Nothing here uses mlflow's active run, which would end a run that KFP injected when the process exits.
    """

    def __init__(self, target: Target, fresh: bool) -> None:
        """Connect, and find or make the parent run and the stage's run.

        Args:
            target: names and place.
            fresh: the stage starts anew (an empty journal). A run that has FINISHED is then an earlier
                execution and stays as it is; any other run of this stage is gone on with.
        """
        from mlflow import MlflowClient

        self._client: MlflowClient = MlflowClient(tracking_uri=target.uri)
        self._target = target
        adopted = _adopted(self._client, target.parent_id)
        self._experiment_id = _experiment(self._client, target, adopted)
        self._adopted = adopted
        self.run_id, self._delivered = self._reopen_or_make(adopted or self._find_or_make_parent(), fresh)

    def _find_or_make_parent(self) -> str:
        self._made_parent = ""
        if not self._parents():
            tags = {RUN_TAG: self._target.run, STAGE_TAG: PARENT_STAGE}
            self._made_parent = self._client.create_run(
                self._experiment_id, tags=tags, run_name=self._target.run
            ).info.run_id
            time.sleep(SETTLE_SECONDS)
        parent = self._oldest_parent()
        self._client.update_run(parent, status="RUNNING")
        return parent

    def _parents(self) -> list[Run]:
        return self._search({RUN_TAG: self._target.run, STAGE_TAG: PARENT_STAGE})

    def _oldest_parent(self) -> str:
        """Of the parents that stages made at the same time, the one that all agree on; ours goes if it is another."""
        oldest = min(self._parents(), key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id
        if self._made_parent not in ("", oldest):
            self._client.delete_run(self._made_parent)
            self._made_parent = ""
        return str(oldest)

    def _reopen_or_make(self, parent: str, fresh: bool) -> tuple[str, set[tuple[str, int]]]:
        """Run id, and the (name, step) pairs that the server holds already."""
        tags = {RUN_TAG: self._target.run, STAGE_TAG: self._target.stage}
        found = next(iter(self._search(tags)), None)
        tags[PARENT_ID_TAG] = parent
        if found is None or (fresh and found.info.status == "FINISHED"):
            made = self._client.create_run(self._experiment_id, tags=tags, run_name=self._target.stage)
            return str(made.info.run_id), set()
        run_id = str(found.info.run_id)
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, PARENT_ID_TAG, parent)
        return run_id, {(name, step) for name in found.data.metrics for step in self._steps(run_id, name)}

    def _search(self, tags: dict[str, str]) -> list[Run]:
        """Runs with all these tags, the latest first."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self._client.search_runs([self._experiment_id], wanted, order_by=["attributes.start_time DESC"]))

    def _steps(self, run_id: str, name: str) -> Iterator[int]:
        return (metric.step for metric in self._client.get_metric_history(run_id, name))

    def log_params(self) -> None:
        """Parameters cannot be changed in MLflow; those of an earlier attempt that differ are reported."""
        from mlflow.entities import Param

        held = self._client.get_run(self.run_id).data.params
        ours = {mlflow_name(name): str(value) for name, value in self._target.params.items()}
        new = [Param(name, value) for name, value in ours.items() if name not in held]
        for start in range(0, len(new), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMS_A_CALL])
        changed = [f"{name}: {held[name]} -> {value}" for name, value in ours.items() if held.get(name, value) != value]
        if changed:
            text = "; ".join(changed)
            self._client.set_tag(self.run_id, "cmapkd.changed_params", text)
            logger.warning("MLflow keeps the parameters of this run's first attempt; changed since: %s", text)

    def send(self, points: list[Point]) -> None:
        """Deliver what the server does not hold yet: one value for every name and step."""
        from mlflow.entities import Metric

        metrics: dict[tuple[str, int], Metric] = {}
        for point in points:
            for name, value in point.metrics.items():
                key = (mlflow_name(name), point.step)
                if key not in self._delivered:
                    metrics.setdefault(key, Metric(key[0], value, point.time, point.step))
        pending = list(metrics.values())
        for start in range(0, len(pending), _METRICS_A_CALL):
            self._client.log_batch(self.run_id, metrics=pending[start : start + _METRICS_A_CALL])
        self._delivered.update(metrics)

    def tag(self, name: str, value: str) -> None:
        self._client.set_tag(self.run_id, mlflow_name(name), value)

    def conclude(self, text: str, metrics: Mapping[str, float], page: Path) -> None:
        """Put the outcome where a run is looked for first: on the parent, as its description, metrics and a page."""
        from mlflow.entities import Metric

        parent, now = self._adopted or self._oldest_parent(), int(time.time() * 1000)
        self._client.set_tag(parent, NOTE_TAG, shortened(text))
        values = [Metric(mlflow_name(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(values), _METRICS_A_CALL):
            self._client.log_batch(parent, metrics=values[start : start + _METRICS_A_CALL])
        self._client.log_artifact(parent, str(page))

    def artifact(self, path: Path, folder: str) -> None:
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self.run_id, str(path), folder or None)

    def finish(self, status: str) -> None:
        """End the stage's run; a parent of ours then has the status that its stages have together."""
        self._client.set_terminated(self.run_id, status)
        if self._adopted:
            return
        parent = self._oldest_parent()
        self._client.set_tag(self.run_id, PARENT_ID_TAG, parent)
        latest: dict[str, str] = {}
        for run in self._search({RUN_TAG: self._target.run}):
            latest.setdefault(run.data.tags[STAGE_TAG], run.info.status)
        statuses = {status for stage, status in latest.items() if stage != PARENT_STAGE}
        if "RUNNING" not in statuses:
            self._client.set_terminated(parent, "FINISHED" if statuses == {"FINISHED"} else "FAILED")


def shortened(text: str) -> str:
    """Whole lines of a text, as many as MLflow shows of a description, and where the rest is."""
    if len(text) <= _NOTE_LENGTH:
        return text
    return text[:_NOTE_LENGTH].rpartition("\n")[0] + "\n\nThe rest is in the artifacts of the nested run `report`.\n"


def _adopted(client: MlflowClient, parent_id: str) -> str:
    """`parent_id` where the server knows it; a run that was deleted meanwhile is no parent."""
    from mlflow.exceptions import MlflowException

    if not parent_id:
        return ""
    try:
        return parent_id if client.get_run(parent_id).info.lifecycle_stage == "active" else ""
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        logger.warning("MLFLOW_RUN_ID=%s is unknown to the server: a parent run is made instead", parent_id)
        return ""


def _experiment(client: MlflowClient, target: Target, parent_id: str) -> str:
    """The parent's experiment (a nested run has to be in the same one), the injected one, or ours by name."""
    if parent_id:
        return str(client.get_run(parent_id).info.experiment_id)
    if target.experiment_id:
        return target.experiment_id
    found = client.get_experiment_by_name(target.experiment)
    if found is not None:
        return str(found.experiment_id)
    made = client.create_experiment(target.experiment, _beside_database(target.uri), tags=KIND)
    return str(made)


def _beside_database(uri: str) -> str | None:
    """MLflow would put a database's artifacts below the current folder, wherever that is."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()
