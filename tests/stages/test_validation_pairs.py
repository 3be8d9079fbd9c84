"""What a selector that weighs by validation pairs is given: pairs of split val, by step, and none of test."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.models.build import build
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.validation_pairs import ValidationPairs

RECIPE = resolve("tiny", "oracle_alsn")


@pytest.fixture
def context(tiny_shards: str) -> SimpleNamespace:
    return SimpleNamespace(recipe=RECIPE, shards=open_shards(Artifact.open(tiny_shards)))


def made(context: SimpleNamespace, cache: Path) -> ValidationPairs:
    return ValidationPairs(context, side_of(build(RECIPE.student, 0, cache)), seed=3)


def test_a_steps_pairs_are_of_split_val_and_the_same_whenever_they_are_asked_for(context, tmp_path):
    pairs, keys = made(context, tmp_path), context.shards.keys("val")
    given = [pairs.of_step(step) for step in (0, 7, 1)]
    again = made(context, tmp_path).of_step(7)
    assert all(set(batch.keys) == set(keys) for batch in given)  # of 6 pairs a batch has all
    assert len({tuple(batch.keys) for batch in given}) > 1
    assert again.keys == given[1].keys
    assert torch.equal(again.images["student"], given[1].images["student"])
    assert torch.equal(again.tokens["student"], given[1].tokens["student"])


def test_without_validation_pairs_the_way_out_is_named(context, tmp_path):
    context.shards.manifest["splits"]["val"]["count"] = 0
    with pytest.raises(
        InputError, match=r"selector.kind=oracle weighs by validation pairs, and \S+ has 0: .*data.val_share"
    ):
        made(context, tmp_path)


def test_a_recipe_that_prepares_no_validation_pairs_is_refused_at_once():
    with pytest.raises(InputError, match=r"data.splits=train,test prepares none: add val to data.splits"):
        resolve("tiny", "oracle_alsn", "data.splits=train,test")
    assert resolve("tiny", "none", "data.splits=train,test").data.splits == ("train", "test")


def test_validation_pairs_that_are_damaged_count_against_the_bound(context, tmp_path):
    pairs = made(context, tmp_path)
    damaged = set(range(2))
    read = context.shards.read_image
    from cmapkd_core.data.shards import CorruptSampleError

    def torn(split: str, i: int) -> bytes:
        if i in damaged:
            raise CorruptSampleError("val-00000.tar", str(i), "its checksum is wrong")
        return read(split, i)

    context.shards.read_image = torn
    with pytest.raises(InputError, match="samples are corrupt, more than data.quarantine_bound"):
        pairs.of_step(0)


@pytest.mark.parametrize(
    "source", ["emoji", "stamps:/stamps", "easy_vqa", "scenes", "scenes_vqa", "vqav2:/v", "visual_genome:/v"]
)
def test_a_source_whose_validation_pairs_are_a_share_wants_one(source):
    with pytest.raises(InputError, match="data.val_share=0 leaves source"):
        resolve("tiny", "oracle_alsn", "data.val_share=0", data=source)


@pytest.mark.parametrize("source", ["glyphs", "coco:/coco", "flickr30k:/flickr30k"])
def test_a_source_that_has_a_split_of_its_own_wants_none(source):
    assert resolve("tiny", "oracle_alsn", "data.val_share=0", data=source).data.val_share == 0
