"""Task vqa: open questions about pictures, answered by the same small head on every model's frozen towers.

The result is a probe of what the towers' states hold: no number of a model that was trained on questions as a
whole compares with it. Answers are scored as VQAv2's official evaluation scores them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from cmapkd_core.data.order import hash64
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.probe import seeded
from cmapkd_core.evaluate.subject import Evaluated, NotApplicable, Subject
from cmapkd_core.evaluate.vqa_answers import accuracy, soft_targets, vocabulary
from cmapkd_core.evaluate.vqa_head import AnswerTargets, FusionHead, LabelledQuestions, best_answers, train
from cmapkd_core.evaluate.vqa_inputs import Asked, FrozenInputs, asked

RESULTS = "vqa_results.json"  # in the official format: [{"question_id": int, "answer": str}]
VALIDATION = 2048  # questions of split val whose loss is reported, at most
_EXAMPLES = 20
T = TypeVar("T")
_NAMES = {"yes/no": "yes_no", "number": "number", "other": "other"}  # metrics of the answer types


def run_vqa(subject: Subject) -> Evaluated:
    """Train the head on split train, answer the evaluated split's questions, score the answers.

    Metrics in percent: overall and each answer type's official accuracy; `majority`, of always saying the most
    frequent training answer; `prior`, of saying the most frequent one of the question's type, which no picture is
    needed for; `sayable`, the share of questions of which a person's answer is in the vocabulary. And counts.

    Writes RESULTS into `subject.out`.

    Raises:
        NotApplicable: no question to train on, or none in the split.
        InputError: settings of evaluate.vqa that cannot be, or a stored picture that does not match its checksum.
    """
    config = subject.config.vqa
    if min(config.answers, config.epochs, config.batch, config.layers) < 1 or config.memory_gb <= 0:
        raise InputError("evaluate.vqa: answers, epochs, batch and layers must be at least 1, memory_gb above 0")
    training, tested = asked(subject, "train"), asked(subject, subject.config.split)
    answers = vocabulary(training.comparable, config.answers)
    predictions, history = _answer(subject, training, tested, answers)
    results = [{"question_id": n, "answer": a} for n, a in zip(tested.numbers, predictions, strict=True)]
    (subject.out / RESULTS).write_text(json.dumps(results), encoding="utf-8")
    scores = _scores(predictions, tested)
    metrics = _by_answer_type(scores, tested)
    metrics["majority"] = _percent(_scores([answers[0]] * len(tested), tested))
    metrics["prior"] = _percent(_scores(_prior(training, tested), tested))
    metrics["sayable"] = _percent([not set(own).isdisjoint(answers) for own in tested.comparable])
    metrics |= {"questions": float(len(tested)), "answers": float(len(answers))}
    detail = {
        "split": tested.split,
        "config": asdict(config),
        "metrics": metrics,
        "answers": len(answers),
        "training_questions": len(training),
        "history": history,
        "question_types": _by_question_type(scores, tested),
        "examples": _examples(scores, predictions, tested),
    }
    return Evaluated(metrics, detail)


def _answer(
    subject: Subject, training: Asked, tested: Asked, answers: list[str]
) -> tuple[list[str], list[dict[str, float]]]:
    """What the trained head says to each question of `tested`, and its losses by epoch; all of it from config.seed."""
    config, bound = subject.config.vqa, int(subject.config.vqa.memory_gb * 2**30)
    place = {answer: number for number, answer in enumerate(answers)}
    labelled = _labelled(subject, training, place, bound)
    with seeded(config.seed, subject.device):
        head = FusionHead(labelled.inputs, labelled.targets.prior(), config).to(subject.device)
        history = train(head, labelled, _held_out(subject, place, bound), config, subject.say)
    del labelled  # the test split's features may need its room
    losses = ", ".join(f"{name} {value:.4f}" for name, value in history[-1].items() if name != "epoch")
    subject.say(f"vqa: head trained on {len(training)} questions for {config.epochs} epochs, {losses}\n")
    best = best_answers(head, FrozenInputs(subject, tested, bound), config.batch)
    return [answers[number] for number in best.tolist()], history


def _held_out(subject: Subject, place: dict[str, int], bound: int) -> LabelledQuestions | None:
    """Questions of split val; None where there are none."""
    try:
        return _labelled(subject, asked(subject, "val", most=VALIDATION), place, bound)
    except NotApplicable:
        return None


def _labelled(subject: Subject, questions: Asked, place: dict[str, int], bound: int) -> LabelledQuestions:
    targets = AnswerTargets([soft_targets(own, place) for own in questions.comparable], len(place))
    return LabelledQuestions(FrozenInputs(subject, questions, bound), targets)


def _scores(predictions: Iterable[str], questions: Asked) -> list[float]:
    """Official accuracy of each answer, 0..1."""
    return [accuracy(one, own) for one, own in zip(predictions, questions.answers, strict=True)]


def _percent(shares: Sequence[float]) -> float:
    return 100 * sum(shares) / len(shares)


def _by_answer_type(scores: list[float], questions: Asked) -> dict[str, float]:
    """Overall, and each answer type that the split has."""
    groups = _grouped(scores, questions.answer_types)
    return {"overall": _percent(scores), **{n: _percent(groups[kind]) for kind, n in _NAMES.items() if kind in groups}}


def _by_question_type(scores: list[float], questions: Asked) -> dict[str, dict[str, float]]:
    groups = _grouped(scores, questions.question_types)
    return {kind: {"accuracy": _percent(own), "questions": len(own)} for kind, own in sorted(groups.items())}


def _prior(training: Asked, tested: Asked) -> list[str]:
    """The most frequent training answer of each question's type; of all questions where training has no such type."""
    groups = _grouped(training.comparable, training.question_types)
    common = {kind: vocabulary(own, 1)[0] for kind, own in groups.items()}
    most = vocabulary(training.comparable, 1)[0]
    return [common.get(kind, most) for kind in tested.question_types]


def _grouped(values: Sequence[T], kinds: Sequence[str]) -> dict[str, list[T]]:
    groups = defaultdict(list)
    for value, kind in zip(values, kinds, strict=True):
        groups[kind].append(value)
    return dict(groups)


def _examples(scores: list[float], predictions: list[str], questions: Asked) -> list[dict[str, Any]]:
    """Answered in full and not at all in equal numbers, where there are enough; the same questions for every model."""
    order = sorted(range(len(scores)), key=lambda i: hash64(str(questions.numbers[i]), "vqa examples"))
    right, wrong = ([i for i in order if scores[i] == score] for score in (1.0, 0.0))
    half = _EXAMPLES // 2
    chosen = [*right[: max(half, _EXAMPLES - len(wrong))], *wrong[: max(half, _EXAMPLES - len(right))]]
    return [
        {
            "key": questions.keys[i],
            "number": questions.numbers[i],
            "question": questions.texts[i],
            "answers": questions.answers[i],
            "said": predictions[i],
            "accuracy": scores[i],
        }
        for i in chosen
    ]
