"""Fixed crops and the cache of a teacher's outputs for them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cmapkd_core.data.augment import View, normalise
from cmapkd_core.data.fixed_crops import TeacherCache, fixed_pixels, write_part
from cmapkd_core.data.images import decode
from cmapkd_core.data.loader import Batch, Captions, Side, TrainLoader
from cmapkd_core.data.order import crop_of, crop_seed, hash64, hashes
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.teacher_inputs import Chunk, caption_counts, chunks_of, teacher_inputs
from cmapkd_core.errors import InputError

CROPS, SCALE = 3, (0.3, 0.8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
MADE_FROM = {"shards": "abc", "teacher": "def"}


def tokenize(texts: list[str]) -> torch.Tensor:
    """Bytes of each text, 40 of them."""
    return torch.tensor([list(text.encode().ljust(40))[:40] for text in texts])


SIDES = {"student": Side(View(16, MEAN, STD), tokenize)}


def loader(shards: ShardSet, cache: TeacherCache | None = None, **changes: object) -> TrainLoader:
    settings: dict[str, object] = {
        "batch": 8,
        "rank": 0,
        "world": 1,
        "seed": 5,
        "fraction": 1.0,
        "crop_scale": SCALE,
        "workers": 0,
        "max_pixels": 1_000_000,
        "quarantine_bound": 0.0,
        "crops": CROPS,
    }
    return TrainLoader(shards, SIDES, cache=cache, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def numbered(scenes: ShardSet, tmp_path: Path) -> TeacherCache:
    """A cache whose entries say what they belong to: image (picture, crop), text (picture, caption)."""
    count = scenes.count("train")
    captions = [len(scenes.captions("train", i)) for i in range(count)]
    image = torch.tensor([[[i, c] for c in range(CROPS)] for i in range(count)])
    text = torch.tensor([[i, k] for i, own in enumerate(captions) for k in range(own)])
    paths = []
    for start in range(0, count, 20):  # several parts, the last one shorter
        own, first = slice(start, start + 20), sum(captions[:start])
        said = text[first : first + sum(captions[own])]
        paths.append(tmp_path / f"{start}.safetensors")
        write_part(paths[-1], start, {"image": image[own].float()}, {"text": said.float()}, captions[own], MADE_FROM)
    return TeacherCache.open(paths[::-1], MADE_FROM)


def test_a_crop_follows_from_the_key_and_its_number_alone() -> None:
    seeds = {crop_seed(hash64(key), crop) for key in ("a", "b", "c") for crop in range(CROPS)}
    assert len(seeds) == 9
    assert max(seeds) < 2**63
    drawn = [crop_of(hash64(f"k{i}"), 5, epoch, CROPS) for i in range(300) for epoch in range(3)]
    assert [abs(drawn.count(crop) - 300) < 60 for crop in range(CROPS)] == [True] * CROPS
    assert [crop_of(hash64("a"), 5, epoch, 1) for epoch in range(4)] == [0] * 4


def test_a_batch_shows_the_crops_that_its_cached_embeddings_are_of(scenes: ShardSet, numbered: TeacherCache) -> None:
    steps = 2 * loader(scenes).steps_per_epoch
    for batch in loader(scenes, numbered).batches(0, steps):
        assert torch.equal(batch.cached["image"][:, 0], batch.index.float())
        assert torch.equal(batch.cached["text"][:, 0], batch.index.float())
        for row, i in enumerate(batch.index.tolist()):
            image = np.asarray(decode(scenes.read_image("train", i), 1_000_000))
            crop, caption = (int(batch.cached[name][row, 1]) for name in ("image", "text"))
            (pixels,) = fixed_pixels(image, [(16, "bicubic")], SCALE, hash64(batch.keys[row]), crop)
            assert torch.equal(batch.images["student"][row], normalise(pixels, SIDES["student"].view))
            said = scenes.captions("train", i)[caption]
            assert torch.equal(batch.tokens["student"][row], tokenize([said])[0])


def test_every_crop_comes_and_other_seeds_show_the_same_ones(scenes: ShardSet, numbered: TeacherCache) -> None:
    def seen(seed: int) -> dict[str, set[int]]:
        some, found = loader(scenes, numbered, seed=seed), {}
        for batch in some.batches(0, 8 * some.steps_per_epoch):
            for key, crop in zip(batch.keys, batch.cached["image"][:, 1].int().tolist(), strict=True):
                found.setdefault(key, set()).add(crop)
        return found

    for found in (seen(5), seen(6)):
        assert sum(crops == {0, 1, 2} for crops in found.values()) > 0.6 * len(found)


def test_a_wrong_pair_has_the_outputs_of_its_picture_and_of_the_others_caption(scenes, numbered) -> None:
    noisy = loader(scenes, numbered, captions=Captions(noise=0.5))
    for batch in noisy.batches(0, 4):
        assert torch.equal(batch.cached["image"][:, 0].long(), batch.index)
        assert batch.cached["text"][:, 0].tolist() == noisy.owners[batch.index].tolist()
        numbers = batch.cached["text"][:, 1].long().tolist()
        said = [scenes.captions("train", int(i))[k] for i, k in zip(noisy.owners[batch.index], numbers, strict=True)]
        assert torch.equal(batch.tokens["student"], tokenize(said))


def same(a: Batch, b: Batch) -> bool:
    cached = all(torch.equal(a.cached[name], b.cached[name]) for name in ("image", "text"))
    return a.keys == b.keys and cached and torch.equal(a.images["student"], b.images["student"])


def test_resumed_with_workers_and_over_ranks_the_stream_is_the_same(scenes: ShardSet, numbered: TeacherCache) -> None:
    whole = list(loader(scenes, numbered).batches(0, 9))
    rest = loader(scenes, numbered, workers=2).batches(4, 9)
    assert all(same(a, b) for a, b in zip(rest, whole[4:], strict=True))
    ranks = [list(loader(scenes, numbered, rank=rank, world=2).batches(0, 9)) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(one.cached["image"], torch.cat([part.cached["image"] for part in parts]))


def test_a_cache_changes_neither_crops_nor_captions(scenes: ShardSet, numbered: TeacherCache) -> None:
    for a, b in zip(loader(scenes).batches(0, 4), loader(scenes, numbered).batches(0, 4), strict=True):
        assert a.cached == {}
        assert torch.equal(a.images["student"], b.images["student"])
        assert torch.equal(a.tokens["student"], b.tokens["student"])


@pytest.mark.parametrize("workers", [0, 2])
def test_all_crops_and_captions_of_some_pictures(scenes: ShardSet, workers: int) -> None:
    """Two parts in one stream; each part's chunks are its own."""
    parts, side = [range(5, 12), range(12, 14)], Side(View(24, MEAN, STD), tokenize)
    chunks = [chunks_of(rows, caption_counts(scenes, "train"), 3, 4) for rows in parts]
    assert [[len(chunk.rows) for chunk in own if not chunk.captions] for own in chunks] == [[3, 3, 1], [2]]
    given = {"crops": CROPS, "crop_scale": SCALE, "max_pixels": 1_000_000, "workers": workers}
    keys = scenes.keys("train")
    found = teacher_inputs(scenes, "train", side, [*chunks[0], *chunks[1]], **given)  # type: ignore[arg-type]
    for rows, own in zip(parts, chunks, strict=True):
        texts = [text for i in rows for text in scenes.captions("train", i)]
        inputs = [next(found) for _ in own]
        assert [len(x) for x in inputs if x.dim() == 2] == [4] * (len(texts) // 4) + [len(texts) % 4] * (
            len(texts) % 4 > 0
        )
        assert torch.equal(torch.cat([x for x in inputs if x.dim() == 2]), tokenize(texts))
        pictures = torch.cat([x for x in inputs if x.dim() == 4]).unflatten(0, (-1, CROPS))
        assert pictures.shape == (len(rows), CROPS, 3, 24, 24)
        for place, i in enumerate(rows):
            image = np.asarray(decode(scenes.read_image("train", i), 1_000_000))
            for crop in range(CROPS):
                (pixels,) = fixed_pixels(image, [(24, "bicubic")], SCALE, int(hashes(keys)[i]), crop)
                assert torch.equal(pictures[place, crop], normalise(pixels, side.view))
    assert next(found, None) is None
    small = given | {"max_pixels": 1, "workers": 0}
    dark = teacher_inputs(scenes, "train", side, [Chunk(range(1))], **small)  # type: ignore[arg-type]
    assert torch.equal(next(dark)[0], normalise(torch.zeros(3, 24, 24, dtype=torch.uint8), side.view))


def test_chunks_hold_every_caption_once_whatever_a_picture_has() -> None:
    counts = np.array([9, 2, 0, 5, 1, 0])
    said = [chunk for chunk in chunks_of(range(1, 6), counts, 2, 3) if chunk.captions]
    assert [(chunk.rows, chunk.skipped, chunk.captions) for chunk in said] == [
        (range(1, 4), 0, 3),
        (range(3, 4), 1, 3),
        (range(3, 5), 4, 2),
    ]


def test_equal_parts_are_equal_files(tmp_path: Path) -> None:
    """A stage that runs again makes the same artifact, and what was made from it stands."""
    for name in range(20):
        write_part(
            tmp_path / str(name), 0, {"image": torch.ones(2, 1, 4)}, {"text": torch.ones(3, 4)}, [1, 2], MADE_FROM
        )
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_cache_made_from_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_part(path, 0, {"image": torch.zeros(2, 1, 4)}, {"text": torch.zeros(3, 4)}, [1, 2], MADE_FROM)
    cache = TeacherCache.open([path], MADE_FROM)
    assert cache.rows(np.array([1, 0]), [0, 0], [1, 0])["text"].shape == (2, 4)
    assert set(cache.only("text").rows(np.array([1, 0]), [0, 0], [1, 0])) == {"text"}
    with pytest.raises(InputError, match="teacher: def -> xyz\nrun stage teacher"):
        TeacherCache.open([path], MADE_FROM | {"teacher": "xyz"})
