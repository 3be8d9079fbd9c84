"""Stage prepare_part: one run of a source's rows becomes a part of the data set, which stage prepare joins.

    python -m cmapkd_core.stages.prepare_part --recipe paper --root s3://b/c --data img2dataset:s3://b/i --part 2 --of 5

So a data set is prepared on several machines: the parts may be made anywhere, at any time, and what is joined is the
same to the byte as if stage prepare had read all rows. A part that is stopped goes on after its last shard. Its
artifact is gone once it is joined.
"""

from __future__ import annotations

import sys

from cmapkd_core.data.rows import Partition
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import declared
from cmapkd_core.places import part_fields, part_url
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.prepare import of_data, whole_stands


def run(request: Request, *, part: str, of: str) -> str:
    """Write the part `part` of `of`; the artifact holds the files of `data.layout` and of `data.part_notes`.

    Where the whole data set stands there is nothing to do, and its URL is handed on.

    Args:
        part, of: whole numbers, from 1 on.

    Raises:
        InputError: no such part, or what the source says of its input.
    """
    partition = _partition(part, of)
    recipe = request.resolved()
    if whole := whole_stands(request, recipe):
        print(f"prepare-part-{part}: nothing to do, the whole data set is complete: {whole}", flush=True)
        return whole
    return execute(
        request,
        f"prepare-part-{part}",
        url=part_url(request.root, recipe, partition.number, partition.of),
        fields=part_fields(recipe, partition.number, partition.of),
        inputs={},
        body=Late("prepare_part", part=partition),
        declared=declared(recipe, "prepare-part"),
        paths=of_data(recipe),
    )


def _partition(part: str, of: str) -> Partition:
    if not (part.isdecimal() and of.isdecimal() and 1 <= int(part) <= int(of)):
        raise InputError(f"--part {part} --of {of}: two whole numbers, such as --part 2 --of 5")
    return Partition(int(part), int(of))


if __name__ == "__main__":
    sys.exit(main(run))
