"""What a stage that was killed could not say itself: that it has ended."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cmapkd_core.tracking.stage_run import (
    END_TAG,
    NO_WORD,
    PARENT_ID_TAG,
    PARENT_STAGE,
    PROCESS_TAG,
    RUN_TAG,
    STAGE_TAG,
    end_parent,
    this_process,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


def end_killed(uri: str, name: str, experiment_id: str, run: str) -> list[str]:
    """See `tracking.mark_killed`; `name` and `experiment_id` are the experiment's, as of `reach.experiment`."""
    from mlflow import MlflowClient

    try:
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            return []  # MLflow would make one, which takes seconds
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment(experiment_id) if experiment_id else client.get_experiment_by_name(name)
        where = [experiment.experiment_id] if experiment else []
        if not where:
            return []
        of_run = f"tags.`{RUN_TAG}` = '{run}'"
        ended = [
            one for one in client.search_runs(where, f"{of_run} and attributes.status = 'RUNNING'") if _is_dead(one)
        ]
        for one in ended:
            client.set_tag(one.info.run_id, END_TAG, NO_WORD)
            client.set_terminated(one.info.run_id, "FAILED")
        runs = list(client.search_runs(where, of_run, order_by=["attributes.start_time DESC"]))
        for parent in {one.data.tags[PARENT_ID_TAG] for one in ended}:
            if any(one.info.run_id == parent and one.data.tags[STAGE_TAG] == PARENT_STAGE for one in runs):
                end_parent(client, parent, runs)
        return [one.data.tags[STAGE_TAG] for one in ended]
    except Exception as error:  # whoever asks has a failure of its own to tell
        logger.info("MLflow cannot be asked for killed stages: %s", error)
        return []


def _is_dead(run: Run) -> bool:
    """True where the process that logged was one of this machine and is no more."""
    host, _, pid = run.data.tags.get(PROCESS_TAG, "").rpartition(":")
    if host != this_process().rpartition(":")[0] or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
