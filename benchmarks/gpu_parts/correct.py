"""Is it right? Losses of every method against golden curves, phases, resuming, evaluation, export; stages as users run.

Recipe tiny through the package's own stages, on the device. Golden curves were made on a CPU in fp32. Their rows here
draw nothing while they train (ALSN's dropout does, and a GPU draws other numbers), so a curve has to come out again but
for rounding: BOUNDS says by how much a term of one of ten steps may differ.
"""

from __future__ import annotations

import importlib.util
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.gpu_parts.machine import PRECISIONS, Machine
from benchmarks.gpu_parts.table import Line
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import Interrupted
from cmapkd_core.models.build import load_model
from cmapkd_core.recipes import BASELINES
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, export, prepare, teacher, train
from cmapkd_core.stages.artifact import Artifact

SECTION = "correct"
ROW = "no_alsn"
BOUNDS = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}  # of a term, relative, or absolute below 1
EMBEDDINGS = {True: 1e-5, False: 1e-3}  # of unit vectors of the same model on both devices, on a CPU and on a GPU
Curve = list[dict[str, float]]


def golden() -> ModuleType:
    """tests/golden/regenerate.py, which says how a curve is made and has the kept ones."""
    path = Path(__file__).parents[2] / "tests/golden/regenerate.py"
    spec = importlib.util.spec_from_file_location("regenerate", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def largest_difference(actual: Curve, expected: Curve) -> float:
    """The largest difference of a term of a step, relative where it is above 1."""
    assert len(actual) == len(expected)
    assert all(a.keys() == b.keys() for a, b in zip(actual, expected, strict=True))
    return max(abs(a[k] - b[k]) / max(1.0, abs(b[k])) for a, b in zip(actual, expected, strict=True) for k in a)


class Correct:
    """Stages of recipe tiny below one root. few: one row and no export, for a test."""

    def __init__(self, machine: Machine, root: Path, few: bool) -> None:
        self.machine, self.root, self.few, self.golden = machine, root, few, golden()
        self.teachers: dict[str, str] = {}

    @cached_property
    def shards(self) -> str:
        """The tiny data set."""
        return prepare.run(Request("tiny", str(self.root)))

    def fitted(self, precision: str) -> str:
        """The teacher, fitted in a precision."""
        if precision not in self.teachers:
            request = Request("tiny", str(self.root), overrides=PRECISIONS[precision])
            self.teachers[precision] = teacher.run(request, shards=self.shards)
        return self.teachers[precision]

    def joint(self, row: str, precision: str, folder: str = "") -> str:
        """The joint stage of a row, from the untrained student."""
        overrides = f"{self.golden.OVERRIDES} {PRECISIONS[precision]}"
        request = Request("tiny", str(self.root / folder), ablation=row, overrides=overrides)
        return train.run(request, stage="joint", shards=self.shards, teacher=self.fitted(precision))

    def curves(self) -> Iterator[Line]:
        """Golden curves: the full method in each precision, all methods and two phases in fp32."""
        for precision in self.machine.precisions():
            yield self._line(f"{ROW}, {precision}", self.curve(ROW, precision), ROW, precision)
        for row in () if self.few else BASELINES:
            yield self._line(f"{row}, fp32", self.curve(row, "fp32"), row, "fp32")
        yield self._line("warm-up, two phases, fp32", self.curve("warmup", "fp32"), "warmup", "fp32")

    def curve(self, row: str, precision: str) -> Curve:
        """Of a row, or of what the rows share."""
        fitted = self.fitted(precision)
        curve: Curve = self.golden.curve_of(row, str(self.root), self.shards, fitted, PRECISIONS[precision])
        return curve

    def _line(self, what: str, curve: Curve, name: str, precision: str) -> Line:
        difference, bound = largest_difference(curve, self.golden.read_file(name)), BOUNDS[precision]
        return Line(
            SECTION,
            f"golden curve of {what}",
            f"{difference:.1e} apart",
            "CPU, fp32",
            f"{bound:.0e}",
            difference <= bound,
        )

    def resume(self) -> Iterator[Line]:
        """A stage that is stopped by SIGTERM in the middle, and goes on from its checkpoint."""
        precision = self.machine.usual()
        whole = self.golden.read_curve(self.joint(ROW, precision))
        self.fitted(precision)
        with stopped_after(6):
            try:
                self.joint(ROW, precision, "stopped")
                stopped = False
            except Interrupted:
                stopped = True
        again = self.golden.read_curve(self.joint(ROW, precision, "stopped"))
        difference = largest_difference(again, whole)
        same = "same bits" if difference == 0 else f"{difference:.1e} apart"
        yield Line(
            SECTION, f"stopped and resumed, {precision}", same, "not stopped", "1e-03", stopped and difference <= 1e-3
        )

    def evaluated(self) -> Iterator[Line]:
        """Stage evaluate on the device, and embeddings there beside those of the CPU."""
        url = self.joint(ROW, "fp32")
        overrides = f"{self.golden.OVERRIDES} {PRECISIONS['fp32']}"
        request = Request("tiny", str(self.root), ablation=ROW, overrides=overrides)
        done = Artifact.open(evaluate.run(request, model=url, shards=self.shards, task="retrieval"))
        recall = json.loads(done.fetch("metrics.json").read_text())["retrieval/i2t/R@5"]
        yield Line(SECTION, "stage evaluate", f"R@5 {recall:.0f} of 3 pictures", holds=True)
        difference, bound = self.embeddings(url), EMBEDDINGS[not self.machine.cuda]
        yield Line(
            SECTION, "embeddings, fp32", f"{difference:.1e} apart", "CPU, fp32", f"{bound:.0e}", difference <= bound
        )

    @torch.no_grad()
    def embeddings(self, url: str) -> float:
        """The largest difference of an element of unit embeddings on the device and on the CPU."""
        model = load_model(Artifact.open(url).fetch_folder("model"))
        size = model.spec.image_size
        images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
        tokens = model.tokenize(["a red circle", "two blue squares", "nothing at all", "x"])
        expected = model.encode_image(images), model.encode_text(tokens)
        model.to(self.machine.device)
        actual = model.encode_image(images.to(self.machine.device)), model.encode_text(tokens.to(self.machine.device))
        return max(float((a.cpu() - b).abs().max()) for a, b in zip(actual, expected, strict=True))

    def exported(self) -> Iterator[Line]:
        """Stage export of what was trained on the device: each format's library gives the same embeddings."""
        if self.few:
            return
        request = Request("tiny", str(self.root), ablation=ROW, overrides=PRECISIONS["fp32"])
        done = Artifact.open(export.run(request, model=self.joint(ROW, "fp32"), shards=self.shards))
        formats = json.loads(done.fetch("parity.json").read_text())["formats"]
        for name, entry in formats.items():
            known = "reason" not in entry
            yield Line(
                SECTION,
                f"export to {name}",
                "same embeddings" if known else f"left out: {entry['reason'][:60]}",
                holds=True,
            )


@contextmanager
def stopped_after(updates: int) -> Iterator[None]:
    """This process gets SIGTERM in its training loop, when so many updates are done."""
    original, count = StopRequest.flags, 0

    def flags(self: StopRequest, due: bool) -> tuple[bool, bool]:
        nonlocal count
        count += 1
        if count == updates:
            signal.raise_signal(signal.SIGTERM)
        return original(self, due)

    StopRequest.flags = flags  # type: ignore[method-assign]
    try:
        yield
    finally:
        StopRequest.flags = original  # type: ignore[method-assign]
