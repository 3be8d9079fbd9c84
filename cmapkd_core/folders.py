"""Which sources of pictures read a folder that somebody has to name, and the refusal where nobody did. No torch."""

from __future__ import annotations

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError

FOLDERS = {  # what the folder holds; sources without a row carry their data
    "cc3m": "img2dataset's shards, or Train_GCC-training.tsv and its pictures",
    "coco": "annotations/ and train2014/, val2014/ (or those of 2017)",
    "flickr30k": "dataset_flickr30k.json and flickr30k-images/",
    "folder": "pictures and captions.jsonl",
    "imagenet": "val/ and LOC_synset_mapping.txt",
    "img2dataset": "img2dataset's shards 00000.tar, 00001.tar, ..",
    "stamps": "the unpacked Debian package tuxpaint-stamps-default",
    "visual_genome": "image_data.json, region_descriptions.json, VG_100K/ and VG_100K_2/",
    "vqav2": "the questions' and annotations' JSON files, train2014/ and val2014/",
}


def named_folder(source: str, url: str) -> str:
    """`url`, of a source that reads a folder.

    Raises:
        InputError: it is empty.
    """
    if not url:
        raise InputError(
            f"data.source={source} needs data.url: a folder or s3:// prefix with {FOLDERS[source]}, such as "
            f"--data {source}:/data/{source}, or where pods run --data {source}:s3://bucket/{source}"
        )
    return url


def check_data(recipe: Recipe) -> None:
    """Refuse a recipe whose sources have no folder to read, before its first stage does.

    Raises:
        InputError: names the source, and what gives it a folder.
    """
    if recipe.data.source in FOLDERS:
        named_folder(recipe.data.source, recipe.data.url)
    for task, data in recipe.evaluate.own():
        source, _, url = data.partition(":")
        if source in FOLDERS and not url:
            raise InputError(
                f"evaluate.sets={task}={source} needs a URL: a folder or s3:// prefix with {FOLDERS[source]}, such as "
                f"--set evaluate.sets={task}={source}:s3://bucket/{source}"
            )
