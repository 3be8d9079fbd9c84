"""What there is to choose from, a row a thing: selectors, sources, stores, evaluations; methods are in method_specs.py.

One table a thing, and all else derives from it: what a recipe may name, what is imported, what a command offers. A row
says what readers of recipes know without torch, and where the code is, which is imported when it is used. No torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose


@dataclass(frozen=True)
class TableEntry:
    """A row whose code is at `code`, MODULE:NAME."""

    code: str


def load(kind: str, name: str, table: Mapping[str, TableEntry]) -> Any:
    """The class or function of a row, imported now.

    Args:
        kind: what the table's rows are, as errors say it.

    Raises:
        InputError: no such row (with the nearest name), or one whose code is not where it says.
    """
    require_file(kind, name, table)
    entry = table[name]
    module, _, attribute = entry.code.partition(":")
    loaded = importlib.import_module(module)
    if not hasattr(loaded, attribute):
        raise InputError(
            f"{kind} '{name}' is {entry.code} by its row, and {loaded.__file__} has no {attribute}: write it there, or "
            "correct the row"
        )
    return getattr(loaded, attribute)


def require_file(kind: str, name: str, table: Mapping[str, TableEntry]) -> None:
    """The file of a row's code is looked for and not imported, so that a command says at once what is to be written.

    Args:
        kind: as for `load`.

    Raises:
        InputError: no such row, or no such file; names it.
    """
    entry: TableEntry = choose(kind, name, table)
    module, _, attribute = entry.code.partition(":")
    if not _exists(module):
        path = module.replace(".", "/")
        raise InputError(
            f"{kind} '{name}' is {entry.code} by its row, and there is no {path}.py: write it, with {attribute} in it"
        )


def _exists(module: str) -> bool:
    return module in sys.modules or spec_of(module) is not None


def spec_of(module: str) -> ModuleSpec | None:
    """As `importlib.util.find_spec`, which imports the packages above, and torch with some of them; this does not."""
    package = module.rpartition(".")[0]
    if not package:
        return importlib.util.find_spec(module)
    above = sys.modules.get(package)
    spec = above.__spec__ if above else spec_of(package)
    return PathFinder.find_spec(module, spec.submodule_search_locations or []) if spec else None


# ---- who weighs a sample's levels -----------------------------------------------------------------


@dataclass(frozen=True)
class SelectorEntry(TableEntry):
    """learns: it has a policy, which stage alsn trains. validates: joint training gives it validation pairs."""

    learns: bool = False
    validates: bool = False


SELECTORS: dict[str, SelectorEntry] = {
    "alsn": SelectorEntry("cmapkd_core.models.selector:ALSN", learns=True),
    "fixed": SelectorEntry("cmapkd_core.models.selector:FixedSelector"),
    "random": SelectorEntry("cmapkd_core.models.selector:RandomSelector"),
    "shuffled": SelectorEntry("cmapkd_core.models.selector:ShuffledALSN", learns=True),
    "reversed": SelectorEntry("cmapkd_core.models.selector:ReversedALSN", learns=True),
    "oracle": SelectorEntry("cmapkd_core.methods.oracle:Oracle", validates=True),
}

OBJECTIVES: dict[str, TableEntry] = {  # what a selector learns
    "utility": TableEntry("cmapkd_core.methods.policy_fit:utility_objective"),
    "seed": TableEntry("cmapkd_core.methods.policy_fit:seed_objective"),
}

# ---- what of the teacher is stored ----------------------------------------------------------------


@dataclass(frozen=True)
class StoreEntry:
    """What stage teacher stores of a crop (stages/teacher_cache.py). size: rows of a file of it, about 10 MB."""

    size: int
    levels: bool = False  # the embeddings, and the laterals of the teacher's pyramid too


STORES: dict[str, StoreEntry] = {"embeddings": StoreEntry(2048), "levels": StoreEntry(128, levels=True)}

LEVEL_CODES: dict[str, TableEntry] = {  # how stored levels are written
    "float16": TableEntry("cmapkd_core.models.level_codes:in_float16"),
    "int8": TableEntry("cmapkd_core.models.level_codes:in_int8"),
}

# ---- where pictures come from ---------------------------------------------------------------------


@dataclass(frozen=True)
class SourceEntry(TableEntry):
    """A source of rows: a function of a DataConfig; one that knows their number gives something with a length."""

    folder: str = ""  # what the folder holds that somebody has to name; "": it carries its data
    archives: str = ""  # what a folder holds that may be named; it makes one where none is
    generated: bool = False  # it makes as many pictures as data.size says
    drawn: bool = False  # on plain ground, alike without being copies: the gate leaves out its perceptual check
    questions: bool = False  # its rows have some
    by_share: bool = False  # data.val_share alone decides which of its pictures are validated on


SOURCES: dict[str, SourceEntry] = {
    "cc3m": SourceEntry(
        "cmapkd_core.data.sources.cc3m:cc3m_rows",
        folder="img2dataset's shards, or Train_GCC-training.tsv and its pictures",
    ),
    "coco": SourceEntry(
        "cmapkd_core.data.sources.coco:coco_rows",
        folder="annotations/ and train2014/, val2014/ (or those of 2017)",
    ),
    "easy_vqa": SourceEntry(
        "cmapkd_core.data.sources.easy_vqa:easy_vqa_rows", drawn=True, questions=True, by_share=True
    ),
    "emoji": SourceEntry("cmapkd_core.data.sources.emoji:emoji_rows", drawn=True, by_share=True),
    "flickr30k": SourceEntry(
        "cmapkd_core.data.sources.flickr30k:flickr30k_rows", folder="dataset_flickr30k.json and flickr30k-images/"
    ),
    "folder": SourceEntry("cmapkd_core.data.sources.folder:folder_rows", folder="pictures and captions.jsonl"),
    "glyphs": SourceEntry("cmapkd_core.data.sources.glyphs:glyph_rows", archives="two npm packages", drawn=True),
    "imagenet": SourceEntry(
        "cmapkd_core.data.sources.imagenet:imagenet_rows", folder="val/ and LOC_synset_mapping.txt"
    ),
    "img2dataset": SourceEntry(
        "cmapkd_core.data.sources.img2dataset:img2dataset_rows",
        folder="img2dataset's shards 00000.tar, 00001.tar, ..",
    ),
    "scenes": SourceEntry("cmapkd_core.data.sources.scenes:scene_rows", generated=True, drawn=True, by_share=True),
    "scenes_vqa": SourceEntry(
        "cmapkd_core.data.sources.scenes_vqa:scene_vqa_rows", generated=True, drawn=True, questions=True, by_share=True
    ),
    "stamps": SourceEntry(
        "cmapkd_core.data.sources.stamps:stamp_rows",
        folder="the unpacked Debian package tuxpaint-stamps-default",
        drawn=True,
        by_share=True,
    ),
    "visual_genome": SourceEntry(
        "cmapkd_core.data.sources.visual_genome:visual_genome_rows",
        folder="image_data.json, region_descriptions.json, VG_100K/ and VG_100K_2/",
        by_share=True,
    ),
    "vqav2": SourceEntry(
        "cmapkd_core.data.sources.vqav2:vqav2_rows",
        folder="the questions' and annotations' JSON files, train2014/ and val2014/",
        questions=True,
        by_share=True,
    ),
}

# How pictures of training and of evaluation are compared; rows of two tables of layout.SCHEMA in, pairs out.
LEAKAGE_CHECKS: dict[str, TableEntry] = {
    "ids": TableEntry("cmapkd_core.data.leakage:same_origin"),
    "exact": TableEntry("cmapkd_core.data.leakage:same_bytes"),
    "perceptual": TableEntry("cmapkd_core.data.leakage:alike"),
}

# ---- what a model is measured on ------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationEntry(TableEntry):
    """An evaluation: a function of an evaluate.Subject, which gives an Evaluated."""

    reads: tuple[str, ...] = ("evaluate.split",)  # what of the recipe decides its result; a prefix: all below it
    # The models it is run on in a task of its own, where not all are of interest; empty: all of them.
    roles: tuple[str, ...] = ()
    trains: bool = False  # a probe, on the training split; of other sets one split is prepared
    timed: bool = False  # its result is a time, so nothing runs beside it
    once: bool = False  # every seed of a row answers it alike
    wants: str = (
        ""  # what not all data have: without it the task is left out, or refused where it was asked for by name
    )
    facts: tuple[str, ...] = ()  # among its numbers, of the data: in a report every model must have been asked the same

    @property
    def reads_data(self) -> bool:
        """Whether it looks at a split."""
        return "evaluate.split" in self.reads


_PROBED = ("student", "reference", "teacher")  # a probe trains for minutes a model

EVALUATIONS: dict[str, EvaluationEntry] = {
    "retrieval": EvaluationEntry(
        "cmapkd_core.evaluate.subject:run_retrieval",
        reads=("evaluate.split", "evaluate.answers", "evaluate.strata"),
        facts=("images", "captions"),
    ),
    "zeroshot": EvaluationEntry(
        "cmapkd_core.evaluate.subject:run_zeroshot",
        reads=("evaluate.split", "evaluate.templates", "evaluate.classes"),
        wants="classes",
        facts=("images", "classes", "majority"),
    ),
    "vqa": EvaluationEntry(
        "cmapkd_core.evaluate.vqa:run_vqa",
        reads=("evaluate.split", "evaluate.vqa"),
        roles=_PROBED,
        trains=True,
        facts=("questions", "majority", "prior", "sayable"),
    ),
    "captioning": EvaluationEntry(
        "cmapkd_core.evaluate.captioning:run_captioning",
        reads=("evaluate.split", "evaluate.captioning"),
        roles=_PROBED,
        trains=True,
        facts=("images", "baseline/CIDEr"),
    ),
    "efficiency": EvaluationEntry(
        "cmapkd_core.evaluate.efficiency:run_efficiency",
        reads=("evaluate.efficiency", "runtime.threads"),  # of all results, times alone depend on threads
        roles=("student", "teacher"),  # the reference has the student's size and speed
        timed=True,
        once=True,
    ),
}

PROMPTS = ("plain", "clip")  # names of evaluate.zeroshot.TEMPLATES
IMAGENET = "imagenet"  # as evaluate.classes: the names that open_clip has of ImageNet's classes
