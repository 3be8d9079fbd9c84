"""Flickr30K's split file, small."""

from collections.abc import Callable
from typing import Any

import pytest

from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.errors import InputError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]


def split_file() -> dict[str, Any]:
    images = []
    for imgid, (number, split) in enumerate([(1000092795, "train"), (10002456, "test"), (1000268201, "val")]):
        sentences = [
            {"tokens": ["text"], "raw": f"Text {at} of {number} .", "imgid": imgid, "sentid": 5 * imgid + at}
            for at in range(5)
        ]
        sentids = [sentence["sentid"] for sentence in sentences]
        images.append(
            {"sentids": sentids, "imgid": imgid, "sentences": sentences, "split": split, "filename": f"{number}.jpg"}
        )
    return {"images": images, "dataset": "flickr30k"}


@pytest.mark.parametrize("folder", ["flickr30k-images", "flickr30k_images"])
def test_rows_of_the_split(publish: Publish, read_source: Read, picture: Callable[..., bytes], folder: str) -> None:
    image = picture(kind="JPEG")
    files = {f"{folder}/{number}.jpg": image for number in (1000092795, 10002456)}
    train, test, lost = read_source("flickr30k", publish({"dataset_flickr30k.json": split_file(), **files}))
    assert isinstance(train, Row)
    assert isinstance(test, Row)
    assert (train.key, train.split, test.key, test.split) == ("flickr-1000092795", "train", "flickr-10002456", "test")
    assert train.captions == tuple(f"Text {at} of 1000092795 ." for at in range(5))
    assert train.origins == ("flickr:1000092795",)
    assert (train.image, test.image) == (image, image)
    assert lost == BadRow("flickr-1000268201", "file flickr30k-images/1000268201.jpg is not there")


def test_a_missing_split_file_is_named(publish: Publish, read_source: Read) -> None:
    url = publish({"flickr30k-images/1.jpg": b""})
    with pytest.raises(InputError, match=r"has no dataset_flickr30k\.json or .*Karpathy's splits"):
        read_source("flickr30k", url)
