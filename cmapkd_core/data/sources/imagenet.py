"""ImageNet (ILSVRC2012) for zero-shot classification: rows with a class and no caption.

    val/n01440764/ILSVRC2012_val_00000293.JPEG    sorted into synsets, or all 50,000 in val/ itself with
    ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt and meta.mat, or LOC_val_solution.csv
    LOC_synset_mapping.txt or synset_words.txt    "n01440764 tench, Tinca tinca" a line, or the devkit's meta.mat
    train/n01440764/n01440764_18.JPEG             read only where data.splits names train

val/ is split test: what models are measured on. A class is called by the name that CLIP's prompts use for it where
these are the thousand synsets of ILSVRC2012, else by its first word; classes of one name keep all their words, and
their synset where these are the same too (crane the bird, crane the machine). So evaluate.classes stays empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.annotations import number
from cmapkd_core.data.files import below, files_below, opened, picture, place, read_text
from cmapkd_core.data.rows import BadRow, Counted, LazyRow, Row
from cmapkd_core.data.tables import csv_records
from cmapkd_core.data.texts import BadValueError, missing, shown, text
from cmapkd_core.errors import InputError

NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
SOLUTION = "LOC_val_solution.csv"
DEVKIT = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", "")
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
FOLDERS = {"test": ("val", "ILSVRC/Data/CLS-LOC/val"), "train": ("train", "ILSVRC/Data/CLS-LOC/train")}
LICENCE = "ImageNet: non-commercial research and education"
CLASSES = 1000
_PICTURES = (".jpeg", ".jpg", ".png")


def imagenet_rows(config: DataConfig) -> Counted:
    """One row a picture with its class.

    Raises:
        InputError: no pictures, no names of the classes, or no list that says what the pictures of val/ show.
    """
    url = place(config)
    devkit = next((where for where in DEVKIT if storage.exists(below(url, where, META))), "none")
    synsets = _synsets(below(url, devkit, META)) if devkit != "none" else []
    names = class_names(_words(url, synsets))
    wanted = [split for split in FOLDERS if split in (config.splits or ("test",))]
    files = [(split, file) for split in wanted for file in _files(url, split)]
    if not files:
        raise InputError(f"data.source=imagenet: {url} has no pictures in {', '.join(FOLDERS[s][0] for s in wanted)}/")
    flat = any(PurePosixPath(file).parent.name not in names for _, file in files)
    truth = _truth(url, devkit, [synset for synset, _ in synsets]) if flat else {}
    return Counted((_row(url, split, file, names, truth) for split, file in files), len(files))


def _files(url: str, split: str) -> list[str]:
    """The pictures of a split."""
    for folder in FOLDERS[split]:
        pictures = [name for name in files_below(url, folder) if name.lower().endswith(_PICTURES)]
        if pictures:
            return [f"{folder}/{name}" for name in pictures]
    return []


def _row(url: str, split: str, file: str, names: dict[str, str], truth: dict[str, str]) -> LazyRow | BadRow:
    path = PurePosixPath(file)
    synset = path.parent.name if path.parent.name in names else truth.get(path.stem, "")
    if synset not in names:
        wrong = f"its class is {shown(synset)}, which is none of them" if synset else ""
        return BadRow(path.stem, wrong or f"nothing says which class {file} shows", split)
    row = Row(path.stem, b"", (), names[synset], split=split, licence=LICENCE, origins=(f"imagenet:{path.stem}",))
    return LazyRow(row, picture(url, file))


# ---- what the classes are called ------------------------------------------------------------------


def class_names(words: dict[str, str]) -> dict[str, str]:
    """A name of its own for every synset, of `words` by synset ("tench, Tinca tinca")."""
    names = {synset: phrase.split(",")[0].strip() for synset, phrase in words.items()}
    if len(words) == CLASSES:
        from open_clip import IMAGENET_CLASSNAMES  # only here: it brings torch along

        names = dict(zip(sorted(words), IMAGENET_CLASSNAMES, strict=True))
    for longer in (words, {synset: f"{phrase} ({synset})" for synset, phrase in words.items()}):
        often = Counter(names.values())
        names = {synset: name if often[name] == 1 else longer[synset] for synset, name in names.items()}
    return names


def _words(url: str, synsets: list[tuple[str, str]]) -> dict[str, str]:
    for name in NAMES:
        file = below(url, name)
        if storage.exists(file):
            lines = (line.strip().partition(" ") for line in read_text(file).splitlines() if line.strip())
            return _each_once([(synset, phrase) for synset, _, phrase in lines], file)
    if not synsets:
        raise InputError(
            f"data.source=imagenet: {url} has no {', '.join(NAMES)} or {DEVKIT[0]}/{META}, which say what the classes "
            "are called: unpack ILSVRC2012_devkit_t12.tar.gz there"
        )
    return _each_once(synsets, META)


def _each_once(named: list[tuple[str, str]], file: str) -> dict[str, str]:
    """What the classes are called, by synset."""
    words: dict[str, str] = {}
    for synset, phrase in named:
        try:
            words[text(synset, "a synset")] = text(phrase, f"what {synset} is called").strip()
        except BadValueError as error:
            raise InputError(f"{file}: {error}: unpack ILSVRC2012_devkit_t12.tar.gz anew, or mend the line") from None
    if len(words) < len(named):
        twice = Counter(synset for synset, _ in named).most_common(1)[0][0]
        raise InputError(f"{file} names {twice} twice: keep one of the lines")
    return words


def _synsets(url: str) -> list[tuple[str, str]]:
    """Synset and words of the thousand classes, in the order of ILSVRC2012_ID from 1 on."""
    from scipy.io import loadmat

    with opened(url) as file:
        try:
            table: Any = loadmat(file, squeeze_me=True)["synsets"]
            rows = [
                (int(one["ILSVRC2012_ID"]), str(one["WNID"]), str(one["words"]), one["num_children"]) for one in table
            ]
        except Exception as error:  # scipy raises nearly every type on broken bytes
            reason = shown(f"{type(error).__name__}: {error}")
            raise InputError(
                f"{url} is no table of synsets ({reason}): unpack ILSVRC2012_devkit_t12.tar.gz anew"
            ) from None
    return [(synset, words) for _, synset, words, children in sorted(rows, key=lambda row: row[0]) if not children]


def _truth(url: str, devkit: str, synsets: list[str]) -> dict[str, str]:
    """Synset by file name without extension, of pictures that lie in val/ itself; "" where the list says none."""
    answers = below(url, devkit, TRUTH)
    if synsets and storage.exists(answers):
        lines = read_text(answers).split()
        return {f"ILSVRC2012_val_{at:08d}": _of_number(line, synsets) for at, line in enumerate(lines, start=1)}
    if storage.exists(below(url, SOLUTION)):
        return _solution(below(url, SOLUTION))
    raise InputError(
        f"data.source=imagenet: the pictures in {url}/val are not sorted into synsets, and there is neither "
        f"{DEVKIT[0]}/{TRUTH} with {META} nor {SOLUTION}: unpack ILSVRC2012_devkit_t12.tar.gz there"
    )


def _of_number(line: str, synsets: list[str]) -> str:
    """The synset of an ILSVRC2012_ID, or the line itself where that is none."""
    try:
        one = number(line, "ILSVRC2012_ID")
    except BadValueError:
        return line
    return synsets[one - 1] if 1 <= one <= len(synsets) else line


def _solution(file: str) -> dict[str, str]:
    """Synset by picture; one whose line cannot be read has none, which its picture's row says."""
    truth: dict[str, str] = {}
    for _, line in csv_records(file, partial(_check_columns, file)):
        if isinstance(line, BadValueError):
            continue
        shows = line["PredictionString"]
        synset = "" if missing(shows) else shows.split()[0]
        if truth.setdefault(line["ImageId"], synset) != synset:
            truth[line["ImageId"]] = f"{truth[line['ImageId']]} and {synset}"
    return truth


def _check_columns(file: str, columns: Sequence[str]) -> None:
    if not {"ImageId", "PredictionString"} <= set(columns):
        raise InputError(f"{file} has no columns ImageId and PredictionString: it is another file than its name says")
