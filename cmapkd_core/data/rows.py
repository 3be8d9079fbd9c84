"""One picture with its captions, as every source gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cmapkd_core.config import SPLITS as SPLITS
from cmapkd_core.errors import BadImageError

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question about a picture, in VQAv2's terms; `answers` has one entry for each person asked (ten there)."""

    number: int  # question_id
    text: str
    answers: tuple[str, ...]
    answer_type: str = "other"  # yes/no, number or other
    question_type: str = ""  # VQAv2's, such as "how many"


@dataclass(frozen=True)
class BadQuestion:
    """What a source found where a question should be: counted and listed like every other bad one."""

    number: int | str  # question_id, or where it stands
    reason: str


@dataclass(frozen=True)
class Row:
    """A picture and what is said of it, before any check.

    Attributes:
        key: unique in the data set; it decides order and `data.fraction`.
        image: the encoded file (PNG, JPEG or WebP), stored as it is.
        captions: all true of the picture; training draws one of them each time.
        class_name: the zero-shot class; "" where there is none.
        group: rows of one group stay on one side of the split; "": rows of the same file do.
        split: one of SPLITS; "" lets the group's hash decide.
        licence: of the picture; it travels in the shard beside it.
        questions: for visual question answering; a row of a set of questions may have no caption.
        origins: what the picture is called elsewhere, such as "coco:391895"; the leakage gate compares them.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    class_name: str = ""
    group: str = ""
    split: str = ""
    licence: str = ""
    questions: tuple[Question | BadQuestion, ...] = ()
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """What a source found where a row should be: counted and listed like every other bad sample.

    split: that it would have been of, where that is known.
    """

    key: str
    reason: str
    split: str = ""


@dataclass(frozen=True)
class LazyRow:
    """A row whose picture is read later, by one of several threads, or never where an earlier attempt stored it.

    Attributes:
        row: all of it but the picture; `row.image` is empty.
        read: gives the encoded file. FileNotFoundError(name) and BadImageError(reason) make the row a bad one;
            whatever else it raises ends the stage.
    """

    row: Row
    read: Callable[[], bytes]

    @property
    def key(self) -> str:
        """The row's."""
        return self.row.key

    def load(self) -> Row | BadRow:
        """The row with its picture."""
        try:
            return replace(self.row, image=self.read())
        except FileNotFoundError as error:
            return BadRow(self.key, f"file {error} is not there")
        except BadImageError as error:
            return BadRow(self.key, str(error))


Item = Row | LazyRow | BadRow  # what a source gives


@dataclass(frozen=True)
class Partition:
    """One of `of` runs of a source's rows, which follow each other without gap; `number` is from 1 on."""

    number: int = 1
    of: int = 1

    @property
    def is_last(self) -> bool:
        """Whether none follows it."""
        return self.number == self.of

    def bounds(self, total: int) -> tuple[int, int]:
        """Where it begins and ends among `total`."""
        return total * (self.number - 1) // self.of, total * self.number // self.of


@dataclass(frozen=True)
class Counted:
    """Rows whose number a source knows beforehand, nearly at least; what a progress line tells the rest by.

    slices: the rows of one partition, where a source has them cheaper than by passing over those before it.
    """

    items: Iterable[Item]
    count: int
    slices: Callable[[Partition, int], Iterable[Item]] | None = None  # of so many rows in all; 0: of all there are

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def listed(entries: Sequence[T], make: Callable[[T], Item]) -> Counted:
    """Rows made one by one from a list."""

    def sliced(part: Partition, most: int) -> Iterable[Item]:
        first, last = part.bounds(min(len(entries), most or len(entries)))
        return (make(entries[at]) for at in range(first, last))

    return Counted(map(make, entries), len(entries), sliced)
