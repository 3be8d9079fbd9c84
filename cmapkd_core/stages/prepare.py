"""Stage prepare: pictures with captions from a source become checked, split, indexed shards.

    python -m cmapkd_core.stages.prepare --recipe paper --root s3://bucket/cmapkd --source coco:s3://bucket/coco

Decoding and hashing run in `runtime.workers` threads; finished shards are kept in the workdir, so that the same command
goes on after the last of them when the stage was stopped. Or other machines have prepared parts of the rows, which are
joined (stages/prepare_part.py). No result depends on any of it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cmapkd_core import storage
from cmapkd_core.config import Recipe
from cmapkd_core.data.layout import PAIRS
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import declared, reads
from cmapkd_core.folders import reads_folder, spelled
from cmapkd_core.places import part_url, stage_url
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute, stands
from cmapkd_core.stages.identities import Paths
from cmapkd_core.stages.owed import deliver_owed
from cmapkd_core.stages.parts import PartOf, parts_of

NONE: Mapping[str, str] = MappingProxyType({})


def run(request: Request, *, source: str = "", artifacts: Mapping[str, str] = NONE) -> str:
    """Write the data set of the recipe; the artifact holds the files of `data.layout`.

    Args:
        artifacts: URLs of all parts of it by what they are, `part-1`, `part-2` ..; they are deleted once they are
            joined. None: all rows are read here.
        source: SOURCE or SOURCE:URL, such as coco:s3://bucket/coco or emoji; the same as --data. All of its rows are
            read, or the first data.size of them where an override says so.

    Raises:
        InputError: what the source says of its input, too many bad rows, nothing to train on, training pictures that
            are held out here or in a data set of `data.against`, a part that is missing or of something else.
    """
    source = spelled(source)
    if source and request.data not in ("", source):
        raise InputError(f"--source {source} and --data {request.data} name two data sets: leave one out")
    request = dataclasses.replace(request, data=request.data or source)
    recipe = request.resolved()
    parts = parts_of(recipe, artifacts)
    url = execute(
        request,
        "prepare",
        url=stage_url(request.root, "prepare", recipe),
        fields=reads(recipe, "prepare"),
        inputs=_inputs(recipe),
        body=Late("prepare", parts=parts, paths=of_data(recipe)),
        declared=declared(recipe, "prepare"),
        paths=of_data(recipe),
    )
    _delete(parts, request, recipe)
    _show(Artifact.open(url))
    return url


def _show(artifact: Artifact) -> None:
    """Where a person sees the pairs, minutes before anything else of a run can be seen."""
    if PAIRS in artifact.files():  # not of an earlier code
        print(f"prepare: pictures with their captions, to look at: {artifact.file_url(PAIRS)}", flush=True)


def whole_stands(request: Request, recipe: Recipe) -> str:
    """URL of the recipe's data set where it is complete and what stage prepare would make now; "" where it is not."""
    artifact = find(stage_url(request.root, "prepare", recipe))
    others = {name: find(url) for name, url in _inputs(recipe).items()}
    digests = {name: {"digest": other.digest if other else ""} for name, other in others.items()}
    stays = artifact is not None and stands(request, "prepare", artifact, digests, of_data(recipe), lambda text: None)
    return artifact.url if artifact is not None and stays else ""


def _delete(parts: Sequence[PartOf], request: Request, recipe: Recipe) -> None:
    """What has been joined; nothing that lies elsewhere than parts of this recipe do."""
    for part in parts:
        url = part_url(request.root, recipe, part.number, part.of)
        if storage.absolute(part.url) == url:
            deliver_owed(request, filter(None, [find(url)]))  # its journal goes with it
            storage.delete_tree(url)


def _inputs(recipe: Recipe) -> dict[str, str]:
    return {f"against-{number}": other for number, other in enumerate(recipe.data.against)}


def of_data(recipe: Recipe) -> Paths:
    """The folder of the recipe's source; sources that carry their data have none."""
    return {"data.url": recipe.data.url} if reads_folder(recipe.data.source) and recipe.data.url else {}


if __name__ == "__main__":
    sys.exit(main(run))
