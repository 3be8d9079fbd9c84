"""What a run was asked for, written once: `{root}/runs/{run}/run.json`.

The submit command and every stage call `record_run`; the first one writes the record, the others are held to it.
No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cmapkd_core import storage
from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.fields import differences, flatten, nearest
from cmapkd_core.places import RUN_DIGITS, run_url
from cmapkd_core.request import DECIDING, recipe_of
from cmapkd_core.view import NO_RESULT

_OF_ANOTHER_SCRIPT = re.compile(rf".+-[0-9a-f]{{{RUN_DIGITS}}}")
SUITE = ("suite", "seeds")  # what the record of a suite has beside it
_SHAPE: dict[str, type] = {**dict.fromkeys(("run", *DECIDING), str), "fields": dict}
_MORE: dict[str, type] = dict.fromkeys(SUITE, str)


def record_url(root: str, run: str) -> str:
    """URL of a run's record."""
    return storage.join(run_url(root, run), "run.json")


def record_run(root: str, run: str, request: Mapping[str, str], stage: str = "") -> None:
    """Write the run's record, or hold the request to the one that is there.

    Fields that change no result (`view.NO_RESULT`) may differ. Tasks that are given something of their own
    (`Request.own_overrides`: the reference, data of an evaluation) do not ask. A stage started by hand with `run=""`
    has no record.

    Args:
        request: the strings named in request.DECIDING, and those of SUITE where the run is one.
        stage: the stage that asks; "" for the submit command. Of the stages only a suite's report knows its suite.

    Raises:
        InputError: the run exists with another recipe; names the differing fields.
        DamagedInput: the run's record cannot be used.
    """
    if not run:
        return
    strings = {name: request[name] for name in DECIDING}
    suite = {name: request[name] for name in SUITE if name in request}
    record = {"run": run, **strings, **suite, "fields": result_fields(strings)}
    url = record_url(root, run)
    if storage.create(url, json.dumps(record, indent=2).encode()):
        return
    earlier = _read(url)
    # A record that another stage than a suite's report has written has no suite.
    has_suite = bool(suite) and any(name in earlier for name in SUITE)
    changed = _differing(earlier, request, suite=not stage or has_suite)
    if changed:
        lines = "\n  ".join(changed)
        way_out = "leave --run out, or give this one another --run name, or ask for the recipe it had"
        raise InputError(f"run '{run}' exists with another recipe ({url}):\n  {lines}\n{way_out}")


def give_up(root: str, run: str, request: Mapping[str, str]) -> list[str]:
    """Delete the record of a run of which nothing stands, so that another recipe can have its name.

    Args:
        request: as of `record_run`.

    Returns:
        the fields that differ; none, and nothing is deleted, where the record is of this recipe or there is none.
    """
    try:
        changed = _differing(_read(record_url(root, run)), request, suite=True)
    except FileNotFoundError:
        return []
    if changed:
        storage.delete(record_url(root, run))
    return changed


def read_record(root: str, run: str) -> dict[str, Any]:
    """The record of an earlier run: `run`, the strings of request.DECIDING and, of a suite, of SUITE, and `fields`.

    Raises:
        InputError: no such run; names the nearest one below the root.
        DamagedInput: its record cannot be used.
    """
    try:
        return _read(record_url(root, run))
    except FileNotFoundError:
        folder, known = storage.join(root, "runs"), run_names(root)
        hint = nearest(run, known) if known else "there is none yet"
        raise InputError(f"no run '{run}' below {folder}: {hint}") from None


def run_names(root: str) -> list[str]:
    """Names of the runs that have a record below the root."""
    folder = storage.join(root, "runs")
    return [_called(folder, name) for name in storage.list_files(folder) if name.endswith("/run.json")]


def _called(folder: str, name: str) -> str:
    """The name of a run whose record is `name` below the folder; its place says it but for one in another script."""
    place = name.split("/")[0]
    if not _OF_ANOTHER_SCRIPT.fullmatch(place):
        return place
    try:
        return str(_read(storage.join(folder, name))["run"])
    except DamagedInput:
        return place


def _read(url: str) -> dict[str, Any]:
    try:
        return storage.read_object(url, _SHAPE, _MORE)
    except DamagedInput as error:
        raise DamagedInput(
            f"{error}: delete it and give the run's first command again, with "
            "its recipe, which writes it anew and goes on with what is complete; or give another --run name"
        ) from None


def _differing(earlier: Mapping[str, Any], request: Mapping[str, str], suite: bool) -> list[str]:
    """What a request and a record differ in; with `suite` in that too."""
    fields = result_fields({name: request[name] for name in DECIDING})
    # A field that is younger than the record had no other value then than the one that its strings give it now.
    recorded = result_fields(earlier) | earlier["fields"]
    changed = differences(fields, {name: value for name, value in recorded.items() if name in fields})
    if not suite:
        return changed
    both = [{name: one[name] for name in SUITE if name in one} for one in (request, earlier)]
    return differences(*both) + changed


def result_fields(strings: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a recipe, by dotted name, that a result may depend on; `strings` are those of request.DECIDING."""
    leaves = flatten(recipe_of(strings))
    return {name: value for name, value in leaves.items() if not name.startswith(NO_RESULT)}
