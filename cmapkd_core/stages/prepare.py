"""Stage prepare: pictures with captions from a source become checked, split, indexed shards.

    python -m cmapkd_core.stages.prepare --recipe paper --root s3://bucket/cmapkd --source coco:s3://bucket/coco

Decoding and hashing run in `runtime.workers` threads; finished shards are kept in the workdir, so that the same command
goes on after the last of them when the stage was stopped. No result depends on either.
"""

from __future__ import annotations

import dataclasses
import sys

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import declared, reads
from cmapkd_core.folders import reads_folder
from cmapkd_core.places import place
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.identities import Paths


def run(request: Request, *, source: str = "") -> str:
    """Write the data set of the recipe; the artifact holds the files of `data.layout`.

    Args:
        source: SOURCE or SOURCE:URL, such as coco:s3://bucket/coco or emoji; the same as --data. All of its rows are
            read, or the first data.size of them where an override says so.

    Raises:
        InputError: what the source says of its input, too many bad rows, nothing to train on, training pictures that
            are held out here or in a data set of `data.against`.
    """
    if source and request.data not in ("", source):
        raise InputError(f"--source {source} and --data {request.data} name two data sets: leave one out")
    request = dataclasses.replace(request, data=request.data or source)
    recipe = request.resolved()
    fields = reads(recipe, "prepare")
    url = place(request.root, "prepare", fields)
    inputs = {f"against-{number}": other for number, other in enumerate(recipe.data.against)}
    may = declared(recipe, "prepare")
    return execute(
        request,
        "prepare",
        url=url,
        fields=fields,
        inputs=inputs,
        body=Late("prepare"),
        declared=may,
        paths=of_data(recipe),
    )


def of_data(recipe: Recipe) -> Paths:
    """The folder of the recipe's source; sources that carry their data have none."""
    return {"data.url": recipe.data.url} if reads_folder(recipe.data.source) and recipe.data.url else {}


if __name__ == "__main__":
    sys.exit(main(run))
