"""What each of two processes does in test_statistics.py: `sharing_ranks.py TABLE CACHE REPORTS`."""

import json
import sys
from pathlib import Path

from cmapkd_core import parallel, storage
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.statistics import shared_columns


def main(table: str, cache: str, reports: str) -> None:
    parallel.start()
    path = Path(table)
    output = {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}
    manifest = {"folder": ".", "outputs": {path.name: output}, "stage": "warmup"}
    columns = shared_columns(Artifact(str(path.parent), manifest, "digest", Path(cache)))
    sums = {name: values.double().sum().item() for name, values in columns.items()}
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split()[4] for line in lines if "/columns-" in line}  # inodes
    Path(reports, f"rank{parallel.rank()}.json").write_text(json.dumps({"sums": sums, "mapped": sorted(mapped)}))
    parallel.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
