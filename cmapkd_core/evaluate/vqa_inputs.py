"""Questions of a split, and what frozen towers give for them: computed once, or a part of the pictures at a time.

Shapes: B questions, P positions of a picture's final map, C its channels, E the joint embedding, N tokens, D width
of the text tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cmapkd_core.data.loader import eval_batches
from cmapkd_core.data.shards import NoQuestionsError
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.evaluate.memory import free_memory
from cmapkd_core.evaluate.subject import NotApplicable, Subject
from cmapkd_core.evaluate.vqa_answers import comparable
from cmapkd_core.progress import Progress


@dataclass(frozen=True)
class Asked:
    """The questions of a split, in table order."""

    split: str
    numbers: list[int]
    keys: list[str]  # of the pictures
    rows: Tensor  # [n] long, the pictures' positions in the split's table
    texts: list[str]
    answers: list[list[str]]  # as people wrote them
    answer_types: list[str]
    question_types: list[str]

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def comparable(self) -> list[list[str]]:
        """The answers as the official evaluation compares them."""
        return [comparable(answers) for answers in self.answers]


def asked(subject: Subject, split: str, most: int = 0) -> Asked:
    """The questions of a split, the first `most` of them where that is not 0.

    Raises:
        NotApplicable: there are none.
    """
    try:
        table = subject.shards.questions(split)
    except NoQuestionsError as error:
        raise NotApplicable(str(error)) from None
    table = table.slice(0, most) if most else table
    place = {key: row for row, key in enumerate(subject.shards.keys(split))}
    columns = table.to_pydict()
    rows = torch.tensor([place[key] for key in columns["key"]], dtype=torch.long)
    names = ("text", "answers", "answer_type", "question_type")
    return Asked(split, columns["number"], columns["key"], rows, *(columns[name] for name in names))


@dataclass(frozen=True)
class QuestionInputs:
    """What the head gets of B questions, fp16; all but the mask is layer-normed, so that no tower's scale counts."""

    maps: Tensor  # [B, P, C], row by row
    images: Tensor  # [B, E]
    words: Tensor  # [B, N, D]
    mask: Tensor  # bool [B, N], True where there is a word

    def to(self, device: torch.device) -> QuestionInputs:
        """The same on a device."""
        return QuestionInputs(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


@dataclass(frozen=True)
class _Pictures:
    place: dict[int, int]  # of a row of the split's table in the tensors
    maps: Tensor
    images: Tensor


class FrozenInputs:
    """The towers' states of a split's questions, in batches.

    Texts are kept, each once and without padding. Pictures are kept where all of them fit into `bound` bytes;
    otherwise every pass goes through them in parts that do, each part's questions shuffled, so that a picture is
    computed once a pass and not once a question.

    Raises:
        InputError: what is to be kept is more than the machine, or this container, has free.
    """

    def __init__(self, subject: Subject, questions: Asked, bound: int) -> None:
        self.subject, self.questions = subject, questions
        self.rows = sorted(set(questions.rows.tolist()))
        first = _layer_normed_pictures(subject, questions.split, self.rows[:1], lambda done: None)
        self.grid = math.isqrt(first.maps.shape[1])
        self.widths = first.maps.shape[2], first.images.shape[1]
        picture = 2 * (first.maps.numel() + first.images.numel())
        self.part = max(subject.config.batch, bound // picture)
        self.kept = len(self.rows) <= self.part
        self._check_memory(picture * min(len(self.rows), self.part), bound)
        texts = sorted(set(questions.texts))
        self._text_of = {text: i for i, text in enumerate(texts)}
        self._words = _layer_normed_texts(subject, texts)
        self._all: _Pictures | None = None

    @property
    def text_width(self) -> int:
        """D."""
        return self._words[0].shape[1]

    def batches(self, size: int, generator: torch.Generator | None) -> Iterator[tuple[Tensor, QuestionInputs]]:
        """(positions in the questions [B], their inputs on the subject's device), each question once.

        Args:
            size: questions a batch; a part's last one may be smaller.
            generator: of the order; None: the order of the questions' pictures in the table.
        """
        rows = torch.tensor(self.rows)
        if generator and not self.kept:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        for part in rows.split(self.part):
            pictures = self._pictures(part.tolist())
            positions = torch.isin(self.questions.rows, part).nonzero()[:, 0]
            if generator:
                positions = positions[torch.randperm(len(positions), generator=generator)]
            for chosen in positions.split(size):
                yield chosen, self._inputs(chosen, pictures).to(self.subject.device)
            del pictures  # before the next part is made: the bound is of one

    def _inputs(self, positions: Tensor, pictures: _Pictures) -> QuestionInputs:
        """The inputs of the questions at positions, long [B]."""
        place = torch.tensor([pictures.place[row] for row in self.questions.rows[positions].tolist()])
        words = [self._words[self._text_of[self.questions.texts[i]]] for i in positions.tolist()]
        lengths = torch.tensor([len(states) for states in words])
        padded = pad_sequence(words, batch_first=True)
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        return QuestionInputs(pictures.maps[place], pictures.images[place], padded, mask)

    def _pictures(self, rows: Sequence[int]) -> _Pictures:
        if self.kept and self._all is not None:
            return self._all
        split, count = self.questions.split, len(rows)
        progress = Progress(self.subject.say, "vqa", count, "pictures")
        pictures = _layer_normed_pictures(
            self.subject, split, rows, lambda done: progress(done, f"{done}/{count} pictures of split {split}")
        )
        if self.kept:
            self._all = pictures
        return pictures

    def _check_memory(self, needed: int, bound: int) -> None:
        free = free_memory()
        if needed > free:
            way_out = "lower it, and each pass goes through the pictures in parts"
            if needed > bound:  # the pictures of one batch, whatever the bound
                way_out = "lower evaluate.batch, whose pictures are kept at once"
            raise InputError(
                f"evaluate.vqa.memory_gb={bound / 2**30:g} lets task vqa keep {needed / 2**30:.1f} GB of features and "
                f"{free / 2**30:.1f} GB are free: {way_out}"
            )


def _layer_norm(states: Tensor) -> Tensor:
    """[.., D] -> fp16 [.., D] over the last dimension; the norm also keeps large states inside fp16's range."""
    return F.layer_norm(states.float(), states.shape[-1:]).half().cpu()


@torch.no_grad()
def _layer_normed_texts(subject: Subject, texts: Sequence[str]) -> list[Tensor]:
    """States [N, D] of every text's own tokens."""
    normed: list[Tensor] = []
    backbone, batch = subject.backbone, subject.config.batch
    progress = Progress(subject.say, "vqa", len(texts), "questions")
    for start in range(0, len(texts), batch):
        features = backbone.text(backbone.tokenize(list(texts[start : start + batch])).to(subject.device))
        assert features.mask is not None, "text features carry their mask"
        states, lengths = _layer_norm(features.taps[-1]), features.mask.sum(dim=1).tolist()
        normed += [own[:length].clone() for own, length in zip(states, lengths, strict=True)]
        progress(len(normed))
    return normed


@torch.no_grad()
def _layer_normed_pictures(
    subject: Subject, split: str, rows: Sequence[int], progress: Callable[[int], None]
) -> _Pictures:
    """Final maps and embeddings of the pictures at `rows` of a split's table."""
    backbone, done = subject.backbone, 0
    given = (subject.config.batch, subject.workers, rows, subject.device)
    maps = images = torch.empty(0)
    for _, pixels in eval_batches(subject.shards, split, side_of(backbone), *given):
        features = backbone.vision(pixels)
        normed = _layer_norm(backbone.final_map(features).flatten(2).transpose(1, 2)), _layer_norm(features.embedding)
        if not done:  # in place and not from a list, which would be there twice when it is joined
            maps, images = (part.new_empty(len(rows), *part.shape[1:]) for part in normed)
        here = slice(done, done + len(pixels))
        maps[here], images[here] = normed
        done = here.stop
        progress(done)
    return _Pictures({row: place for place, row in enumerate(rows)}, maps, images)
