"""Task captioning: how well a small decoder, trained on a frozen image tower, says what is in a picture.

A dual encoder says nothing by itself. So these are scores of a probe: the same decoder, vocabulary and number of
updates for every model, to be compared with other models under the same probe and with nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cmapkd_core.data.shards import ShardSet
from cmapkd_core.evaluate import caption_scores
from cmapkd_core.evaluate.caption_decoder import PrefixDecoder
from cmapkd_core.evaluate.caption_images import TrainingFeatures, image_features
from cmapkd_core.evaluate.caption_tokens import Vocabulary
from cmapkd_core.evaluate.caption_training import train
from cmapkd_core.evaluate.subject import Evaluated, NotApplicable, Subject
from cmapkd_core.progress import Progress, Say

RESULTS = "captions_results.json"  # in COCO's results format
_IMAGE_ID = re.compile(r"(?:coco-)?([0-9]+)")
EXAMPLES = 12


def run_captioning(subject: Subject) -> Evaluated:
    """BLEU-1..4, ROUGE-L, CIDEr and METEOR, times 100, of captions for the split's images; all its captions count.

    `baseline/..`: always saying the most frequent training caption. `shuffled/..`: the decoder's captions, each given
    to another image: what it scores without looking. Images without a caption are counted and left out.
    Writes RESULTS into the evaluation's folder.

    Raises:
        NotApplicable: no image with a caption in split train, or in the split that is measured.
        InputError: a stored image that does not match its checksum.
    """
    config, split = subject.config.captioning, subject.config.split
    learned, asked = captioned(subject.shards, "train"), captioned(subject.shards, split)
    texts = [text for captions in learned.values() for text in captions]
    vocabulary = Vocabulary.of(texts, config.vocabulary)
    images = TrainingFeatures(subject, list(learned))
    decoder, losses = train(images, list(learned.values()), vocabulary, config, subject.device, subject.say)
    keys = subject.column("key")
    references = {keys[i]: captions for i, captions in asked.items()}
    generated = dict(zip(references, describe(subject, decoder, list(asked), vocabulary), strict=True))
    (subject.out / RESULTS).write_text(json.dumps(coco_results(generated)), encoding="utf-8")
    frequent = most_frequent(texts)
    metrics, how = scored(references, generated, frequent, subject.say)
    metrics |= {
        "images": float(len(asked)),
        "images_without_caption": float(len(keys) - len(asked)),
        "vocabulary": float(len(vocabulary)),
        "unknown_words": vocabulary.unknown(text for captions in asked.values() for text in captions),
    }
    training = {"images": len(learned), "captions": len(texts), "unknown_words": vocabulary.unknown(texts)}
    detail = {
        "split": split,
        "metrics": metrics,
        "config": dataclasses.asdict(config),
        **how,
        "train": {**training, "loss": losses, "features_bytes": images.bytes, "features_held": images.held},
        "decoder": {"parameters": sum(p.numel() for p in decoder.parameters()), "prefix": decoder.positions},
        "baseline": frequent,
        "examples": examples(generated, references),
    }
    return Evaluated(metrics, detail)


def scored(
    references: dict[str, list[str]], generated: dict[str, str], frequent: str, say: Say
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of the captions and, by prefix, of the two that look at no image; the tokenizer and what was left out.

    `shuffled/` turns the captions by half the images.
    """
    half, captions = len(generated) // 2, list(generated.values())
    systems = {
        "": generated,
        "baseline/": dict.fromkeys(generated, frequent),
        "shuffled/": dict(zip(generated, captions[half:] + captions[:half], strict=True)),
    }
    scores = caption_scores.score(references, systems)
    for what, reason in scores.left_out.items():
        say(f"captioning: {what} is left out: {reason}\n")
    metrics = {f"{system}{name}": v for system, values in scores.systems.items() for name, v in values.items()}
    tokenizer = caption_scores.TOKENIZERS[scores.tokenizer].says
    return metrics, {"tokenizer": tokenizer, "left_out": scores.left_out}


def captioned(shards: ShardSet, split: str) -> dict[int, list[str]]:
    """Place in the split's table -> captions, for the images that have one.

    Raises:
        NotApplicable: there is none.
    """
    rows = shards.table(split)["captions"].to_pylist() if split in shards.manifest["splits"] else []
    kept = {i: [text for text in captions if text.strip()] for i, captions in enumerate(rows)}
    with_captions = {i: captions for i, captions in kept.items() if captions}
    if not with_captions:
        raise NotApplicable(
            f"captioning needs images with captions in train and in the measured split, and '{split}' has none in "
            f"{len(rows)} images: name data with captions in both, or leave the task out"
        )
    return with_captions


def describe(subject: Subject, decoder: PrefixDecoder, rows: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """A caption for each of the split's pictures at `rows`, by beam search."""
    generated: list[str] = []
    batch = max(1, subject.config.batch // subject.config.captioning.beams)
    progress = Progress(subject.say, "captioning", len(rows), "images")
    for features in image_features(subject, subject.config.split, rows, batch):
        generated += [vocabulary.decode(ids) for ids in decoder.describe(features).tolist()]
        progress(len(generated), f"{len(generated)}/{len(rows)} images described")
    return generated


def most_frequent(captions: Sequence[str]) -> str:
    """The caption that stands there most often, without case and spacing; among equals the alphabet decides."""
    counts = Counter(" ".join(text.lower().split()) for text in captions)
    return min(counts, key=lambda text: (-counts[text], text))


def coco_results(generated: dict[str, str]) -> list[dict[str, Any]]:
    """COCO's results format; image ids are the keys: numbers where each is one, or coco-391895 as source coco has it.

    COCO's own evaluation refuses every id that is not a number of its annotations.
    """
    matches = [_IMAGE_ID.fullmatch(key) for key in generated]
    numbers = [int(match[1]) for match in matches if match]
    ids = numbers if len(numbers) == len(generated) else list(generated)
    return [{"image_id": one, "caption": caption} for one, caption in zip(ids, generated.values(), strict=True)]


def examples(generated: dict[str, str], references: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Up to EXAMPLES images spread evenly over the split, whatever their scores."""
    keys, count = list(generated), min(EXAMPLES, len(generated))
    chosen = [keys[i * len(keys) // count] for i in range(count)]
    return [{"key": key, "said": generated[key], "references": references[key]} for key in chosen]
