"""Which sources of pictures read a folder that somebody has to name, how it is named, and what is refused. No torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from cmapkd_core.catalog import SOURCES
from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError

_SHOWN = 5  # names in a message


def reads_folder(source: str) -> bool:
    """Whether a source reads a folder that somebody has to name; of others their code carries the data."""
    return source in SOURCES and bool(SOURCES[source].folder)


def carries_all(source: str) -> bool:
    """Whether a source's code carries its pictures, so that it reads no folder and no archives at all."""
    return source in SOURCES and not (SOURCES[source].folder or SOURCES[source].archives)


def spelled(data: str) -> str:
    """`--data` as SOURCE or SOURCE:URL: a path or s3:// URL alone is of source folder, and ~ is the home folder.

    A path alone becomes absolute; `folder:pictures` stays as it is. A word is a folder where no source is called so and
    a folder is.
    """
    source, _, url = data.partition(":")
    if source in SOURCES:
        return f"{source}:{os.path.expanduser(url)}" if url.startswith("~") else data
    if data.startswith("s3://"):
        return f"folder:{data}"
    looks_like_a_path = data.startswith(("/", "./", "../", "~")) or data in (".", "..")
    if looks_like_a_path or (data and "://" not in data and os.path.isdir(data)):
        return f"folder:{os.path.abspath(os.path.expanduser(data))}"
    return data


def require_there(url: str) -> None:
    """Refuse a local folder that is not there.

    Raises:
        InputError: names the nearest folder that is.
    """
    if "://" in url or os.path.isdir(url):
        return
    if os.path.exists(url):
        raise InputError(f"{url} is a file: name the folder in which it lies")
    raise InputError(f"there is no folder {url}{_nearest(Path(os.path.abspath(url)))}")


def _nearest(gone: Path) -> str:
    """What to say of the part of a path that exists: the name that is like the missing one, or what there is."""
    missing, above = gone.name, gone.parent
    while not above.is_dir() and above != above.parent:
        missing, above = above.name, above.parent
    try:
        names = sorted(entry.name for entry in os.scandir(above) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return f": {above} cannot be read"
    matches = difflib.get_close_matches(missing, names, n=1, cutoff=0.5)
    if matches:
        return f": did you mean {above / matches[0]}?"
    listed = ", ".join(names[:_SHOWN]) + (", .." if len(names) > _SHOWN else "")
    return f": {above} has {f'the folders {listed}' if names else 'no folder in it'}"


def named_folder(source: str, url: str) -> str:
    """`url`, of a source that reads a folder.

    Raises:
        InputError: it is empty.
    """
    if not url:
        raise InputError(
            f"data.source={source} needs data.url: a folder or s3:// prefix with {SOURCES[source].folder}, such as "
            f"--data {source}:/data/{source}, or where pods run --data {source}:s3://bucket/{source}"
        )
    return url


def check_data(recipe: Recipe, here: bool = False) -> None:
    """Refuse a recipe whose sources have no folder to read, before its first stage does.

    Args:
        here: the stages run on this machine, so that a local folder has to be there.

    Raises:
        InputError: names the source, and what gives it a folder; or the folder of one that reads none.
    """
    source, url = recipe.data.source, recipe.data.url
    if reads_folder(source):
        named_folder(source, url)
    elif url and carries_all(source):
        raise InputError(f"data.source={source} carries its pictures and reads no folder: leave out data.url={url}")
    if url and here:
        require_there(url)
    for task, data in recipe.evaluate.own():
        source, _, url = data.partition(":")
        if url and carries_all(source):
            raise InputError(
                f"evaluate.sets={task}={data}: its source carries its pictures and reads no folder: leave out its "
                f"place, evaluate.sets={task}={source}"
            )
        if reads_folder(source) and not url:
            raise InputError(
                f"evaluate.sets={task}={source} needs a URL: a folder or s3:// prefix with {SOURCES[source].folder}, "
                f"such as --set evaluate.sets={task}={source}:s3://bucket/{source}"
            )
