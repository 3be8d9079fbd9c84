"""What test concepts add to the numbers of rows, as the arrays of docs/results/NAME.npz: about 14 kB a row and seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cmapkd_core.report.read.concept_sums import CLASSES, CONCEPTS, ConceptSums, RowSeed
from cmapkd_core.report.read.results import KS


def packed(concepts: Mapping[str, ConceptSums]) -> dict[str, np.ndarray]:
    """TASK/counts, and TASK/ROW/SEED@FIT/ hits, as whole numbers, and logs in 32 bits, where there are any."""
    arrays = {}
    for task, one in concepts.items():
        arrays[f"{task}/counts"] = one.counts.astype(np.uint16)
        for (row, key), sums in one.sums.items():
            arrays[f"{task}/{row}/{key}/hits"] = np.rint(sums[..., : len(KS)]).astype(np.uint16)
            if sums.shape[-1] > len(KS):
                arrays[f"{task}/{row}/{key}/logs"] = sums[..., -1].astype(np.float32)
    return arrays


def unpacked(arrays: Mapping[str, np.ndarray]) -> dict[str, ConceptSums]:
    """The inverse of `packed`."""
    sums: dict[str, dict[RowSeed, np.ndarray]] = {}
    for name in (name for name in arrays if name.endswith("/hits")):
        task, row, key, _ = name.split("/")
        parts, logs = [arrays[name].astype(float)], name.replace("/hits", "/logs")
        if logs in arrays:
            parts.append(arrays[logs][..., None].astype(float))
        sums.setdefault(task, {})[row, key] = np.concatenate(parts, axis=-1)
    of = {task: CLASSES if task == "zeroshot" else CONCEPTS for task in sums}
    return {task: ConceptSums(arrays[f"{task}/counts"].astype(float), one, of=of[task]) for task, one in sums.items()}
