"""Scores of captions: by hand, by their papers, and by the COCO tools; with and without Java."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter

import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from cmapkd_core.evaluate import caption_scores

JAVA = shutil.which("java")


@pytest.fixture
def broken_java(tmp_path, monkeypatch):
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def no_java(tmp_path, monkeypatch):
    """METEOR reads its paraphrases for seconds, so most tests go without."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_bleu_1_and_rouge_l_by_hand(no_java):
    """4 of 6 words match (`the` counts twice at most); the longest common subsequence has 3."""
    references = {"x": ["the cat is on the mat"]}
    got = caption_scores.score(references, {"": {"x": "the the the cat the mat"}}).systems[""]
    assert got["BLEU-1"] == pytest.approx(100 * 4 / 6)
    lcs = 4 / 6  # the .. cat .. the mat
    assert got["ROUGE-L"] == pytest.approx(100 * lcs)
    assert got["CIDEr"] == 0  # one image: every word is in every document


def test_a_short_caption_pays_the_brevity_penalty_and_all_captions_are_references(no_java):
    references = {"x": ["a red cat on a mat", "one cat"], "y": ["a dog runs"]}
    said = {"x": "one cat", "y": "a dog"}
    got = caption_scores.score(references, {"": said}).systems[""]
    # 4 words said; the closest references have 2 + 3
    assert got["BLEU-1"] == pytest.approx(100 * float(torch.exp(torch.tensor(1 - 5 / 4))), rel=1e-5)
    beta, recall = 1.2, 2 / 3
    assert got["ROUGE-L"] == pytest.approx(50 * (1 + (1 + beta**2) * recall / (recall + beta**2)))


def grams(text, n):
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def cider_d(truth, said):
    """CIDEr-D from its paper (Vedantam et al. 2015, section 5), once more and slowly, of one caption a key."""
    total = 0.0
    for key, n in itertools.product(said, range(1, 5)):
        documents = Counter(g for texts in truth.values() for g in {g for text in texts for g in grams(text, n)})
        for reference in truth[key]:
            mine, theirs = (
                {g: count * math.log(len(truth) / max(1, documents[g])) for g, count in grams(text, n).items()}
                for text in (said[key][0], reference)
            )
            norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
            dot = sum(min(mine[g], theirs[g]) * theirs[g] for g in mine.keys() & theirs.keys())
            apart = len(said[key][0].split()) - len(reference.split())
            total += (dot / norm if norm else 0.0) * math.exp(-(apart**2) / (2 * 6**2)) / len(truth[key])
    return 100 * 10 * total / 4 / len(said)


def test_cider_follows_its_paper(no_java):
    truth = {key: caption_scores.plain_tokens(texts) for key, texts in SENTENCES.items()}
    said = {key: caption_scores.plain_tokens([text]) for key, text in SAID.items()}
    got = caption_scores.score(SENTENCES, {"": SAID}).systems[""]
    assert got["CIDEr"] == pytest.approx(cider_d(truth, said), rel=1e-6)
    assert got["CIDEr"] > 10


SENTENCES = {
    "1": ["A man's dog, isn't it?", "a dog (brown) runs on the well-kept grass."],
    "2": ["two people at 3.5 km", "Two people -- and a cat; they sit!"],
    "3": ["the u.s. flag", "\u201cflag\u201d of the United States"],
}
SAID = {"1": "a man 's dog runs on grass", "2": "two people and a dog", "3": "a flag of the states"}


def official_tokens(captions):
    return PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in captions.items()})


@pytest.mark.skipif(not JAVA, reason="the PTB tokenizer needs Java")
def test_tokens_are_those_of_the_coco_tools():
    for key, expected in official_tokens(SENTENCES).items():
        assert caption_scores.ptb_tokens(SENTENCES[key]) == expected


@pytest.mark.slow
@pytest.mark.skipif(not JAVA, reason="the PTB tokenizer and METEOR need Java")
def test_scores_are_those_of_the_coco_tools():
    truth, said = official_tokens(SENTENCES), official_tokens({key: [text] for key, text in SAID.items()})
    got = caption_scores.score(SENTENCES, {"": SAID, "again/": SAID})
    assert got.tokenizer == "ptb"
    assert set(got.left_out) == {"SPICE"}
    assert got.systems[""] == got.systems["again/"]
    expected = {f"BLEU-{n + 1}": v for n, v in enumerate(Bleu(4).compute_score(truth, said, verbose=0)[0])}
    for name, scorer in {"ROUGE-L": Rouge(), "CIDEr": Cider(), "METEOR": Meteor()}.items():
        expected[name] = scorer.compute_score(truth, said)[0]
    assert got.systems[""] == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-9)


@pytest.mark.skipif(not JAVA, reason="the PTB tokenizer needs Java")
def test_a_line_separator_shifts_no_captions():
    assert caption_scores.ptb_tokens(["a\u2028b\nc", "", "d"]) == ["a b c", "", "d"]


@pytest.mark.parametrize("java", ["no_java", "broken_java"])
def test_without_java_the_plain_words_count_and_the_result_says_so(java, request):
    request.getfixturevalue(java)
    got = caption_scores.score(SENTENCES, {"": SAID})
    assert got.tokenizer == "plain"
    assert "Java" in got.left_out["METEOR"]
    assert set(got.systems[""]) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}


@pytest.mark.skipif(not JAVA, reason="METEOR needs Java")
def test_a_meteor_that_fails_after_the_tokenizer_is_left_out_and_does_not_hang(tmp_path, monkeypatch):
    program = tmp_path / "java"
    program.write_text(f'#!/bin/sh\n[ "$1" = -jar ] && exit 3\nexec {JAVA} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    got = caption_scores.score(SENTENCES, {"": SAID})
    assert got.tokenizer == "ptb"
    assert "METEOR's Java program failed" in got.left_out["METEOR"]
