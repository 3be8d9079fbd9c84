"""Parts of a source joined are, to the byte, the data set that one writer makes of all its rows."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from refused_user import refused

from cmapkd_core.config import DataConfig
from cmapkd_core.data.joined_parts import EntangledError, JoinedPart, join_parts
from cmapkd_core.data.part_notes import PartNotes
from cmapkd_core.data.rows import BadRow, Item, Partition, Question, Row
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.writer import write_shards
from cmapkd_core.fields import override
from cmapkd_core.storage import StorageError

CONFIG = DataConfig(samples_per_shard=5, val_share=0.2, test_share=0.2, quarantine_bound=0.9)
Made = tuple[dict[str, str], dict[str, int]]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def nothing(done: int) -> None:
    pass


def whole(rows: Iterable[Item], config: DataConfig, out: Path) -> Made:
    counts = write_shards(rows, out, config, nothing)
    return digests(out), counts


def joined(parts: Sequence[Iterable[Item]], config: DataConfig, folder: Path, workers: int = 0) -> Made:
    """What the parts make, of which none may be kept longer than it is needed."""
    made, before, limit = list[JoinedPart](), 0, config.size or 2**62
    for number, rows in enumerate(parts):
        out = folder / f"part-{number}"
        with PartNotes(out) as notes:
            write_shards(rows, out, config, nothing, notes=notes)
        if before < limit:
            made.append(JoinedPart(out.__truediv__, Path.unlink, before, limit))
            before += made[-1].rows_read
    target = folder / "joined"
    target.mkdir()
    counts = join_parts(made, target, config, nothing, workers)
    return digests(target), counts


def cut(rows: Sequence[Item], edges: Sequence[int]) -> list[Sequence[Item]]:
    ends = [0, *sorted(edges), len(rows)]
    return [rows[first:last] for first, last in pairwise(ends)]


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((9 + number % 3, 8), 50).save(file, kind)
    return file.getvalue()


PICTURES = [picture(number, kind) for kind in ("PNG", "JPEG", "WEBP") for number in range(4)]


def a_row(draw: random.Random, number: int) -> Item:
    """A row that is good, of another or of no split, bad in one of several ways, or has another's key."""
    key = f"k{draw.randrange(20) if draw.random() < 0.3 else 100 + number}{'.é' * draw.randrange(2)}"
    kind = draw.choices(["good", "bad", "no caption", "no picture", "no split"], [12, 1, 1, 1, 1])[0]
    split = "none" if kind == "no split" else draw.choice(["", "", "train", "val", "test"])
    if kind == "bad":
        return BadRow(key, f"reason {number % 3}")
    captions = () if kind == "no caption" else tuple(f"thing {draw.randrange(9)}" for _ in range(draw.randrange(1, 3)))
    image = b"none" if kind == "no picture" else draw.choice(PICTURES)
    return Row(
        key, image, captions, draw.choice(["", "a", "b"]), group=draw.choice(["", "g1", f"h{number}"]), split=split
    )


@pytest.mark.parametrize("seed", range(6))
def test_any_rows_cut_anywhere_join_to_the_same_bytes(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = [a_row(draw, number) for number in range(90)]
    splits = [(), (), ("train", "val"), ("test",)][seed % 4]
    config = override(CONFIG, {"splits": splits, "size": 0 if seed % 3 else 61})
    expected = whole(rows[: config.size or None], config, tmp_path / "whole")
    assert {"duplicate", "split"} <= set(
        (tmp_path / "whole" / "quarantine.jsonl").read_text().replace('"', " ").split()
    )
    for count in (1, 2, 5):
        (folder := tmp_path / str(count)).mkdir()
        edges = [draw.randrange(91) for _ in range(count - 1)]
        assert joined(cut(rows, edges), config, folder, workers=count % 3) == expected, (count, edges)


def asked(key: str, *numbers: int, captions: tuple[str, ...] = ()) -> Row:
    questions = tuple(Question(number, f"what is {number}?", ("a", "b") if number % 7 else ("",)) for number in numbers)
    return Row(key, PICTURES[0], captions, split="train", questions=questions)


def test_questions_join_in_the_groups_that_one_writer_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmapkd_core.data.questions._GROUP", 7)
    rows = [asked(f"k{i}", *range(3 * i + 1, 3 * i + 1 + i % 4), captions=("a",)) for i in range(24)]
    expected = whole(rows, CONFIG, tmp_path / "whole")
    assert expected[1]["bad_questions"] == 5
    assert joined(cut(rows, [5, 16]), CONFIG, tmp_path) == expected
    config = override(CONFIG, {"size": 19})
    (tmp_path / "cut").mkdir()
    assert joined(cut(rows, [5, 16]), config, tmp_path / "cut") == whole(rows[:19], config, tmp_path / "whole cut")


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (asked("k9", 1), "questions of two parts have the same number"),
        (asked("k0", 99), "pictures with questions of two parts have the key k0"),
    ],
)
def test_what_is_bad_by_questions_of_another_part_is_no_guess(tmp_path: Path, last: Row, reason: str) -> None:
    rows = [asked("k0", 1, 2), asked("k1", 3), last]
    with pytest.raises(EntangledError, match=reason):
        joined(cut(rows, [2]), CONFIG, tmp_path)
    (tmp_path / "one").mkdir()
    assert joined(cut(rows, [0]), CONFIG, tmp_path / "one") == whole(rows, CONFIG, tmp_path / "whole")


@pytest.mark.parametrize("size", [0, 50])
@pytest.mark.parametrize("source", ["scenes", "scenes_vqa"])
def test_partitions_of_a_source_have_each_of_its_rows_once(source: str, size: int) -> None:
    config = DataConfig(source=source, size=size)
    every = [row.key for row in open_rows(config)]
    for of in (1, 2, 5):
        parts = [[row.key for row in open_rows(config, Partition(number + 1, of))] for number in range(of)]
        assert [key for part in parts for key in part] == every
        assert max(map(len, parts)) <= -(-len(every) // of)


def test_a_part_has_no_verdict_of_its_own_and_the_whole_has(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    rows: list[Item] = [BadRow("b", "lost"), BadRow("d", "gone"), *(Row(f"k{i}", picture(), ("a",)) for i in range(3))]
    config = override(CONFIG, {"quarantine_bound": 0.1})
    with pytest.raises(Exception, match="2 of 5 rows cannot be used"):
        joined(cut(rows, [1]), config, tmp_path)
    assert "lost" in (tmp_path / "joined" / "quarantine.jsonl").read_text()


def test_a_part_that_may_not_be_read_is_no_traceback(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    with PartNotes(tmp_path) as notes:
        write_shards([Row(f"k{i}", picture(), ("c",)) for i in range(3)], tmp_path, CONFIG, nothing, notes=notes)
    part = JoinedPart(tmp_path.__truediv__, Path.unlink, 0)
    said = "cannot read .*: Permission denied; give this user the right to read it, and to enter the folders above it"
    with refused(tmp_path / "quarantine.jsonl"), pytest.raises(StorageError, match=said):
        list(part.bad())
    assert list(part.bad()) == []


def test_partitions_of_tars_call_their_rows_as_the_whole_does(tmp_path: Path) -> None:
    """10.tar's numbers do not count as its own beside 1.tar, also where a partition has no 1.tar."""
    for name in ("1", "10", "2"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as made:
            for extension, data in (("png", PICTURES[0]), ("txt", b"a thing")):
                member = tarfile.TarInfo(f"{name}000.{extension}")
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
    config = DataConfig(source="img2dataset", url=str(tmp_path))
    every = [row.key for row in open_rows(config)]
    assert every == ["1000", "10/10000", "2000"]
    assert [[row.key for row in open_rows(config, Partition(number, 2))] for number in (1, 2)] == [every[:1], every[1:]]
