"""The leakage gate: no training picture is also a val or test picture, here or in other prepared data sets.

Three checks, of which `data.leakage` names those that run:
- ids: the same name in another collection (`Row.origins`), such as a Visual Genome picture that is COCO's 391895;
- exact: the same bytes (sha256);
- perceptual: pHash (64 bits, luminance) at most BOUND bits apart. Found were 100 % of copies at half the size or JPEG
  quality 40 of pictures with a natural spectrum (97 % of Tux Paint's stamps), and 65 to 76 % of crops by 3 %. Unrelated
  pictures of that spectrum meet once in 10^10 pairs (extrapolated from 3 million), ten times the pairs of COCO's
  training with its 10,000 held out. Drawings on plain ground do meet: pairs that this check alone finds are compared
  once more, finer and in colour (`look_alikes`), and what differs there is counted apart and is no leak. The gate
  leaves this check out where the source's row says `drawn`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmapkd_core import storage
from cmapkd_core.catalog import LEAKAGE_CHECKS, SOURCES, load
from cmapkd_core.config import DataConfig
from cmapkd_core.data.contact_sheet import Section, sheet
from cmapkd_core.data.index import parts_of
from cmapkd_core.data.layout import INDEX, LEAKAGE, LOOK_ALIKES, MANIFEST, SHEET
from cmapkd_core.data.leakage_removal import drop_samples
from cmapkd_core.data.look_alikes import DIFFERENT, PLACED, ComparedPairs, Pair, Pictures, compared
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError, again

BOUND = 4  # bits of 64
_SHOWN = 5  # pairs in an error message
SAME, ALIKE = "The same picture", "Alike by the hash, different in colour or detail"
_EXPLANATIONS = {
    SAME: "Trained on and tested on, they make results look better than they are. Take them out of training: "
    "--set data.leakage_action=drop. Where they are different pictures, compare ids and bytes only: "
    "--set data.leakage=ids,exact",
    ALIKE: "They count as different pictures: none was refused or taken out. Where two are the same after all, delete "
    "one of them from the data.",
}
_PART = 1 << 18  # training pictures compared at a time, about 40 MB of their index
COMPARED = ["split", "key", "origins", "sha256", "phash"]  # columns of the index, which may have millions of lines
_BLOCK = 1 << 18  # pairs compared at a time: what a core's cache holds, however many look alike


class LeakageError(InputError):
    """Training pictures are held out elsewhere; all pairs are in leakage.jsonl."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures that no student may train on. url: the artifact that they are from, "" for this data set."""

    table: pa.Table
    url: str = ""
    folder: str = ""  # of their shards

    @property
    def pictures(self) -> Pictures:
        """Where they lie."""
        return Pictures(self.folder, lambda: [self.table])


_Match = tuple[int, int, str]  # positions in both tables, what agrees


def gate(out: Path, config: DataConfig, against: Mapping[str, ShardSet], counts: dict[str, int]) -> dict[str, int]:
    """Compare what `write_shards` has put into `out`, do as `config.leakage_action` says, and note it in shards.json.

    Args:
        against: other prepared data sets, by the URL that `config.against` names them with.
        counts: what `write_shards` gave.

    Returns:
        The counts of what is left, with "leaks" (training pictures that are held out), "dropped", and "look_alikes"
        where there are pairs that only look alike.

    Raises:
        LeakageError: pairs were found and the action is to refuse; what `write_sections` writes is complete then.
        InputError: a data set of `against` is too old to be compared, or dropping leaves nothing to train on.
    """
    checks = checks_of(config.leakage, config.source)
    held_lines = _lines(out / INDEX, pc.field("split") != "train", [*COMPARED, *PLACED[1:]])
    held = [HeldOut(pa.concat_tables(held_lines), folder=str(out))]
    held += [_held_out(url, shards) for url, shards in against.items()]
    pairs = [pair for part in training_pictures(out / INDEX) for pair in find_pairs(part, held, checks)]
    train = lying(out / INDEX, str(out))
    others = {one.url: one.pictures for one in held}
    verdict = compared(pairs, train, others)
    write_sections(out, sections(verdict, train, others))
    leaking = {pair.train for pair in verdict.same}
    if verdict.same and config.leakage_action == "refuse":
        raise LeakageError(_refusal(verdict.same, len(leaking)))
    dropped = leaking if config.leakage_action == "drop" else set()
    if dropped:
        counts = _dropped(out, dropped, counts)
    note = {
        "checks": list(checks),
        "bound": BOUND,
        "finer_bound": DIFFERENT,
        "against": list(against),
        "action": config.leakage_action,
        "pairs": len(verdict.same),
        "look_alikes": len(verdict.look_alikes),
        "leaks": len(leaking),
        "dropped": len(dropped),
    }
    storage.write_json(str(out / MANIFEST), storage.read_json(str(out / MANIFEST)) | {"leakage": note})
    counts = {**counts, "leaks": len(leaking), "dropped": len(dropped)}
    return counts | ({"look_alikes": len(verdict.look_alikes)} if verdict.look_alikes else {})


def lying(index: Path, folder: str) -> Pictures:
    """The pictures of a data set. index: a local copy of its index.parquet. folder: of its shards."""
    return Pictures(folder, lambda: parts_of(index, _PART, PLACED))


def sections(
    compared_pairs: ComparedPairs, train: Pictures, held: Mapping[str, Pictures], name: str = ""
) -> list[Section]:
    """What was found, for `write_sections`; `name`: of the training pictures' data set, where there are several."""
    of = f" (trained on {name})" if name else ""
    kinds = {SAME: compared_pairs.same, ALIKE: compared_pairs.look_alikes}
    return [Section(kind + of, _EXPLANATIONS[kind], pairs, train, held) for kind, pairs in kinds.items()]


def write_sections(out: Path, parts: Sequence[Section]) -> None:
    """leakage.jsonl, look_alikes.jsonl and leakage.html into a folder: those for which there is a pair."""
    for file, kind in ((LEAKAGE, SAME), (LOOK_ALIKES, ALIKE)):
        if pairs := [pair for section in parts if section.heading.startswith(kind) for pair in section.pairs]:
            _write_pairs(pairs, out / file)
    if any(section.pairs for section in parts):
        (out / SHEET).write_text(sheet(parts), encoding="utf-8")


def training_pictures(index: Path) -> Iterator[pa.Table]:
    """The training lines of an index.parquet, COMPARED of them and _PART at a time."""
    return _lines(index, pc.field("split") == "train")


def _lines(index: Path, which: pc.Expression, columns: Sequence[str] = COMPARED) -> Iterator[pa.Table]:
    """Not by a filter of `read_table`, which keeps the compressed columns of the whole file until its end."""
    for rows in parts_of(index, _PART, [*columns]):
        yield rows.filter(which)


def _dropped(out: Path, keys: set[str], counts: dict[str, int]) -> dict[str, int]:
    """Take `keys` out of training; the counts of what is left."""
    if len(keys) == counts["train"]:
        raise InputError("data.leakage_action=drop leaves nothing to train on: every training picture is held out")
    gone = (pc.field("split") == "train") & pc.field("key").isin(sorted(keys))
    parts = _lines(out / INDEX, gone, ["split", "key", "captions"])
    captions = sum(pc.sum(pc.list_value_length(part["captions"])).as_py() or 0 for part in parts)
    drop_samples(out, "train", keys)
    manifest = storage.read_json(str(out / MANIFEST))
    questions = sum(split.get("questions", 0) for split in manifest["splits"].values())
    return {
        **counts,
        "used": counts["used"] - len(keys),
        "train": counts["train"] - len(keys),
        "captions": counts["captions"] - captions,
        "classes": len(manifest["classes"]),
        **({"questions": questions} if "questions" in counts else {}),
    }


def checks_of(checks: tuple[str, ...], *sources: str) -> tuple[str, ...]:
    """Those of `checks` that run where pictures of these sources are compared with each other."""
    drawn = any(SOURCES[source].drawn for source in sources if source in SOURCES)
    return tuple(name for name in checks if name != "perceptual" or not drawn)


def find_pairs(train: pa.Table, held: list[HeldOut], checks: tuple[str, ...]) -> list[Pair]:
    """Every pair once, with what each check says of it; the tables have the columns COMPARED."""
    pairs: list[Pair] = []
    for other in held:
        reasons: dict[tuple[int, int], list[str]] = {}
        for name in checks:
            for i, j, reason in load("leakage check", name, LEAKAGE_CHECKS)(train, other.table):
                reasons.setdefault((i, j), []).append(f"{name}: {reason}")
        if reasons:
            train_rows, held_rows = np.array(list(reasons)).T
            keys = train["key"].take(train_rows).to_pylist()
            names, splits = (other.table[column].take(held_rows).to_pylist() for column in ("key", "split"))
            rows = zip(keys, names, splits, reasons.values(), strict=True)
            pairs += [Pair(key, name, split, other.url, tuple(why)) for key, name, split, why in rows]
    return pairs


def _write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """All pairs, one a line."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)


def first_of(pairs: Sequence[Pair]) -> str:
    """The first pairs for a message, one an indented line, and how many more there are."""
    shown = [
        f"train {pair.train} {'looks like' if pair.by_looks else '='} {pair.split} {pair.held_out}"
        f"{f' of {pair.data}' if pair.data else ''} "
        f"({'; '.join(pair.reasons)})"
        for pair in pairs[:_SHOWN]
    ]
    more = [f"and {len(pairs) - _SHOWN} more"] if len(pairs) > _SHOWN else []
    return "  " + "\n  ".join([*shown, *more])


def require_hashes(name: str, manifest: Mapping[str, Any]) -> None:
    """Refuse a data set, by its shards.json, whose index lacks what is compared.

    Raises:
        InputError: it was prepared before pictures were compared.
    """
    if "leakage" not in manifest:
        raise InputError(f"{name} was prepared before pictures were compared: {again('prepare')}")


def same_origin(train: pa.Table, held: pa.Table) -> Iterator[_Match]:
    """Pictures that name the same original, such as a COCO id."""
    yield from _same_value(*(_listed(table["origins"]) for table in (train, held)))


def same_bytes(train: pa.Table, held: pa.Table) -> Iterator[_Match]:
    """Pictures whose files have the same sha256."""
    values = ((np.arange(table.num_rows), _whole(table["sha256"])) for table in (train, held))
    for i, j, _ in _same_value(*values):
        yield i, j, "the same file"


_Values = tuple[np.ndarray, pa.Array]  # positions of pictures, int64 [n], and what each of them has


def _same_value(train: _Values, held: _Values) -> Iterator[_Match]:
    """What both have alone becomes text: of all others there may be millions."""
    (rows, train_values), (columns, held_values) = _both(train, held[1]), _both(held, train[1])
    places: dict[str, list[int]] = {}
    for j, value in zip(columns, held_values, strict=True):
        places.setdefault(value, []).append(j)
    for i, value in zip(rows, train_values, strict=True):
        for j in places[value]:
            yield i, j, value


def _both(values: _Values, others: pa.Array) -> tuple[list[int], list[str]]:
    """Those that are among `others` too."""
    rows, own = values
    positions = np.flatnonzero(pc.is_in(own, value_set=others, skip_nulls=True).to_numpy(zero_copy_only=False))
    return rows[positions].tolist(), own.take(pa.array(positions, pa.int64())).to_pylist()


def _listed(column: pa.ChunkedArray) -> _Values:
    """Each value of lists, with the position of its list."""
    lists = _whole(column)
    return pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def alike(train: pa.Table, held: pa.Table) -> Iterator[_Match]:
    """Each hash is compared once, however many pictures have it; the pairs come in the order of both tables."""
    (rows, train_hashes), (columns, held_hashes) = _hashes(train), _hashes(held)
    train_hashes, train_inverse = np.unique(train_hashes, return_inverse=True)
    held_hashes, inverse, counts = np.unique(held_hashes, return_inverse=True, return_counts=True)
    bearers = columns[np.argsort(inverse, kind="stable")]  # those of hash k are at ends[k] - counts[k] .. ends[k] - 1
    ends = np.cumsum(counts)
    near: dict[int, list[tuple[int, int]]] = {}
    for one, other, distance in _near(train_hashes, held_hashes):
        near.setdefault(one, []).append((other, distance))
    for i in np.flatnonzero(np.isin(train_inverse, list(near))):
        matches = [
            (j, distance) for k, distance in near[train_inverse[i]] for j in bearers[ends[k] - counts[k] : ends[k]]
        ]
        for j, distance in sorted(matches):
            yield int(rows[i]), int(j), f"{distance} of 64 bits differ"


def _near(hashes: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Positions in both of hashes at most BOUND bits apart, and the distance; each pair once, `hashes` in order.

    Hashes: uint64 [n], [m].

    Their at most BOUND differing bits leave one of BOUND + 1 bands of bits as it is, so that only hashes with an
    equal band are compared: of unrelated ones a pair in 1,400.
    """
    edges = [64 * band // (BOUND + 1) for band in range(BOUND + 2)]
    bands = [_Band(others, first, last) for first, last in pairwise(edges)]
    comparisons = np.cumsum(sum(band.counts(hashes) for band in bands))  # up to and with each of `hashes`
    first = 0
    while first < len(hashes):
        before = comparisons[first - 1] if first else 0
        last = max(int(np.searchsorted(comparisons, before + _BLOCK, side="right")), first + 1)
        block = hashes[first:last]
        # A pair may have several equal bands.
        pairs = np.unique(np.concatenate([band.near(block) for band in bands], axis=1), axis=1)
        for i, j in pairs.T.tolist():
            yield first + i, j, int(np.bitwise_count(block[i] ^ others[j]))
        first = last


class _Band:
    """Hashes [m] by the value of their bits `first` to `last` - 1."""

    def __init__(self, hashes: np.ndarray, first: int, last: int) -> None:
        self._shift, self._mask = np.uint64(first), np.uint64(2 ** (last - first) - 1)
        values = self._values(hashes)
        self._order = np.argsort(values, kind="stable")
        self._hashes = hashes[self._order]
        self._starts = np.searchsorted(values[self._order], np.arange(2 ** (last - first) + 1))

    def _values(self, hashes: np.ndarray) -> np.ndarray:
        """The band of hashes [n] as numbers, int64 [n]."""
        return ((hashes >> self._shift) & self._mask).astype(np.int64)

    def counts(self, hashes: np.ndarray) -> np.ndarray:
        """How many of those here have the band of each: int64 [n]."""
        values = self._values(hashes)
        result: np.ndarray = self._starts[values + 1] - self._starts[values]
        return result

    def near(self, hashes: np.ndarray) -> np.ndarray:
        """Positions in `hashes` and here of those with an equal band and at most BOUND bits apart: int64 [2, pairs]."""
        counts = self.counts(hashes)
        i = np.repeat(np.arange(len(hashes)), counts)
        skipped = self._starts[self._values(hashes)] - (np.cumsum(counts) - counts)
        j = np.arange(len(i)) + np.repeat(skipped, counts)
        close = np.bitwise_count(hashes[i] ^ self._hashes[j]) <= BOUND
        return np.stack([i[close], self._order[j[close]]])


def _hashes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pictures that have a perceptual hash, and the hashes: int64 [n], uint64 [n]."""
    column = _whole(table["phash"])
    positions = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    return positions, column.drop_null().to_numpy().astype(np.uint64)


def _held_out(url: str, shards: ShardSet) -> HeldOut:
    require_hashes(f"data.against={url}", shards.manifest)
    splits = (split for split in shards.manifest["splits"] if split != "train")
    table = pa.concat_tables([shards.table(split).select([*COMPARED, *PLACED[1:]]) for split in splits])
    if not table.num_rows:
        raise InputError(f"data.against={url} holds no val or test picture: leave it out")
    return HeldOut(table, url, shards.url)


def alike_or_not(pairs: Sequence[Pair]) -> str:
    """A line on pairs that looks alone have put together, and the way out where they are different; "" of others."""
    if not any(pair.by_looks for pair in pairs):
        return ""
    return (
        "Pictures that look alike were found by a perceptual hash and a finer comparison in colour; where they are "
        "different ones, compare ids and bytes only: --set data.leakage=ids,exact\n"
    )


def _refusal(pairs: Sequence[Pair], leaks: int) -> str:
    return (
        f"{leaks} training pictures are also held out for val or test, where results would not count:\n"
        f"{first_of(pairs)}\n"
        f"{alike_or_not(pairs)}"
        "Take them out of training with --set data.leakage_action=drop, or accept them with "
        "--set data.leakage_action=allow, which shards.json and the manifest then say"
    )
