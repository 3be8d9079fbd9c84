"""Checkpoints of a stage under its workdir: new folder, marker last, the last two kept.

A checkpoint is a folder of safetensors files and one `state.json`; its `manifest.json`, written
last and only once, holds the sha256 of each and of itself. Without a manifest it does not exist; with
a wrong digest it is refused, loudly, and the one before is used. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmapkd_core import storage
from cmapkd_core.engine.finite import not_finite, shortened

KEPT = 2
_NAME = re.compile(r"\d{2,}-\d{9,}-[^-]+-[0-9a-f]{8}")  # phase, step, identity and a number of its own
log = logging.getLogger(__name__)


class NotFinite(Exception):
    """A snapshot has a NaN or an Inf, so it is not written; what is stored stays as it is."""


@dataclass
class Saved:
    """One verified checkpoint. tensors: by file and name. state: plain values."""

    name: str
    phase: int
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, apart from what training goes on to change.

    tensors: on the CPU, by file and name. state: JSON.
    """

    phase: int
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: str

    @classmethod
    def take(
        cls,
        phase: int,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        spent: Snapshot | None = None,
    ) -> Snapshot:
        """Copies of all of it; tensors of any shape [..], by file and name, may be on any device.

        Args:
            spent: one that nobody reads any more. Its memory is written over where it fits: memory that a process has
                had takes a copy in a fifth of the time that the system needs to give it new pages.
        """
        old = {} if spent is None else spent.tensors
        copies = {
            file: {name: _copied(x, old.get(file, {}).get(name)) for name, x in values.items()}
            for file, values in tensors.items()
        }
        return cls(phase, step, copies, json.dumps(state))


def _copied(x: Tensor, place: Tensor | None) -> Tensor:
    """The same shape and type in memory of the CPU, [..] -> [..]; in that of `place` where it has both."""
    if place is None or place.shape != x.shape or place.dtype != x.dtype:
        place = torch.empty(x.shape, dtype=x.dtype)
    return place.copy_(x.detach())


class Checkpoints:
    """Those of one stage execution.

    Args:
        url: the workdir.
        scratch: a local folder for files on their way.
        identity: what the run is made from (fingerprint and inputs), without dashes; others' checkpoints
            are left alone.
    """

    def __init__(self, url: str, scratch: Path, identity: str) -> None:
        self.url, self.scratch, self.identity = storage.join(url, "checkpoints"), scratch, identity
        self.damaged: set[str] = set()  # found by `latest`
        self.good: tuple[int, int] | None = None  # phase and step of the newest that was written or verified here

    def write(self, snapshot: Snapshot) -> None:
        """Write everything, then the manifest, then drop all but the newest two of ours and what is damaged.

        Raises:
            NotFinite: a retry that went on from it would be lost for ever.
        """
        phase, step = snapshot.phase, snapshot.step
        if bad := _not_finite(snapshot.tensors):
            raise NotFinite(f"{shortened(bad)} after step {step}")
        name = f"{phase:02d}-{step:09d}-{self.identity}-{uuid.uuid4().hex[:8]}"
        folder = self.scratch / name
        folder.mkdir(parents=True)
        for file, values in snapshot.tensors.items():
            save_file(values, folder / file)
        (folder / "state.json").write_text(snapshot.state)
        digests = {}
        for path in sorted(folder.iterdir()):
            storage.put(path, storage.join(self.url, name, path.name))
            digests[path.name] = storage.sha256_file(path)
            path.unlink()
        folder.rmdir()
        manifest = {"phase": phase, "step": step, "identity": self.identity, "files": digests}
        storage.write_json(storage.join(self.url, name, "manifest.json"), manifest | {"sha256": _digest(manifest)})
        own = [checkpoint for checkpoint in self.names() if checkpoint.split("-")[2] == self.identity]
        for old in (*self.damaged, *[checkpoint for checkpoint in own if checkpoint not in self.damaged][KEPT:]):
            # The marker goes first: a half-deleted checkpoint must not look complete.
            storage.delete(storage.join(self.url, old, "manifest.json"))
            storage.delete_tree(storage.join(self.url, old))
        self.damaged.clear()
        self.good = phase, step

    def names(self) -> list[str]:
        """Complete checkpoints, newest first."""
        return self._listed()[0]

    def _listed(self) -> tuple[list[str], list[str]]:
        """Complete checkpoints, newest first, and what lies there beside checkpoints, complete or not."""
        files = [name.split("/") for name in storage.list_files(self.url)]
        complete = {parts[0] for parts in files if parts[1:] == ["manifest.json"] and _NAME.fullmatch(parts[0])}
        strays = {parts[0] for parts in files if not _NAME.fullmatch(parts[0])}
        return sorted(complete, reverse=True), sorted(strays)

    def latest(self) -> Saved | None:
        """The newest checkpoint of this identity that verifies and is finite; None where there is none."""
        names, strays = self._listed()
        if strays:
            log.warning("%s holds %s, which is no checkpoint: left alone and not read", self.url, ", ".join(strays))
        for name in names:
            if name.split("-")[2] != self.identity:
                log.warning("checkpoint %s was made from other inputs: not used", name)
                continue
            saved = self._load(name)
            bad = _not_finite(saved.tensors) if saved else []
            if saved and not bad:
                self.good = saved.phase, saved.step
                return saved
            self.damaged.add(name)
            why = f"has values that are not finite ({shortened(bad)})" if bad else "does not match its digests"
            log.warning("checkpoint %s %s: trying the one before", name, why)
        return None

    def load(self, name: str) -> Saved:
        """The checkpoint that another rank has chosen.

        Raises:
            OSError: here it is not what was written.
        """
        saved = self._load(name)
        if saved is None:
            raise OSError(f"checkpoint {name}, from which rank 0 goes on, does not match its digests here: start again")
        return saved

    def _load(self, name: str) -> Saved | None:
        """The checkpoint, or None where a file is missing or is not what was written."""
        tensors, state = {}, {}
        try:
            manifest = self._manifest(name)
            for file, digest in manifest.get("files", {}).items():
                path = storage.fetch(storage.join(self.url, name, file), self.scratch / "loaded" / name / file)
                if storage.sha256_file(path) != digest:
                    return None
                if file == "state.json":
                    state = json.loads(path.read_text())
                else:
                    tensors[file] = load_file(path)
        except FileNotFoundError:
            return None
        return Saved(name, manifest["phase"], manifest["step"], tensors, state) if manifest else None

    def _manifest(self, name: str) -> dict[str, Any]:
        """The manifest's fields; {} where it is torn or changed."""
        raw = storage.read_bytes(storage.join(self.url, name, "manifest.json"))
        try:
            fields = json.loads(raw)
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) and fields.pop("sha256", "") == _digest(fields) else {}


def _not_finite(tensors: dict[str, dict[str, Tensor]]) -> list[str]:
    """Names of those with a NaN or an Inf; tensors of any shape [..], by file and name."""
    return [f"{name} of {file}" for file, values in tensors.items() for name in not_finite(values)]


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
