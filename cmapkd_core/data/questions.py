"""Questions of a data set: checked one by one, and stored as one table beside the index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.data.layout import ANSWER_TYPES, QUESTION_SCHEMA
from cmapkd_core.data.rows import BadQuestion, Question
from cmapkd_core.data.texts import BadValueError, answer, optional, text

_GROUP = 16_384  # questions a row group of the table holds
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Checked:
    """The questions of one picture: those that can be used, and number and reason of each of the others.

    asked: numbers of those that could be used if no earlier question had them.
    """

    good: list[Question]
    bad: list[tuple[int | str, str]]
    asked: tuple[int, ...] = ()


class QuestionTable:
    """The questions of all splits on their way into a file, which only a data set with questions gets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers: set[int] = set()
        self._stored: Counter[str] = Counter()  # by split
        self._bad = 0
        self._waiting: list[dict[str, Any]] = []
        self._file: pq.ParquetWriter | None = None

    def check(self, questions: Iterable[Question | BadQuestion]) -> Checked:
        """Sort the questions of one picture; nothing is stored."""
        good: dict[int, Question] = {}
        bad: list[tuple[int | str, str]] = []
        asked: list[int] = []
        for question in questions:
            try:
                if isinstance(question, BadQuestion):
                    raise BadValueError(question.reason)
                usable = _usable(question)
                asked.append(question.number)
                if question.number in self._numbers or question.number in good:
                    raise BadValueError("duplicate number: an earlier question has it")
                good[question.number] = usable
            except BadValueError as error:
                bad.append((question.number, str(error)))
        return Checked(list(good.values()), bad, tuple(asked))

    def add(self, split: str, key: str, questions: Checked) -> None:
        """Store the good questions of the picture `key`, count the others."""
        for question in questions.good:
            self._numbers.add(question.number)
            self._waiting.append({"split": split, "key": key, **vars(question)})
        self._stored[split] += len(questions.good)
        self._bad += len(questions.bad)
        if len(self._waiting) >= _GROUP:
            self._write()

    def take(self, table: pa.Table, bad: int) -> None:
        """Store the questions of a part of the data set, and count its bad ones."""
        for _, pictures in groupby(table.to_pylist(), key=itemgetter("key")):
            questions = list(pictures)
            self._waiting += questions
            self._stored[questions[0]["split"]] += len(questions)
            if len(self._waiting) >= _GROUP:
                self._write()
        self._bad += bad

    def _write(self) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(self.path, QUESTION_SCHEMA)
        self._file.write_table(pa.Table.from_pylist(self._waiting, schema=QUESTION_SCHEMA))
        self._waiting = []

    def close(self) -> None:
        """Complete the file; without a question there is none."""
        if self._waiting:
            self._write()
        if self._file is not None:
            self._file.close()

    def counts(self) -> dict[str, int]:
        """{"questions", "bad_questions"}; {} where no row had a question."""
        counts = {"questions": self._stored.total(), "bad_questions": self._bad}
        return counts if any(counts.values()) else {}

    def entry(self, split: str) -> dict[str, int]:
        """What shards.json says of a split; {} in a data set without questions."""
        return {"questions": self._stored[split]} if self._stored.total() else {}

    def manifest(self) -> dict[str, Any]:
        """What shards.json says of the closed file; {} where there is none."""
        if not self._stored.total():
            return {}
        return {"questions": {"file": self.path.name, "sha256": storage.sha256_file(self.path)}}


def _usable(question: Question) -> Question:
    """The question as it is stored. One person of several may have said nothing.

    Raises:
        BadValueError: it cannot be used.
    """
    if not 0 <= question.number <= _LARGEST:
        raise BadValueError(f"number {question.number} is not in 0..2^63-1")
    asked = " ".join(text(question.text, "question").split())
    count = len(question.answers)
    answers = tuple(answer(one, f"answer {at} of {count}") for at, one in enumerate(question.answers, start=1))
    if not any(answers):
        raise BadValueError("answer is missing or empty")
    if question.answer_type not in ANSWER_TYPES:
        raise BadValueError(f"answer_type '{question.answer_type}' is none of {', '.join(ANSWER_TYPES)}")
    opening = optional(question.question_type, "question_type")
    return replace(question, text=asked, answers=answers, question_type=opening)
