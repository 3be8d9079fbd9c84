"""Which sources of pictures read a folder that somebody has to name, and the refusal where nobody did. No torch."""

from __future__ import annotations

from cmapkd_core.catalog import SOURCES
from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError


def reads_folder(source: str) -> bool:
    """Whether a source reads a folder that somebody has to name; of others their code carries the data."""
    return source in SOURCES and bool(SOURCES[source].folder)


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


def check_data(recipe: Recipe) -> None:
    """Refuse a recipe whose sources have no folder to read, before its first stage does.

    Raises:
        InputError: names the source, and what gives it a folder.
    """
    if reads_folder(recipe.data.source):
        named_folder(recipe.data.source, recipe.data.url)
    for task, data in recipe.evaluate.own():
        source, _, url = data.partition(":")
        if reads_folder(source) and not url:
            raise InputError(
                f"evaluate.sets={task}={source} needs a URL: a folder or s3:// prefix with {SOURCES[source].folder}, "
                f"such as --set evaluate.sets={task}={source}:s3://bucket/{source}"
            )
