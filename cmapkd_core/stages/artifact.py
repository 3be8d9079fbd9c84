"""Artifacts: the immutable output of a stage, complete once its manifest exists."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmapkd_core import storage
from cmapkd_core.data.copies import fetch_once, machine_folder
from cmapkd_core.data.shard_cache import RemoteFile
from cmapkd_core.errors import DamagedInput, InputError, again
from cmapkd_core.stages.manifest import DamagedError, opened, sealed

MANIFEST, RETIRED, DAMAGED = "manifest.json", "retired/", "damaged/"
WORK = "work"  # folder of a stage's checkpoints, beside its manifest
PLACE = "place"  # of an output: where below the artifact it lies, if not in the folder of the attempt that finished it


@dataclass(frozen=True)
class Artifact:
    """A complete artifact. url: absolute. digest: sha256 of its manifest, which names the sha256 of every file."""

    url: str
    manifest: dict[str, Any]
    digest: str
    cache: Path

    @classmethod
    def open(cls, url: str) -> Artifact:
        """The artifact at `url`.

        Raises:
            InputError: there is no manifest, so the stage that writes it has not finished.
            DamagedError: there is one, which cannot be used.
        """
        artifact = look(url)
        if artifact is None:
            raise InputError(f"{url} has no {MANIFEST}: the stage that writes it has not finished; run it first")
        return artifact

    def source(self, name: str) -> Artifact:
        """The artifact that it was made from as input `name`, as `earlier` looks for it.

        Raises:
            InputError: it is gone.
        """
        return self.earlier(name) or Artifact.open(self.manifest["inputs"][name]["url"])

    def earlier(self, name: str) -> Artifact | None:
        """The same, or None where it is gone, as to make room; a storage that fails is an error, and no answer.

        It is where the manifest says, or at the same place below this artifact's own root, where the root was moved or
        the manifest has a path relative to another working directory.

        Raises:
            DamagedError: it is there, and cannot be used.
        """
        made_from = self.manifest["inputs"][name]
        root, place = self.url.rsplit("/", 2)[0], made_from["url"].rstrip("/").split("/")[-2:]
        for url in (made_from["url"], storage.join(root, *place)):
            artifact = find(url)
            if artifact is not None and artifact.digest == made_from["digest"]:
                return artifact
        return look(made_from["url"])

    def files(self) -> list[str]:
        """Names of its files."""
        return list(self.manifest["outputs"])

    def file_url(self, name: str) -> str:
        """Where a file lies. Every attempt writes its own folder, and the manifest says which one counts.

        What attempts share (parts of a teacher's store) has a place of its own.
        """
        place = self.manifest["outputs"].get(name, {}).get(PLACE, "")
        return storage.join(self.url, place) if place else storage.join(self.url, self.manifest["folder"], name)

    def fetch(self, name: str) -> Path:
        """A local path of one file, verified: of a local root each time, of a remote one when it was downloaded.

        A remote file is downloaded once a machine, whatever the number of its ranks.

        Raises:
            InputError: no such file, or its content is not what the manifest says.
        """
        if name not in self.manifest["outputs"]:
            raise InputError(self._lacks(f"file {name}"))
        digest, (folder, _, file) = self.manifest["outputs"][name]["sha256"], self.file_url(name).rpartition("/")
        try:
            path = fetch_once(folder, file, digest, (self.cache / name).parent, self._again())
        except FileNotFoundError:
            raise DamagedInput(f"{self.file_url(name)} is gone: {self._again()}") from None
        if "://" not in self.url and storage.sha256_file(path) != digest:
            raise DamagedInput(f"{self.file_url(name)} was changed after it was written: {self._again()}")
        return path

    def remote(self, name: str) -> RemoteFile:
        """One file of an artifact on S3, whose copy may come and go."""
        entry, (folder, _, file) = self.manifest["outputs"][name], self.file_url(name).rpartition("/")
        cache = (self.cache / name).parent
        return RemoteFile(folder, file, entry["sha256"], entry["bytes"], cache, self._again())

    def _again(self) -> str:
        return again(self.manifest["stage"], self.manifest.get("run", ""))

    def fetch_folder(self, prefix: str) -> Path:
        """A local folder with the files under `prefix/`."""
        names = [name for name in self.files() if name.startswith(prefix + "/")]
        if not names:
            raise InputError(self._lacks(f"folder {prefix}/"))
        paths = [self.fetch(name) for name in names]
        depth = len(Path(names[0]).relative_to(prefix).parts)
        return paths[0].parents[depth - 1]

    def _lacks(self, what: str) -> str:
        return (
            f"{self.url} is of stage {self.manifest['stage']} and has no {what}, but {', '.join(self.files())}: give "
            "the artifact of a stage that writes it"
        )


def folders_of(manifest: dict[str, Any]) -> set[str]:
    """The folders below an artifact that hold its files, as its manifest says."""
    shared = (entry[PLACE].partition("/")[0] for entry in manifest["outputs"].values() if PLACE in entry)
    return {manifest["folder"], *shared}


def cache_of(url: str) -> Path:
    """A local folder for copies of what lies at `url`, shared by the ranks of a machine."""
    return machine_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]


def find(url: str) -> Artifact | None:
    """The artifact at `url`, or None while it has no manifest that can be used: then its stage has to run."""
    try:
        return look(url)
    except DamagedError:
        return None


def look(url: str) -> Artifact | None:
    """The artifact at `url`, or None while it has no manifest.

    Raises:
        DamagedError: there is one, which cannot be used.
    """
    url = storage.absolute(url)
    try:
        raw = storage.read_bytes(place := storage.join(url, MANIFEST))
    except (FileNotFoundError, storage.StorageError) as error:
        if why := storage.misfit(place):
            raise DamagedError(url, why, None) from None
        if isinstance(error, FileNotFoundError):
            return None
        raise
    digest = hashlib.sha256(raw).hexdigest()
    return Artifact(url, opened(url, raw), digest, cache_of(f"{url}#{digest}"))


def is_made(url: str, old: str = "") -> bool:
    """Whether an artifact is complete, and another one than that whose digest begins with `old`."""
    artifact = find(url)
    return artifact is not None and not (old and artifact.digest.startswith(old))


def retire(artifact: Artifact) -> None:
    """Set a complete artifact aside, so that its stage can run again in the same place."""
    _set_aside(artifact.url, f"{RETIRED}{artifact.digest[:8]}.json", sealed(artifact.manifest))
    storage.delete_tree(storage.join(artifact.url, WORK))


def set_aside(damaged: DamagedError) -> str:
    """Make room for a manifest anew where a damaged one lies; returns where that is kept.

    Checkpoints of an attempt that came after it stay: they hold what is still good.
    """
    if damaged.raw is None:
        kept = storage.join(damaged.url, f"{DAMAGED}{uuid.uuid4().hex[:8]}")
        storage.rename_misfit(storage.join(damaged.url, MANIFEST), kept)
        return kept
    return _set_aside(damaged.url, f"{DAMAGED}{hashlib.sha256(damaged.raw).hexdigest()[:8]}.json", damaged.raw)


def _set_aside(url: str, name: str, manifest: bytes) -> str:
    kept = storage.join(url, name)
    storage.write_bytes(kept, manifest)
    storage.delete(storage.join(url, MANIFEST))
    return kept
