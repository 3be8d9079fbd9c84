"""ViT-B/16 with random weights through all three formats; a minute or two, half a gigabyte each."""

import time

import pytest
import torch

from cmapkd_core.config import ModelConfig
from cmapkd_core.export import FORMATS, parity
from cmapkd_core.export.quiet import quiet
from cmapkd_core.models.build import build


@pytest.mark.slow
def test_vit_b_16(given, tmp_path):
    torch.set_num_threads(2)
    student = build(ModelConfig("ViT-B-16", "random"), 0, tmp_path)
    probe = given(student)
    for name, form in FORMATS.items():
        begun = time.monotonic()
        with quiet():
            form.write(student, tmp_path / name)
            towers = form.load(tmp_path / name)
        written = time.monotonic() - begun
        found = parity.measure(towers, probe)
        parity.check(name, found)
        bounds = "; ".join(f"{tower} {parity.Bound(**found[tower])}" for tower in parity.TOWERS)
        print(f"{name}: {bounds}; written and opened in {written:.0f} s, {time.monotonic() - begun:.0f} s in all")
