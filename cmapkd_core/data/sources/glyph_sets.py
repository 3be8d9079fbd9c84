"""The 30 sets of source `glyphs`, and the two npm packages that hold them.

    npm pack @iconify/json@2.2.535 emojibase-data@17.0.0

writes the two archives that are read, 104 MB and 7 MB, into the working directory. Without `data.url` that command is
run once, and the archives stay in the user's cache folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cmapkd_core import storage
from cmapkd_core.data.files import opened
from cmapkd_core.data.sources.glyph_names import EmojiNames
from cmapkd_core.errors import InputError
from cmapkd_core.folders import require_there
from cmapkd_core.storage.user_cache import user_cache

PACKAGES = {"iconify-json": "@iconify/json@2.2.535", "emojibase-data": "emojibase-data@17.0.0"}
COMMAND = f"npm pack {' '.join(PACKAGES.values())}"
MANIFEST = "package/package.json"  # of an npm package, with its version
MINUTES = 15  # for those 111 MB


@dataclass(frozen=True)
class GlyphSet:
    """A style. emoji: its drawings are emoji, known by code points or by name; flags: those of it are of use."""

    emoji: bool = False
    flags: bool = True


EMOJI, ONE_COLOUR, ICONS = GlyphSet(emoji=True), GlyphSet(emoji=True, flags=False), GlyphSet()

SETS: dict[str, GlyphSet] = {
    "openmoji": EMOJI,
    "twemoji": EMOJI,
    "noto": EMOJI,
    "noto-v1": EMOJI,
    "fluent-emoji": EMOJI,
    "fluent-emoji-flat": EMOJI,
    "emojione": EMOJI,
    "emojione-v1": EMOJI,
    "fxemoji": EMOJI,
    "streamline-emojis": EMOJI,
    "fluent-emoji-high-contrast": ONE_COLOUR,
    "emojione-monotone": ONE_COLOUR,
    "icon-park": ICONS,
    "streamline-color": ICONS,
    "streamline-cyber-color": ICONS,
    "streamline-flex-color": ICONS,
    "streamline-freehand-color": ICONS,
    "streamline-kameleon-color": ICONS,
    "streamline-plump-color": ICONS,
    "streamline-sharp-color": ICONS,
    "streamline-stickies-color": ICONS,
    "streamline-ultimate-color": ICONS,
    "flat-color-icons": ICONS,
    "marketeq": ICONS,
    "meteocons": ICONS,
    "fluent-color": ICONS,
    "glyphs-poly": ICONS,
    "game-icons": ICONS,
    "pinhead": ICONS,
    "healthicons": ICONS,
}


@dataclass(frozen=True)
class Drawings:
    """A set as its JSON has it (https://iconify.design/docs/types/iconify-json.html)."""

    content: Mapping[str, Any]

    def names(self) -> list[str]:
        """Of drawings that are shown; those that its makers hide are of earlier versions."""
        return [name for name, icon in self.content["icons"].items() if not icon.get("hidden")]

    @cached_property
    def points(self) -> dict[str, list[str]]:
        """Code points by name, where the set says them."""
        by_name: dict[str, list[str]] = {}
        for points, name in self.content.get("chars", {}).items():
            by_name.setdefault(name, []).append(points)
        return by_name

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Further names of its drawings; those that turn or mirror one are left out."""
        listed = self.content.get("aliases", {})
        return {name: alias["parent"] for name, alias in listed.items() if alias.keys() == {"parent"}}

    @property
    def licence(self) -> str:
        """Who drew it, and on which terms."""
        info = self.content["info"]
        return f"{info['name']}, {info['author']['name']}, {info['license'].get('spdx') or info['license']['title']}"

    def svg(self, name: str) -> str:
        """A drawing in the middle of a square, black where it has no colour of its own."""
        icon = self.content["icons"][name]

        def of(field: str, default: float) -> float:
            return float(icon.get(field, self.content.get(field, default)))

        left, top, width, height = of("left", 0), of("top", 0), of("width", 16), of("height", 16)
        side = max(width, height)
        box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
        return f'{head} color="black">{icon["body"]}</svg>'


@dataclass(frozen=True)
class Packages:
    """What is read of the two archives: the sets by name, and what their emoji are."""

    sets: dict[str, Drawings]
    emoji: EmojiNames


def read_packages(url: str) -> Packages:
    """The archives below `url`, or of the cache folder where it is empty; they are made there if need be.

    Raises:
        InputError: an archive is not there, is of another version, or has not all of its sets and names.
    """
    where = url or _cached()
    require_there(where)
    files = storage.list_files(where)
    sets = {
        name.removeprefix("package/json/").removesuffix(".json"): Drawings(content)
        for name, content in _read(where, files, "iconify-json", _is_set).items()
    }
    names = _read(where, files, "emojibase-data", _names_emoji)
    if not sets or "package/en/data.json" not in names or "package/meta/groups.json" not in names:
        raise InputError(f"data.source=glyphs: the archives in {where} hold no drawings or no names: {_way_out(where)}")
    if lacking := [name for name in SETS if name not in sets]:
        raise InputError(
            f"data.source=glyphs: the iconify-json-*.tgz in {where} lacks {', '.join(lacking)}: {_way_out(where)}"
        )
    entries, kinds = names.pop("package/en/data.json"), names.pop("package/meta/groups.json")["subgroups"]
    emoji = EmojiNames(entries, kinds, [names[name] for name in sorted(names)])
    for name in sorted(sets):
        emoji.learn(sets[name].points, sets[name].aliases)
    return Packages({name: sets[name] for name in SETS}, emoji)


def _read(where: str, files: list[str], package: str, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Contents of the wanted JSON files of an archive by name; none of one that has none, whatever its version."""
    contents = dict(_members(where, files, package, lambda name: name == MANIFEST or wanted(name)))
    version, pinned = contents.pop(MANIFEST, {}).get("version"), PACKAGES[package].rpartition("@")[2]
    if contents and version != pinned:
        raise InputError(
            f"data.source=glyphs: the {package}-*.tgz in {where} is of version {version or 'unknown'}, and this test "
            f"bed is of {pinned}, so that it is the same for everybody: {_way_out(where)}"
        )
    return contents


def _is_set(member: str) -> bool:
    folder, _, name = member.rpartition("/")
    return folder == "package/json" and name.removesuffix(".json") in SETS


def _names_emoji(member: str) -> bool:
    shortcodes = member.startswith("package/en/shortcodes/") and member.endswith(".json")
    return shortcodes or member in (
        "package/en/data.json",
        "package/meta/groups.json",
        "package/meta/unicode-names.json",
    )


def _members(where: str, files: list[str], package: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Names and contents of the wanted JSON files of an archive, which is read once and in order."""
    archives = sorted(name for name in files if name.startswith(f"{package}-") and name.endswith(".tgz"))
    if len(archives) != 1:
        count = f"{len(archives)} files" if archives else "no file"
        raise InputError(f"data.source=glyphs: {where} has {count} {package}-*.tgz: {_way_out(where)}")
    with opened(storage.join(where, archives[0])) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|gz") as archive:
                for member in archive:
                    if member.isfile() and wanted(member.name) and (content := archive.extractfile(member)):
                        yield member.name, json.load(content)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise InputError(
                f"{storage.join(where, archives[0])} is no whole archive: {error}: {_way_out(where)}"
            ) from None


def _way_out(where: str) -> str:
    return f"run `{COMMAND}` in a folder, and give the folder as --data glyphs:FOLDER" + (
        "" if "://" in where else " or make it the one that is there"
    )


def _cached() -> str:
    """The folder in which the archives are kept for all runs; they are fetched by npm where it lacks one."""
    folder = user_cache("glyphs")
    if all(any(folder.glob(f"{name}-*.tgz")) for name in PACKAGES):
        return str(folder)
    if not (npm := shutil.which("npm")):
        raise InputError(
            f"data.source=glyphs reads two npm packages, and npm is not here to fetch them: run `{COMMAND}` where it "
            "is, and give the folder as --data glyphs:FOLDER, or put the two archives into an S3 prefix and give that"
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", *PACKAGES.values(), "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"`{COMMAND}` took more than {MINUTES} minutes: run it yourself, then --data glyphs:FOLDER"
        ) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise InputError(
            f"`{COMMAND}` ended with exit code {done.returncode}: {last[0]}; --data glyphs:FOLDER reads your own folder"
        )
    return str(folder)
