"""The official accuracy on cases one can read and against the official code; the head on generated questions."""

import importlib.util
import itertools
import json
import math
import random
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmapkd_core import storage
from cmapkd_core.config import EvaluateConfig, VqaConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import Diverged, InputError
from cmapkd_core.evaluate import NotApplicable, Subject, memory, vqa_inputs
from cmapkd_core.evaluate.probe import rise_then_cosine
from cmapkd_core.evaluate.vqa import run_vqa
from cmapkd_core.evaluate.vqa_answers import (
    CONTRACTIONS,
    accuracy,
    comparable,
    normalise,
    plain_words,
    soft_targets,
    vocabulary,
    without_punctuation,
)
from cmapkd_core.evaluate.vqa_head import AnswerTargets, FusionHead, places, train
from cmapkd_core.evaluate.vqa_inputs import FrozenInputs, QuestionInputs, asked
from cmapkd_core.models.build import build
from cmapkd_core.recipes import RECIPES
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards

torch.set_num_threads(1)

# ---- normalisation --------------------------------------------------------------------------------

NORMALISED = {
    "Yes": "yes",
    " a red\nball\t": "red ball",
    "The": "",
    "A cat and an owl": "cat and owl",
    "two": "2",
    "none": "0",
    "one on the left": "1 on left",
    "twenty two": "twenty 2",
    "dont know": "don't know",
    "couldnt've": "couldn't've",
    "couldntve": "couldntve",  # two apostrophes are missing: no entry
    "Im": "im",  # the official table's capitals never meet a word in lower case
    "somebody'd": "somebodyd",  # the official table's own error
    "girl's": "girl's",
    "2:50 pm": "2:50 pm",
    "yes.": "yes",
    "3.5": "3.5",
    "3. 5": "3 5",
    ".5": ".5",
    "u.s.a.": "usa",
    "." * 40: "." * 8,  # 32 go
    "100,978": "100978",
    "black,white": "black white",
    "black, white": "black white",
    "t-shirt": "t shirt",
    "t -shirt": "t shirt",
    "t-shirt - red": "tshirt red",  # a sign that stands beside a blank once goes everywhere
    "1,000-2": "10002",  # with a comma between digits every sign goes without a blank
    "what?!": "what",
    "[b]": "b",
    '"stop"': "stop",
    "50%": "50%",
    "": "",
}


@pytest.mark.parametrize(("answer", "expected"), NORMALISED.items())
def test_normalisation_by_hand(answer, expected):
    assert normalise(answer) == expected


# ---- accuracy -------------------------------------------------------------------------------------


def people(**counts):
    return [answer for answer, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("yes", people(yes=10), 1.0),
        ("no", people(yes=10), 0.0),
        ("yes", people(yes=8, no=2), 1.0),  # the example that the evaluation's author works out
        ("no", people(yes=8, no=2), 0.6),
        ("no", people(yes=9, no=1), 0.3),
        ("no", people(yes=7, no=3), 0.9),
        ("no", people(yes=6, no=4), 1.0),
        ("maybe", people(yes=6, no=4), 0.0),
        ("Two.", [*people(two=3), *["2"] * 3, *people(three=4)], 1.0),  # both sides are normalised
        ("none", [*people(none=5), *["0"] * 5], 1.0),
        ("yes", ["Yes."] * 10, 0.0),  # all ten the same: nothing is normalised, on neither side
        ("Yes.", ["Yes."] * 10, 1.0),
        (" STOP\n", [" STOP"] * 9 + ["STOP\n"], 1.0),  # blanks around do not make a difference
        ("stop", ["STOP"] * 9 + ["go"], 1.0),
        ("yes", people(yes=1), 0.0),  # with one person asked nobody is left to compare with
    ],
)
def test_accuracy_by_hand(said, answers, expected):
    assert accuracy(said, answers) == pytest.approx(expected)


def test_accuracy_is_the_mean_over_the_sets_that_leave_one_out():
    for yes, no in itertools.product(range(11), range(11)):
        answers = people(yes=yes, no=no, red=10 - yes - no)
        if len(answers) != 10 or yes == 10:
            continue
        sets = [answers[:i] + answers[i + 1 :] for i in range(10)]
        mean = sum(min(1.0, others.count("yes") / 3) for others in sets) / 10
        assert accuracy("yes", answers) == pytest.approx(mean)


def official():
    """The class of the official evaluation's first version, as LAVIS carries it."""
    found = importlib.util.find_spec("lavis")
    path = Path(next(iter(found.submodule_search_locations)), "common/vqa_tools/vqa_eval.py") if found else None
    if not path or not path.is_file():
        pytest.skip("the reference is not installed: pip install --no-deps salesforce-lavis")
    spec = importlib.util.spec_from_file_location("official_vqa_eval", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VQAEval


PIECES = [*"ab12 .,;/'-?!:_[](){}\"\n\t", "the ", "one ", "dont ", "Im ", "1,000", "3.5", "...", "couldnt've ", "A "]


def test_strings_are_normalised_as_the_official_code_does():
    reference = official()()
    draw = random.Random(0)
    texts = ["".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 12))) for _ in range(20_000)]
    for text in [*texts, *NORMALISED, *CONTRACTIONS, *reference.contractions, "." * 100]:
        assert without_punctuation(text) == reference.processPunctuation(text)
        assert plain_words(text) == reference.processDigitArticle(text)


class _Answers:
    def __init__(self, qa):
        self.qa = qa

    def getQuesIds(self):  # noqa: N802  the reference calls it so
        return list(self.qa)


def test_accuracy_is_the_official_code_s(capsys):
    """On answers that are normalised already: there the first version and the last have the same rule."""
    words = ["yes", "no", "2", "red ball", "don't know", "2:50 pm", ""]
    draw = random.Random(1)
    truth, said = {}, {}
    for number in range(500):
        answers = [draw.choice(words[: draw.randrange(1, len(words))]) for _ in range(10)]
        rows = [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)]
        truth[number] = {"answers": rows, "question_type": "what", "answer_type": draw.choice(["yes/no", "other"])}
        said[number] = {"answer": draw.choice(words)}
    ours = {n: accuracy(said[n]["answer"], [row["answer"] for row in truth[n]["answers"]]) for n in truth}
    reference = official()(_Answers(truth), _Answers(said), n=9)
    reference.evaluate()
    assert {n: 100 * value for n, value in ours.items()} == pytest.approx(reference.evalQA, abs=1e-6)
    assert 100 * sum(ours.values()) / 500 == pytest.approx(reference.accuracy["overall"], abs=1e-6)


# ---- what can be said -----------------------------------------------------------------------------


def test_the_vocabulary_counts_each_question_with_its_most_frequent_answer():
    training = [
        comparable(people(red=6, blue=4)),
        comparable(people(blue=10)),
        comparable(people(green=4, blue=3, red=3)),
    ]
    assert vocabulary(training, 10) == ["red", "blue", "green"]  # once each: the earlier question first
    assert vocabulary([*training, ["blue"]], 2) == ["blue", "red"]


def test_soft_targets_are_a_third_for_each_person():
    answers = comparable([*people(red=5, blue=2, green=1), "Blue.", "grey"])
    assert answers[-2:] == ["blue", "grey"]
    assert soft_targets(answers, {"blue": 0, "red": 1, "green": 2}) == {1: 1.0, 0: 1.0, 2: pytest.approx(1 / 3)}


# ---- the head -------------------------------------------------------------------------------------

DATA = "data.size=160 data.test_share=0.25 evaluate.batch=16"


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Request and shards of generated pictures with questions."""
    request = Request("tiny", str(tmp_path_factory.mktemp("root")), data="scenes_vqa", overrides=DATA)
    return request, prepare.run(request)


@pytest.fixture(scope="module")
def shards(questions):
    return open_shards(Artifact.open(questions[1]))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return build(RECIPES["tiny"].student, 0, tmp_path_factory.mktemp("model")).eval()


PLAIN = VqaConfig()


def subject_of(backbone, shards: ShardSet, out: Path, vqa: VqaConfig = PLAIN) -> Subject:
    config = EvaluateConfig(batch=16, vqa=vqa)
    nothing = lambda line: None  # noqa: E731
    return Subject(backbone, shards, config, 0, torch.device("cpu"), out, nothing)


def drawn(inputs, size=16, seed=0):
    return list(inputs.batches(size, torch.Generator().manual_seed(seed)))


def by_question(batches):
    """Of each question: its map, embedding and words without padding."""
    return {
        int(position): (batch.maps[i], batch.images[i], batch.words[i][batch.mask[i]])
        for positions, batch in batches
        for i, position in enumerate(positions)
    }


def test_inputs_in_parts_are_those_that_are_kept(backbone, shards, tmp_path):
    subject = subject_of(backbone, shards, tmp_path)
    train = asked(subject, "train")
    kept, parts = FrozenInputs(subject, train, bound=2**30), FrozenInputs(subject, train, bound=1)
    assert kept.kept
    assert (parts.kept, parts.part) == (False, 16)
    whole, pieces = by_question(drawn(kept)), by_question(drawn(parts))
    assert sorted(whole) == sorted(pieces) == list(range(len(train)))  # each question once
    for position in whole:
        for ours, theirs in zip(whole[position], pieces[position], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)  # fp16, and other batches
    first, second = ([p.tolist() for p, _ in drawn(parts, seed=seed)] for seed in (0, 1))
    assert first == [p.tolist() for p, _ in drawn(parts)]
    assert first != second


def test_inputs_are_the_towers_own_states(backbone, shards, tmp_path):
    subject = subject_of(backbone, shards, tmp_path)
    test = asked(subject, "test")
    found = by_question(FrozenInputs(subject, test, 2**30).batches(7, None))
    norm = lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])  # noqa: E731
    with torch.no_grad():
        for i in (0, 5, len(test) - 1):
            text = backbone.text(backbone.tokenize([test.texts[i]]))
            maps, embedding, words = (x.float() for x in found[i])
            torch.testing.assert_close(words, norm(text.taps[-1][0][text.mask[0]]), atol=3e-3, rtol=0)
            assert maps.shape == (16, 24)  # 32 px in patches of 8
            assert embedding.shape == (24,)


def test_too_little_memory_is_said_before_anything_is_computed(backbone, shards, tmp_path):
    subject = subject_of(backbone, shards, tmp_path)
    inputs = FrozenInputs(subject, asked(subject, "val"), 2**30)
    with pytest.raises(InputError, match=r"evaluate\.vqa\.memory_gb=1\.07374e\+09 .* lower it"):
        inputs._check_memory(2**60, 2**60)


def test_each_way_out_of_too_little_memory_leads_out(backbone, shards, tmp_path, monkeypatch):
    subject = subject_of(backbone, shards, tmp_path)
    questions = asked(subject, "train")
    inputs = FrozenInputs(subject, questions, 2**30)
    picture = 2 * inputs.grid**2 * inputs.widths[0] + 2 * inputs.widths[1]
    monkeypatch.setattr(vqa_inputs, "free_memory", lambda: 2 * picture)
    small = replace(subject, config=replace(subject.config, batch=2))
    with pytest.raises(InputError, match="lower it, and each pass"):
        FrozenInputs(small, questions, 8 * picture)
    FrozenInputs(small, questions, 2 * picture)
    with pytest.raises(InputError, match=r"lower evaluate\.batch"):
        FrozenInputs(replace(subject, config=replace(subject.config, batch=8)), questions, picture)
    FrozenInputs(small, questions, picture)


class Held(TorchDispatchMode):
    """Counts the bytes of fp16 tensors that are made and not gone yet; `most`: the largest number so far."""

    def __init__(self):
        super().__init__()
        self.most, self._now, self._known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float16:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage):
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())

    def _let_go(self, name, size):
        self._known.remove(name)
        self._now -= size


@pytest.mark.parametrize("parts", [1, 4])
def test_no_more_pictures_are_held_at_a_time_than_the_bound_says(backbone, shards, tmp_path, parts):
    subject = subject_of(backbone, shards, tmp_path)
    subject.config = replace(subject.config, batch=1)
    train, picture = asked(subject, "train"), 2 * (16 * 24 + 24)
    bound = picture * -(-len(set(train.keys)) // parts)
    inputs = FrozenInputs(subject, train, bound)
    assert inputs.kept == (parts == 1)
    with Held() as held:
        for _ in range(2):  # passes, of which a kept part is made in the first
            for _ in inputs.batches(1, torch.Generator().manual_seed(0)):
                pass
    assert bound <= held.most < 1.5 * bound  # the rest is a batch on its way


GROUPS = {
    "2": {
        "memory.max": 2**20,
        "memory.current": 2**20 - 5000,
        "memory.stat": "anon 9\nactive_file 4000\ninactive_file 96\n",
    },
    "1": {
        "memory/memory.limit_in_bytes": 2**20,
        "memory/memory.usage_in_bytes": 2**20 - 5000,
        "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 4000\ntotal_active_file 96\n",
    },
}


@pytest.mark.parametrize("version", GROUPS)
def test_a_container_s_limit_is_honoured(backbone, shards, tmp_path, monkeypatch, version):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    subject = subject_of(backbone, shards, tmp_path)
    train = asked(subject, "train")
    FrozenInputs(subject, train, 2**30)  # no group, no limit
    for name, content in GROUPS[version].items():
        storage.write_bytes(str(tmp_path / name), str(content).encode())
    assert memory.free_memory() == 5000 + 4096  # what is not taken, and what files have
    with pytest.raises(InputError, match=r"lets task vqa keep 0\.0 GB .* 0\.0 GB are free: lower it"):
        FrozenInputs(subject, train, 2**30)
    limit = next(iter(GROUPS[version]))
    for none in (b"max", b"9223372036854771712"):  # how version 2 and 1 say that there is none
        storage.write_bytes(str(tmp_path / limit), none + b"\n")
        assert memory.free_memory() > 2**27


def test_padding_and_company_change_no_answer(backbone, shards, tmp_path):
    subject = subject_of(backbone, shards, tmp_path)
    inputs = FrozenInputs(subject, asked(subject, "val"), 2**30)
    torch.manual_seed(0)
    head = FusionHead(inputs, torch.full((5,), 0.2), VqaConfig(width=32, layers=2)).eval()
    (_, batch), *_ = drawn(inputs)
    with torch.no_grad():
        together = head(batch)
        for i in range(len(together)):
            own = QuestionInputs(*(tensor[i : i + 1] for tensor in vars(batch).values()))
            length = int(own.mask.sum())
            alone = head(QuestionInputs(own.maps, own.images, own.words[:, :length], own.mask[:, :length]))
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)


def test_an_untrained_head_says_each_answer_as_often_as_people_do(backbone, shards, tmp_path):
    subject = subject_of(backbone, shards, tmp_path)
    inputs = FrozenInputs(subject, asked(subject, "val"), 2**30)
    targets = AnswerTargets([{0: 1.0}, {0: 1.0, 1: 0.5}, {0: 1.0}, {0: 1.0, 1: 0.5}], answers=2)
    torch.testing.assert_close(targets.prior(), torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(targets.dense(torch.tensor([1, 0])), torch.tensor([[1.0, 0.5], [1.0, 0.0]]))
    head = FusionHead(inputs, targets.prior(), VqaConfig(width=32, layers=1))
    torch.testing.assert_close(head.classifier[-1].bias.sigmoid(), torch.tensor([1 - 1e-4, 0.25]))


def test_every_position_of_every_grid_has_its_own_place():
    for grid in (1, 2, 7, 24):
        rows = places(grid, 32)
        assert rows.shape == (grid * grid, 32)
        distances = torch.cdist(rows, rows) + 10 * torch.eye(len(rows))
        assert distances.min() > 1e-2
    with pytest.raises(InputError, match="multiple of 4"):
        FusionHead(None, torch.ones(1), VqaConfig(width=30))


def test_the_learning_rate_rises_and_falls_to_nothing():
    rates = [rise_then_cosine(seen, 1000) for seen in range(1000)]
    assert rates.index(max(rates)) == 50
    assert max(rates) == 1.0
    assert rates[0] < 0.1
    assert rates[-1] < 1e-4
    assert all(math.isfinite(r) and r > 0 for r in rates)


# ---- the task -------------------------------------------------------------------------------------

LEARNS = VqaConfig(epochs=24, batch=32, lr=3e-3, width=32, layers=1)


class Four:
    """Four questions of one batch."""

    def batches(self, size, generator=None):
        yield torch.ones(4, 3), torch.zeros(4, 2)

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("update", [1, 3])
def test_a_gradient_that_is_not_finite_is_no_head(update, value):
    head, seen = torch.nn.Linear(3, 2), [0]

    def poisoned(grad: torch.Tensor) -> torch.Tensor:
        seen[0] += 1
        return grad * value if seen[0] == update else grad

    head.weight.register_hook(poisoned)
    with pytest.raises(
        Diverged, match=r"vqa: in epoch \d the probe's loss is \d\.\d+ and the norm of its gradient .*: lower eval"
    ):
        train(head, Four(), None, VqaConfig(epochs=3), lambda line: None)
    assert all(p.isfinite().all() for p in head.parameters())


@pytest.fixture(scope="module")
def answered(backbone, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return run_vqa(subject_of(backbone, shards, out, LEARNS)), out


def test_the_head_learns_what_a_question_alone_does_not_tell(answered):
    metrics = answered[0].metrics
    assert metrics["overall"] > metrics["prior"] + 10 > metrics["majority"] + 20
    losses = [row["loss"] for row in answered[0].detail["history"]]
    assert losses[-1] < 0.7 * losses[0]


def test_metrics_are_the_official_accuracies_of_the_results_file(answered, shards):
    outcome, out = answered
    results = json.loads((out / "vqa_results.json").read_text())
    assert all(set(row) == {"question_id", "answer"} for row in results)
    assert all(type(row["question_id"]) is int and type(row["answer"]) is str for row in results)
    truth = {row["number"]: row for row in shards.questions("test").to_pylist()}
    assert sorted(row["question_id"] for row in results) == sorted(truth)
    for kind, name in (("yes/no", "yes_no"), ("number", "number"), ("other", "other"), ("", "overall")):
        own = [
            accuracy(row["answer"], truth[row["question_id"]]["answers"])
            for row in results
            if kind in ("", truth[row["question_id"]]["answer_type"])
        ]
        assert outcome.metrics[name] == pytest.approx(100 * sum(own) / len(own))
    assert outcome.metrics["questions"] == len(results)
    assert outcome.metrics["sayable"] == 100.0


def test_majority_is_the_accuracy_of_one_answer_for_all(answered, shards):
    training = [comparable(row["answers"]) for row in shards.questions("train").to_pylist()]
    (most,) = vocabulary(training, 1)
    own = [accuracy(most, row["answers"]) for row in shards.questions("test").to_pylist()]
    assert answered[0].metrics["majority"] == pytest.approx(100 * sum(own) / len(own))
    assert answered[0].metrics["answers"] == len(vocabulary(training, 3129))


def test_the_detail_has_question_types_and_examples_of_both_kinds(answered, shards):
    detail = answered[0].detail
    json.dumps(detail)
    kinds = detail["question_types"]
    assert sum(row["questions"] for row in kinds.values()) == answered[0].metrics["questions"]
    mean = sum(row["accuracy"] * row["questions"] for row in kinds.values()) / answered[0].metrics["questions"]
    assert mean == pytest.approx(answered[0].metrics["overall"])
    truth = {row["number"]: row for row in shards.questions("test").to_pylist()}
    assert [example["accuracy"] for example in detail["examples"]] == [1.0] * 10 + [0.0] * 10
    for example in detail["examples"]:
        row = truth[example["number"]]
        assert (example["key"], example["question"], example["answers"]) == (row["key"], row["text"], row["answers"])
        assert accuracy(example["said"], example["answers"]) == example["accuracy"]


def test_the_same_seed_gives_the_same_answers_whatever_was_drawn_before(backbone, shards, tmp_path):
    short = VqaConfig(epochs=1, batch=32, lr=3e-3, width=16, layers=1)
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append(run_vqa(subject_of(backbone, shards, tmp_path, short)))
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1]
    other = run_vqa(subject_of(backbone, shards, tmp_path, VqaConfig(epochs=1, batch=32, width=16, layers=1, seed=1)))
    assert other.detail["history"] != runs[0].detail["history"]


def test_a_small_vocabulary_leaves_questions_that_cannot_be_answered(backbone, shards, tmp_path):
    outcome = run_vqa(subject_of(backbone, shards, tmp_path, VqaConfig(answers=2, epochs=1, width=16, layers=1)))
    said = {row["answer"] for row in json.loads((tmp_path / "vqa_results.json").read_text())}
    assert outcome.metrics["answers"] == 2
    assert len(said) <= 2
    assert outcome.metrics["overall"] <= outcome.metrics["sayable"] < 60


@pytest.mark.parametrize("field", ["answers", "epochs", "batch", "layers", "memory_gb"])
def test_settings_that_cannot_be_are_refused(backbone, shards, tmp_path, field):
    with pytest.raises(InputError, match=r"evaluate\.vqa: .* at least 1"):
        run_vqa(subject_of(backbone, shards, tmp_path, VqaConfig(**{field: 0})))


def test_without_questions_the_task_does_not_apply(backbone, tiny_shards, tmp_path):
    with pytest.raises(NotApplicable, match=r"no questions: .* easy_vqa"):
        run_vqa(subject_of(backbone, open_shards(Artifact.open(tiny_shards)), tmp_path))


def test_the_stage_answers_and_keeps_the_results_file(questions):
    request, url = questions
    found = Artifact.open(evaluate.run(request, model="recipe:student", shards=url, task="vqa"))
    assert {"metrics.json", "vqa.json", "vqa_results.json"} <= set(found.files())
    metrics = json.loads(found.fetch("metrics.json").read_bytes())
    assert {f"vqa/{name}" for name in ("overall", "yes_no", "number", "other", "majority", "sayable")} <= set(metrics)


def test_the_stage_leaves_the_task_out_of_data_without_questions(tiny_shards, tmp_path, capsys):
    request = Request("tiny", str(tmp_path), overrides="evaluate.tasks=retrieval,vqa")
    url = evaluate.run(request, model="recipe:student", shards=tiny_shards)
    assert "vqa is left out: split 'train' of" in capsys.readouterr().out
    assert not [n for n in json.loads(Artifact.open(url).fetch("metrics.json").read_bytes()) if n.startswith("vqa/")]
