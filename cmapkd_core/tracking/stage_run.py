"""One stage's run on an MLflow server. Every call here may raise or hang; delivery.py bears it."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cmapkd_core.tracking import limits
from cmapkd_core.tracking.journal import Point
from cmapkd_core.tracking.limits import Names, cut, mlflow_name
from cmapkd_core.tracking.patience import Listened, Patience
from cmapkd_core.tracking.reach import deleted_run, experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

RUN_TAG = "cmapkd.run"
STAGE_TAG = "cmapkd.stage"
PARENT_STAGE = "pipeline"  # the parent run's value of STAGE_TAG
PARENT_ID_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # what the UI shows as a run's description
PROCESS_TAG = "cmapkd.process"  # HOST:PID of who logs: says later whether it still can
END_TAG = "cmapkd.end"  # why the latest attempt failed or was stopped
EARLIER_TAG = "cmapkd.earlier_end"  # and the one before
JOURNAL_TAG = "cmapkd.journal"  # of a run that has ended: the mark of the journal whose points it has
NO_WORD = "without a word: its process was killed, or its machine was lost"

# A stage that made a parent run waits this long for one made at the same time to appear.
SETTLE_SECONDS = 0.5

# Limits of one log_batch call.
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100
_NOTE_LENGTH = 7000  # characters; a tag holds 8000
_SHOWN = 200  # characters of a parameter that has changed
PARAMETERS, CHANGED = "parameters.json", "changed_parameters.json"  # artifacts with what is cut elsewhere


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


class StageRun:
    """The nested run of one stage, open for logging through MlflowClient.

    Nothing here uses mlflow's active run, which would end a run that KFP injected when the process exits.
    """

    def __init__(self, target: Target, mark: str, names: Names, known: str, patience: Patience) -> None:
        """Connect, and find or make the parent run and the stage's run.

        Args:
            target: names and place.
            mark: of the journal as it was opened; "" of an empty one. A run that has FINISHED with another one is
                an earlier execution and stays as it is; any other run of this stage is gone on with.
            names: of the metrics, the same for all connections of a stage.
            known: the run that an earlier connection of this process has logged to; "" before the first.
            patience: gets every answer of the server, and says when to ask nothing more.

        Raises:
            Unusable: the experiment or the known run was deleted.
        """
        from mlflow import MlflowClient

        self._client = cast(MlflowClient, Listened(MlflowClient(tracking_uri=target.uri), patience))
        self._target, self._names = target, names
        self._adopted = _adopted(self._client, target.parent_id)
        own = self._client.get_run(self._adopted).info.experiment_id if self._adopted else target.experiment_id
        self._experiment_id = experiment(self._client, target.uri, target.experiment, own)
        if known and self._client.get_run(known).info.lifecycle_stage != "active":
            raise deleted_run(target.uri, known)
        self.run_id, self._delivered = self._reopen_or_make(self._parent(), mark, known)

    def _parent(self) -> str:
        """The injected parent, or the one that all stages of the run agree on; made where there is none."""
        if self._adopted:
            return self._adopted
        self._made_parent = ""
        if not self._parents():
            tags = {RUN_TAG: self._target.run, STAGE_TAG: PARENT_STAGE}
            self._made_parent = self._make_run(tags, self._target.run)
            time.sleep(SETTLE_SECONDS)
        return self._oldest_parent()

    def _parents(self) -> list[Run]:
        return self._search({RUN_TAG: self._target.run, STAGE_TAG: PARENT_STAGE})

    def _oldest_parent(self) -> str:
        """Of the parents that stages made at the same time, the one that all agree on; ours goes if it is another."""
        oldest = min(self._parents(), key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id
        if self._made_parent not in ("", oldest):
            self._client.delete_run(self._made_parent)
            self._made_parent = ""
        return str(oldest)

    def _make_run(self, tags: dict[str, str], name: str) -> str:
        made = self._client.create_run(self._experiment_id, tags=tags, run_name=name[: limits.NAME])
        return str(made.info.run_id)

    def _reopen_or_make(self, parent: str, mark: str, known: str) -> tuple[str, set[tuple[str, int]]]:
        """Run id, and the (name, step) pairs that the server holds already."""
        if not self._adopted:
            self._client.update_run(parent, status="RUNNING")
        tags = {RUN_TAG: self._target.run, STAGE_TAG: self._target.stage}
        run = _execution(self._search(tags), mark, known)
        tags |= {PARENT_ID_TAG: parent, PROCESS_TAG: this_process()}
        if run is None:
            return self._make_run(tags, self._target.stage), set()
        run_id = str(run.info.run_id)
        self._keep_earlier_end(run)
        self._client.update_run(run_id, status="RUNNING")
        for name in (PARENT_ID_TAG, PROCESS_TAG):
            self._client.set_tag(run_id, name, tags[name])
        return run_id, {(name, step) for name in run.data.metrics for step in self._steps(run_id, name)}

    def _keep_earlier_end(self, run: Run) -> None:
        """An attempt that goes on in a run says how the one before it ended; one of this process has not."""
        end = run.data.tags.get(END_TAG, "")
        if run.info.status == "RUNNING" and run.data.tags.get(PROCESS_TAG) != this_process():
            end = NO_WORD
        elif end:
            self._client.delete_tag(run.info.run_id, END_TAG)
        if end:
            self._client.set_tag(run.info.run_id, EARLIER_TAG, end)

    def _search(self, tags: dict[str, str]) -> list[Run]:
        """Runs with all these tags, the latest first."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self._client.search_runs([self._experiment_id], wanted, order_by=["attributes.start_time DESC"]))

    def _steps(self, run_id: str, name: str) -> Iterator[int]:
        return (metric.step for metric in self._client.get_metric_history(run_id, name))

    def log_params(self) -> None:
        """Parameters cannot be changed in MLflow; those of an earlier attempt that differ are reported.

        One that is longer than MLflow's limit ends in its digest, and stands as it is in the artifact PARAMETERS.
        """
        from mlflow.entities import Param

        names = Names()
        whole = {names(name): str(value) for name, value in self._target.params.items()}
        logged = {name: cut(value, limits.PARAM, f"all of it in {PARAMETERS}") for name, value in whole.items()}
        held = self._client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in logged.items() if name not in held]
        for start in range(0, len(new), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMS_A_CALL])
        changed = {name: (held[name], value) for name, value in logged.items() if held.get(name, value) != value}
        if changed:
            self._tell_changed(changed)
        if whole != logged:
            long = {name: value for name, value in whole.items() if value != logged[name]}
            self._client.log_dict(self.run_id, long, PARAMETERS)

    def _tell_changed(self, changed: dict[str, tuple[str, str]]) -> None:
        rest = f"all of it in {CHANGED}"
        lines = [f"{name}: {' -> '.join(cut(value, _SHOWN, rest) for value in both)}" for name, both in changed.items()]
        text = cut("; ".join(lines), limits.TAG, rest)
        self._client.set_tag(self.run_id, "cmapkd.changed_params", text)
        logger.warning("MLflow keeps the parameters of this run's first attempt; changed since: %s", text)
        if rest in text:
            self._client.log_dict(self.run_id, {name: list(both) for name, both in changed.items()}, CHANGED)

    def send(self, points: list[Point]) -> None:
        """Deliver what the server does not hold yet: one value for every name and step."""
        from mlflow.entities import Metric

        metrics: dict[tuple[str, int], Metric] = {}
        for point in points:
            for name, value in point.metrics.items():
                key = (self._names(name), point.step)
                if key not in self._delivered:
                    metrics.setdefault(key, Metric(key[0], value, point.time, point.step))
        pending = list(metrics.values())
        for start in range(0, len(pending), _METRICS_A_CALL):
            self._client.log_batch(self.run_id, metrics=pending[start : start + _METRICS_A_CALL])
        self._delivered.update(metrics)

    def tag(self, name: str, value: str) -> None:
        """Set a tag; of one that is too long the rest is in a file."""
        plain = mlflow_name(name)
        file = f"tags/{plain.replace('/', '_')}.txt"
        self._client.set_tag(self.run_id, plain, cut(value, limits.TAG, f"all of it in {file}"))
        if len(value) > limits.TAG:
            self._client.log_text(self.run_id, value, file)

    def conclude(self, text: str, metrics: Mapping[str, float], page: Path) -> None:
        """Put the outcome where a run is looked for first: on the parent, as its description, metrics and a page."""
        from mlflow.entities import Metric

        parent, now, names = self._parent(), int(time.time() * 1000), Names()
        self._client.set_tag(parent, NOTE_TAG, shortened(text))
        values = [Metric(names(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(values), _METRICS_A_CALL):
            self._client.log_batch(parent, metrics=values[start : start + _METRICS_A_CALL])
        self._client.log_artifact(parent, str(page))

    def artifact(self, path: Path, folder: str) -> None:
        """Store a file, or a folder with its files."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self.run_id, str(path), folder or None)

    def finish(self, status: str, reason: str, mark: str) -> None:
        """End the stage's run; a parent of ours then has the status that its stages have together.

        Args:
            mark: of the journal whose points it has; who delivers that once more finds the run by it.
        """
        if mark:
            self._client.set_tag(self.run_id, JOURNAL_TAG, mark)
        if reason:
            self._client.set_tag(self.run_id, END_TAG, cut(reason, limits.TAG, "all of it in the stage's log"))
        self._client.set_terminated(self.run_id, status)
        if self._adopted:
            return
        parent = self._parent()
        self._client.set_tag(self.run_id, PARENT_ID_TAG, parent)
        end_parent(self._client, parent, self._search({RUN_TAG: self._target.run}))


def _execution(runs: list[Run], mark: str, known: str) -> Run | None:
    """Of a stage's runs, the latest first, the one that has these points or gets them; None: there is none yet."""
    for run in runs:
        if run.info.run_id == known or (mark and run.data.tags.get(JOURNAL_TAG) == mark):
            return run
    latest = next(iter(runs), None)
    if latest is None or latest.info.status != "FINISHED":
        return latest
    return latest if mark and JOURNAL_TAG not in latest.data.tags else None  # one that could not be marked


def end_parent(client: MlflowClient, parent: str, runs: list[Run]) -> None:
    """End a parent whose stages have all ended; of each stage the latest of `runs` counts, which comes first."""
    latest: dict[str, str] = {}
    for run in runs:
        latest.setdefault(run.data.tags[STAGE_TAG], run.info.status)
    statuses = {status for stage, status in latest.items() if stage != PARENT_STAGE}
    if "RUNNING" not in statuses:
        worst = next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")
        client.set_terminated(parent, worst)


def this_process() -> str:
    """HOST:PID; of a pod the host is its name."""
    return f"{platform.node()}:{os.getpid()}"


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
