import numpy as np
import pytest

from cmapkd_core.data.order import BLOCK_SHARDS, Order, chosen, hash64, hashes, mix, mix_one, sample_seed, split_of
from cmapkd_core.errors import InputError

KEYS = [f"picture {i}" for i in range(1000)]


def order(count: int = 1000, per_shard: int = 10, **changes: int) -> Order:
    settings = {"batch": 24, "rank": 0, "world": 1, "seed": 3, **changes}
    ids = np.arange(count)
    return Order(ids, hashes(KEYS[:count]), ids // per_shard, **settings)


def test_hashes_never_change() -> None:
    assert int(mix(np.zeros(1, dtype=np.uint64), 0)[0]) == 0xE220A8397B1DCDAF  # splitmix64's published first output
    assert hash64("picture 0") == 11836180160215317084
    assert sample_seed(1, 2, 3) == 470068718520497171


def test_an_epoch_takes_every_sample_at_most_once_and_drops_the_last_incomplete_batch() -> None:
    whole = order()
    ids = np.concatenate([whole.step(n)[1] for n in range(whole.steps_per_epoch)])
    assert whole.steps_per_epoch == 41
    assert len(ids) == len(set(ids.tolist())) == 41 * 24


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_together_take_the_batch_of_one_process(world: int) -> None:
    ranks = [order(rank=rank, world=world) for rank in range(world)]
    for number in (0, 5, 40, 41, 100):
        together = np.concatenate([rank.step(number)[1] for rank in ranks])
        assert np.array_equal(together, order().step(number)[1])


def test_epochs_and_seeds_give_other_orders() -> None:
    sequences = [order().sequence(0), order().sequence(1), order(seed=4).sequence(0)]
    assert all(sorted(sequence) == list(range(1000)) for sequence in sequences)
    assert not any(np.array_equal(a, b) for i, a in enumerate(sequences) for b in sequences[:i])


def test_step_n_needs_no_earlier_step() -> None:
    walked = order()
    for number in range(100):
        expected = walked.step(number)
    epoch, ids = order().step(99)
    assert epoch == expected[0] == 2
    assert np.array_equal(ids, expected[1])


def test_few_shards_are_open_at_a_time() -> None:
    far = order()
    for first in range(0, 1000, 10 * BLOCK_SHARDS):
        block = far.sequence(0)[first : first + 10 * BLOCK_SHARDS]
        assert len(set((block // 10).tolist())) <= BLOCK_SHARDS
    assert len(set((far.sequence(0)[:24] // 10).tolist())) > 8  # yet a batch mixes them


def test_fractions_are_nested_and_of_the_right_size() -> None:
    key_hashes = hashes(KEYS)
    tenth, half, whole = (chosen(key_hashes, share) for share in (0.1, 0.5, 1.0))
    assert (len(tenth), len(half), len(whole)) == (100, 500, 1000)
    assert set(tenth) < set(half) < set(whole)


def test_fractions_follow_the_keys_and_not_their_places() -> None:
    reverse = KEYS[::-1]
    assert {KEYS[i] for i in chosen(hashes(KEYS), 0.3)} == {reverse[i] for i in chosen(hashes(reverse), 0.3)}


def test_shares_of_the_split() -> None:
    sides = [split_of(key, 0.1, 0.3) for key in KEYS]
    assert 70 < sides.count("val") < 130
    assert 260 < sides.count("test") < 340
    assert all(split_of(key, 0.0, 0.0) == "train" for key in KEYS)


def test_a_substitute_is_none_of_the_batch_and_differs_by_slot_and_attempt() -> None:
    whole = order()
    batch = set(whole.step(7)[1].tolist())
    substitutes = [whole.substitute(7, slot, 1) for slot in range(24)]
    assert len(set(substitutes)) == 24
    assert not batch & set(substitutes)
    assert whole.substitute(7, 0, 2) == substitutes[1]
    ranks = [order(rank=rank, world=2) for rank in (0, 1)]
    assert [rank.substitute(7, slot, 1) for rank in ranks for slot in range(12)] == substitutes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 2, "world": 4}, "smaller than the 4 processes"),
        ({"batch": 10, "world": 4}, "does not divide over 4"),
        ({"batch": 1001}, "1000 training samples are fewer than one batch of 1001"),
    ],
)
def test_batches_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        order(**changes)


def test_one_value_is_mixed_as_an_array_of_them() -> None:
    draw = np.random.default_rng(0)
    for value in (0, 1, 2**64 - 1, *draw.integers(0, 2**64, 50, dtype=np.uint64).tolist()):
        for seeds in ((), (0,), (5, 7), (2**63, 1, 3)):
            assert mix_one(value, *seeds) == int(mix(np.array([value], dtype=np.uint64), *seeds)[0])


def test_a_step_is_in_the_block_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmapkd_core.data.order.BLOCK_SHARDS", 2)
    ids = np.arange(100)
    shards = ids // 9
    some = Order(ids, mix(ids.astype(np.uint64), 1), shards, batch=8, rank=0, world=1, seed=4)
    for turn in (0, 1):
        some.reorder(turn)
        for number in range(24):
            epoch, found = some.step(number)
            blocks = some.blocks(epoch)
            assert sorted(np.concatenate(blocks)) == list(range(12))
            first, last = (next(i for i, own in enumerate(blocks) if shards[one] in own) for one in found[[0, -1]])
            assert some.block_of(number) == (epoch, last)
            assert some.block_of(number, first=True) == (epoch, first)
