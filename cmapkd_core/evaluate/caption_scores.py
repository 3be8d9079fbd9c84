"""BLEU, ROUGE-L, CIDEr and METEOR of captions, by the COCO tools (pycocoevalcap).

METEOR and the Penn Treebank (PTB) tokenisation run in Java, which a machine may not have. Without it the words of
`caption_tokens` take that tokenisation's place and METEOR is left out, and the result says so. SPICE is
always left out: it downloads the models of its parser.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from cmapkd_core.evaluate.caption_tokens import words

JAVA = "install a Java runtime; into the image with make images APT_PACKAGES=default-jre-headless"
SECONDS = 600  # that the tokenisation may take: 45,000 captions take about one

Texts = dict[str, list[str]]  # captions by key; once tokenised, tokens with a blank between them


class NoJava(Exception):
    """Java is missing, or did not do what it was asked; the message is for the one who reads the result."""


@dataclass
class Scores:
    """Scores of several systems on the same references, and how they came about."""

    systems: dict[str, dict[str, float]]  # system -> metric -> score times 100
    tokenizer: str  # a name of TOKENIZERS
    left_out: dict[str, str] = field(default_factory=lambda: {"SPICE": "it downloads the models of its parser"})


def score(references: Texts, systems: Mapping[str, Mapping[str, str]]) -> Scores:
    """Scores of what each system says of each key, against all references of the key.

    Args:
        references: at least one for each key.
        systems: name -> key -> caption; every system says one of every key.

    Returns:
        BLEU-1..4, ROUGE-L, CIDEr and, where Java works, METEOR: all times 100. CIDEr counts documents in the
        given references, as the COCO tools do, so it is 0 where there is one image.
    """
    texts = [references, *({key: [generated[key]] for key in references} for generated in systems.values())]
    lines = [text for part in texts for captions in part.values() for text in captions]
    try:
        name, tokens = "ptb", iter(TOKENIZERS["ptb"].tokens(lines))
        missing = ""
    except NoJava as reason:
        name, tokens, missing = "plain", iter(TOKENIZERS["plain"].tokens(lines)), str(reason)
    truth, *spoken = [{key: [next(tokens) for _ in captions] for key, captions in part.items()} for part in texts]
    result = Scores(
        {system: _scores(truth, generated) for system, generated in zip(systems, spoken, strict=True)}, name
    )
    try:
        if missing:
            raise NoJava(missing)
        for metrics, value in zip(result.systems.values(), _meteors(truth, spoken), strict=True):
            metrics["METEOR"] = value
    except NoJava as reason:
        result.left_out["METEOR"] = str(reason)
    return result


def _scores(truth: Texts, generated: Texts) -> dict[str, float]:
    bleu = Bleu(4).compute_score(truth, generated, verbose=0)[0]
    values = {f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}
    values |= {
        "ROUGE-L": Rouge().compute_score(truth, generated)[0],
        "CIDEr": Cider().compute_score(truth, generated)[0],
    }
    return {name: 100 * float(value) for name, value in values.items()}


def _meteors(truth: Texts, systems: Sequence[Texts]) -> list[float]:
    """METEOR of each system, from one Java process: it reads its paraphrases for seconds before it answers."""
    try:
        scorer = Meteor()
    except OSError as error:
        raise NoJava(f"METEOR needs Java, which does not start here: {error}; {JAVA}") from None
    try:
        return [100 * float(scorer.compute_score(truth, generated)[0]) for generated in systems]
    except (OSError, ValueError) as error:
        raise NoJava(f"METEOR's Java program failed: {error}") from None
    finally:
        # Its destructor would wait for ever for a lock that a failure left closed, and fail at words that nobody read.
        if scorer.lock.locked():
            scorer.lock.release()
        with suppress(OSError):
            scorer.meteor_p.stdin.close()


def plain_tokens(lines: Sequence[str]) -> list[str]:
    """The words of `caption_tokens`, which a decoder says as well."""
    return [" ".join(words(line)) for line in lines]


def ptb_tokens(lines: Sequence[str]) -> list[str]:
    """What pycocoevalcap's PTBTokenizer gives, in one call of Java, and without writing into the package's folder.

    Raises:
        NoJava: no Java, or one that did not answer every line.
    """
    folder = Path(ptbtokenizer.__file__).parent
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR, *program]
    flat = "".join(" ".join(line.split()) + "\n" for line in lines)  # one line each, whatever breaks they hold
    try:
        done = subprocess.run(
            command, input=flat.encode(), cwd=folder, capture_output=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoJava(f"the PTB tokenizer and METEOR need Java, which does not work here: {error}; {JAVA}") from None
    tokenized = done.stdout.decode().split("\n")[:-1]
    if len(tokenized) != len(lines):
        raise NoJava(f"the PTB tokenizer gave {len(tokenized)} lines for {len(lines)} captions")
    drop = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.split() if token not in drop) for line in tokenized]


@dataclass(frozen=True)
class Tokenizer:
    """A row of TOKENIZERS."""

    says: str  # what a result says of it
    tokens: Callable[[Sequence[str]], list[str]]


TOKENIZERS = {
    "ptb": Tokenizer("PTB: Stanford's, lower case, punctuation removed, as the COCO tools do", ptb_tokens),
    "plain": Tokenizer("plain: lower-case words without punctuation, in place of PTB, which needs Java", plain_tokens),
}
