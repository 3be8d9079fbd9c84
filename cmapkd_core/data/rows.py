"""One picture with its captions, as every source gives it."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Question:
    """A question about a picture, in VQAv2's terms; `answers` has one entry for each person asked (ten there)."""

    number: int  # question_id
    text: str
    answers: tuple[str, ...]
    answer_type: str = "other"  # yes/no, number or other
    question_type: str = ""  # VQAv2's, such as "how many"


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
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    class_name: str = ""
    group: str = ""
    split: str = ""
    licence: str = ""
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """What a source found where a row should be: counted and listed like every other bad sample."""

    key: str
    reason: str
