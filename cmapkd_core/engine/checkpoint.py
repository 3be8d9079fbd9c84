"""Checkpoints of a stage under its workdir: new folder, marker last, the last two kept.

A checkpoint is a folder of safetensors files and one `state.json`; its `manifest.json`, written
last and only once, holds the sha256 of each. Without a manifest it does not exist; with a wrong
digest it is refused, loudly, and the one before is used. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from cmapkd_core import storage

KEPT = 2
log = logging.getLogger(__name__)


@dataclass
class Saved:
    """One verified checkpoint. tensors: by file and name. state: plain values."""

    phase: int
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """Those of one stage execution.

    Args:
        url: the workdir.
        scratch: a local folder for files on their way.
        identity: what the run is made from (fingerprint and inputs); others' checkpoints are left alone.
    """

    def __init__(self, url: str, scratch: Path, identity: str) -> None:
        self.url, self.scratch, self.identity = storage.join(url, "checkpoints"), scratch, identity

    def save(self, phase: int, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write everything, then the manifest, then drop all but the newest two."""
        name = f"{phase:02d}-{step:09d}-{uuid.uuid4().hex[:8]}"
        folder = self.scratch / name
        folder.mkdir(parents=True)
        for file, values in tensors.items():
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in values.items()}, folder / file)
        (folder / "state.json").write_text(json.dumps(state))
        digests = {}
        for path in sorted(folder.iterdir()):
            storage.put(path, storage.join(self.url, name, path.name))
            digests[path.name] = storage.sha256_file(path)
            path.unlink()
        folder.rmdir()
        manifest = {"phase": phase, "step": step, "identity": self.identity, "files": digests}
        storage.write_json(storage.join(self.url, name, "manifest.json"), manifest)
        for old in self.names()[KEPT:]:
            # The marker goes first: a half-deleted checkpoint must not look complete.
            storage.delete(storage.join(self.url, old, "manifest.json"))
            storage.delete_tree(storage.join(self.url, old))

    def names(self) -> list[str]:
        """Complete checkpoints, newest first."""
        found = [f.split("/")[0] for f in storage.list_files(self.url) if f.endswith("/manifest.json")]
        return sorted(found, reverse=True)

    def latest(self) -> Saved | None:
        """The newest checkpoint of this identity that verifies; None where there is none."""
        for name in self.names():
            manifest = storage.read_json(storage.join(self.url, name, "manifest.json"))
            if manifest["identity"] != self.identity:
                log.warning("checkpoint %s was made from other inputs: not used", name)
                continue
            saved = self._load(name, manifest)
            if saved:
                return saved
            log.warning("checkpoint %s does not match its digests: trying the one before", name)
        return None

    def _load(self, name: str, manifest: dict[str, Any]) -> Saved | None:
        tensors, state = {}, {}
        for file, digest in manifest["files"].items():
            path = storage.fetch(storage.join(self.url, name, file), self.scratch / "loaded" / name / file)
            if storage.sha256_file(path) != digest:
                return None
            if file == "state.json":
                state = json.loads(path.read_text())
            else:
                tensors[file] = load_file(path)
        return Saved(manifest["phase"], manifest["step"], tensors, state)
