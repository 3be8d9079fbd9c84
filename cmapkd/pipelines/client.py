"""What is asked of Kubeflow Pipelines: upload, start, schedule, retry, follow. Failures are those of endpoint.py."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kfp_server_api

from cmapkd.pipelines.endpoint import Client, EndpointError, address, speaking_to
from cmapkd.pipelines.site import Site
from cmapkd_core.errors import InputError
from cmapkd_core.stages.artifact import is_made
from cmapkd_core.storage import StorageError

PIPELINE = "cmapkd"
PATIENCE = 12  # polls in a row that may fail while a run is followed
ENDING = "CANCELING"
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
RETRIED = ("FAILED", "CANCELED")
PAGE = 100  # runs that the API lists at a time
NO_STATE = (None, "", "RUNTIME_STATE_UNSPECIFIED")
REFUSED = "REFUSED BY ITS DRIVER"  # state of a task of which KFP started no container
ROOT_DRIVER = "root-driver"


def start(
    client: Client,
    site: Site,
    run: str,
    package: Path,
    arguments: Mapping[str, str],
    *,
    keep: bool = True,
    experiment: str = "",
) -> str:
    """Start a run and return its id.

    Args:
        experiment: "" takes the site's.
        keep: upload the package as a version of the pipeline, so that the UI can start it again from its form; a
            package that is there already is not uploaded twice. False sends it with this run alone.

    Raises:
        EndpointError: see connect.
    """
    namespace = site.namespace or None
    with speaking_to(address(site)):
        made = client.create_experiment(experiment or site.experiment, namespace=namespace)
        pipeline, version = upload(client, package, namespace) if keep else (None, None)
        started = client.run_pipeline(
            made.experiment_id,
            run,
            pipeline_package_path=None if keep else str(package),
            params=dict(arguments),
            pipeline_id=pipeline,
            version_id=version,
            service_account=site.service_account or None,
        )
    return str(started.run_id)


def upload(client: Client, package: Path, namespace: str | None) -> tuple[str, str]:
    """Ids of the pipeline and of its version with this package's content, uploaded where they are not there yet."""
    pipelines = client.list_pipelines(namespace=namespace, filter=_named(PIPELINE)).pipelines
    pipeline = pipelines[0] if pipelines else client.upload_pipeline(str(package), PIPELINE, namespace=namespace)
    version = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    known = client.list_pipeline_versions(pipeline.pipeline_id, filter=_named(version)).pipeline_versions
    latest = known[0] if known else client.upload_pipeline_version(str(package), version, pipeline.pipeline_id)
    return pipeline.pipeline_id, latest.pipeline_version_id


def schedule(client: Client, site: Site, name: str, package: Path, arguments: Mapping[str, str], cron: str) -> str:
    """Start a run again and again, one at a time; returns the recurring run's id.

    Args:
        cron: six fields, seconds first.

    Raises:
        EndpointError: see connect.
    """
    namespace = site.namespace or None
    with speaking_to(address(site)):
        experiment = client.create_experiment(site.experiment, namespace=namespace)
        pipeline, version = upload(client, package, namespace)
        made = client.create_recurring_run(
            experiment.experiment_id,
            name,
            cron_expression=cron,
            no_catchup=True,
            params=dict(arguments),
            pipeline_id=pipeline,
            version_id=version,
            service_account=site.service_account or None,
        )
    return str(made.recurring_run_id)


def of_suite(client: Client, site: Site, name: str) -> dict[str, Any]:
    """The latest run of every name in a suite's experiment, the first one started first; none where it is not there.

    Names are those within the suite. Of other runs, as an experiment of another use has, none.
    """
    namespace = site.namespace or None
    with speaking_to(address(site)):
        experiments = client.list_experiments(namespace=namespace, filter=_named(name)).experiments or []
        latest: dict[str, Any] = {}
        token = ""
        while experiments:
            page = client.list_runs(
                experiment_id=experiments[0].experiment_id,
                namespace=namespace,
                sort_by="created_at asc",
                page_size=PAGE,
                page_token=token,
            )
            for run in page.runs or []:
                suite, _, called = (run.display_name or "").rpartition(".")
                if suite == name:
                    latest.pop(called, None)  # so that the order is that of the latest ones
                    latest[called] = run
            token = page.next_page_token
            if not token:
                break
    return latest


def stop(client: Client, site: Site, run_id: str) -> None:
    """End a run; what it finished stays."""
    with speaking_to(address(site)):
        client.terminate_run(run_id)


def retry(client: Client, site: Site, name: str) -> tuple[str, dict[str, str]]:
    """Run what failed of a run again, with the image and package that it had; finished tasks stay.

    Args:
        name: the run's id, or its name: then the latest of that name.

    Returns:
        its id, and the display names of its tasks by name.

    Raises:
        InputError: no such run, or one that did not fail.
        EndpointError: see connect.
    """
    endpoint = address(site)
    with speaking_to(endpoint):
        namespace = site.namespace or None
        named = client.list_runs(namespace=namespace, sort_by="created_at desc", filter=_named(name)).runs
        run = named[0] if named else _run_of(client, name, endpoint)
        if run.state not in RETRIED:
            raise InputError(f"run {name} is {(run.state or 'not started').lower()}: only a failed run can be retried")
        tasks = tasks_of(client, run)
        client.retry_run(run.run_id)
    return str(run.run_id), tasks


def _run_of(client: Client, run_id: str, endpoint: str) -> Any:
    try:
        return client.get_run(run_id)
    except kfp_server_api.ApiException as error:
        if error.status not in (400, 404):
            raise
        raise InputError(f"no run '{run_id}' at {endpoint}: give its name, or the id at the end of its link") from None


def tasks_of(client: Client, run: Any) -> dict[str, str]:
    """Display names of a run's tasks by key."""
    return {key: display_name(key, task) for key, task in spec_of(client, run).items()}


def display_name(key: str, task: Mapping[str, Any]) -> str:
    """A task's name in the UI, from its key and the rest of it in the package."""
    return str(task.get("taskInfo", {}).get("name", key))


def spec_of(client: Client, run: Any) -> dict[str, Any]:
    """A run's tasks by key, as its package has them, or the version that it refers to."""
    version = run.pipeline_version_reference
    spec = run.pipeline_spec
    if not spec and version:
        spec = client.get_pipeline_version(version.pipeline_id, version.pipeline_version_id).pipeline_spec
    tasks: dict[str, Any] = (
        (spec or {}).get("pipeline_spec", spec or {}).get("root", {}).get("dag", {}).get("tasks", {})
    )
    return tasks


def link(site: Site, run_id: str, kind: str = "runs") -> str:
    """The page of a run, or of a recurring run (kind `recurringrun`), in the UI."""
    return f"{address(site)}/#/{kind}/details/{run_id}"


def follow(
    client: Client,
    site: Site,
    run_id: str,
    tasks: Mapping[str, str],
    interval: float = 5.0,
    urls: Mapping[str, str] | None = None,
) -> str:
    """Print the tasks' states as they change until the run ends; returns its last state.

    Args:
        tasks: display name by name in the package, for the tasks to show.
        urls: of their artifacts, by display name: their manifests say what is done where KFP has no details any more,
            as of a run whose status Argo had to compress.

    Raises:
        EndpointError: the endpoint failed for about a minute; the run goes on without us.
    """
    shown: dict[str, str] = {}
    state = ""

    def look() -> bool:
        nonlocal state
        with speaking_to(address(site)):
            run = client.get_run(run_id)
        state = str(run.state)
        current = states(run, tasks)
        if not details_of(run) and state == "RUNNING":
            open_ = {name: url for name, url in (urls or {}).items() if shown.get(name) != "SUCCEEDED"}
            current = {name: "SUCCEEDED" for name, url in open_.items() if is_there(url)}
        for name, now in current.items():
            if shown.get(name) != now:
                shown[name] = now
                print(f"  {time.strftime('%H:%M:%S')} {name} {now.lower()}", flush=True)
        return state not in FINAL

    until_ended(look, interval)
    return state


def until_ended(look: Callable[[], bool], interval: float) -> None:
    """Look every `interval` seconds until `look` says that nothing goes on.

    Raises:
        EndpointError: the endpoint refuses, or failed PATIENCE times in a row; what runs goes on without us.
    """
    failures, going = 0, True
    while going:
        try:
            going, failures = look(), 0
        except EndpointError as error:
            failures += 1
            if failures == PATIENCE or not error.passing:
                raise
            print(f"  {error}; asking again", flush=True)
        if going:
            time.sleep(interval)


def states(run: Any, tasks: Mapping[str, str]) -> dict[str, str]:
    """States of a run's tasks by display name: KFP's own, or REFUSED; those that have none yet are left out.

    The API names a task by its key in the package, its driver by KEY-driver, that of the whole run ROOT_DRIVER; what
    waits for what failed has no state.

    Args:
        tasks: display name by key.
    """
    details = details_of(run)
    by_name = {detail.display_name: detail.state for detail in details if detail.state not in NO_STATE}
    whole = by_name.get(ROOT_DRIVER) == "FAILED"
    refused = {name: REFUSED for key, name in tasks.items() if whole or by_name.get(f"{key}-driver") == "FAILED"}
    return {name: by_name[key] for key, name in tasks.items() if key in by_name} | refused


def details_of(run: Any) -> list[Any]:
    """KFP's details of a run's tasks; none where it has not looked yet, or has them no more."""
    return list((run.run_details and run.run_details.task_details) or [])


def is_there(url: str, old: str = "") -> bool:
    """As `is_made`; False of what cannot be seen from here."""
    try:
        return is_made(url, old)
    except StorageError:
        return False


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
