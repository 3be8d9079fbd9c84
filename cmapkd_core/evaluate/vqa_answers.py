"""Answers as VQAv2's official evaluation reads and scores them, and the vocabulary that a head may say.

The rules are those of the evaluation's code, quirks included, as of its last version (github.com/GT-Vision-Lab/VQA;
its first version, which LAVIS carries, normalised every said answer, and of people's answers the punctuation alone).
Where ten people gave the very same answer nothing is normalised, on purpose: such questions ask for text in the
picture, says its author (issue 14 there).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # the evaluation's look-behind has a typing error and never holds
_PERIODS = 32  # its call hands re.UNICODE over as the largest number of periods to remove, which is 32
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# What lacks one apostrophe gets it. The last entry is the official table's own, the wrong way round.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTED.split() for i, sign in enumerate(word) if sign == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"


def without_punctuation(text: str) -> str:
    """`text` with its punctuation replaced: by nothing where it stands beside a blank, else by a blank.

    A comma between digits makes everything count as beside a blank. Periods go but before a digit; apostrophes
    and colons stay.
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    replaced = text
    for sign in _PUNCTUATION:
        if sign in text:
            beside = f"{sign} " in text or f" {sign}" in text
            replaced = replaced.replace(sign, "" if beside or number else " ")
    return _PERIOD.sub("", replaced, count=_PERIODS)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes, single blanks."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=2**17)
def normalise(answer: str) -> str:
    """An answer as the evaluation compares it where people disagree."""
    return plain_words(without_punctuation(_one_line(answer)))


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def unanimous(answers: Sequence[str]) -> bool:
    """Whether everybody wrote the very same."""
    return len({_one_line(answer) for answer in answers}) == 1


def comparable(answers: Sequence[str]) -> list[str]:
    """People's answers as the evaluation compares them: normalised, but as written where all are the same."""
    return [_one_line(a) for a in answers] if unanimous(answers) else [normalise(a) for a in answers]


def accuracy(answer: str, answers: Sequence[str]) -> float:
    """Official accuracy of one answer, in 0..1.

    The mean of min(n / 3, 1) over the sets that leave one person out, n of the others having said the same.
    An answer of ten people counts in full from the fourth; of three who say it, 0.9.
    """
    normalised = _one_line(answer) if unanimous(answers) else normalise(answer)
    same, people = comparable(answers).count(normalised), len(answers)
    return (same * min(1.0, (same - 1) / 3) + (people - same) * min(1.0, same / 3)) / people


def vocabulary(training: Iterable[Sequence[str]], size: int) -> list[str]:
    """The `size` most frequent answers, most frequent first, each question counting with its most frequent one.

    That is how VQAv2's 3,129 came about (Teney et al. 2018: its answers with nine questions or more). An earlier
    question goes first where counts are equal.

    Args:
        training: `comparable` answers of every training question.
    """
    counts = Counter(Counter(answers).most_common(1)[0][0] for answers in training)
    return [answer for answer, _ in counts.most_common(size)]


def soft_targets(answers: Sequence[str], places: dict[str, int]) -> dict[int, float]:
    """min(n / 3, 1) of every answer that can be said, n people having said it; `answers` as `comparable`."""
    return {places[a]: min(n / 3, 1.0) for a, n in Counter(answers).items() if a in places}
