"""A suite's artifacts, its rows over seeds, and what the rows of recipes.ROWS are called in tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.recipes import BUDGETS, FULL, ROWS
from cmapkd_core.report.read.artifacts import Commands, Source
from cmapkd_core.report.read.concept_sums import ConceptSums, RowSeed
from cmapkd_core.report.read.concepts import BY_CLASS, QUERIES, class_sums, concept_sums
from cmapkd_core.report.read.results import (
    EFFICIENCY,
    GEOMETRIC_RANK,
    MEAN_RECALL,
    Evaluation,
    ModelResults,
    Results,
    chance,
    efficiency_tools,
    facts,
    measure,
)

MEAN = f"retrieval/{MEAN_RECALL}"
RANK = f"retrieval/{GEOMETRIC_RANK}"
FULL_METHOD = "full method"  # in sentences and figures
# Row -> its name in a table, what it is.
NAMES: dict[str, tuple[str, str]] = {
    "scratch": ("Scratch", "random weights, no teacher"),
    "finetune": ("Fine-tuned", "no teacher"),
    "kd": ("KD", "similarities of the batch"),
    "kd_standardise": ("KD, standardised", "similarities of the batch, z-scored"),
    "fitnet": ("FitNet", "hints first, then KD"),
    "fitnet_joint": ("FitNet, joint", "hints and KD together"),
    "promptkd": ("PromptKD", "captions as classes"),
    "promptkd_cls": ("PromptKD, classes", "class names as classes"),
    "c2kd": ("C2KD", "proxies, filtered by rank agreement"),
    "llava_kd": ("LLaVA-KD", "three stages, patch distributions"),
    "clip_kd": ("CLIP-KD", "features, logits, interactive contrast"),
    "clip_rd": ("CLIP-RD", "CLIP-KD and relations between the models"),
    "tinyclip": ("TinyCLIP", "inherited weights, affinities"),
    "mobileclip": ("MobileCLIP", "soft targets"),
    "no_pyramid": ("w/o visual pyramid", "P5 alone"),
    "no_hierarchy": ("w/o language hierarchy", "L4 alone"),
    "no_alsn": ("w/o ALSN (uniform)", "equal weights for all levels"),
    "manual_alsn": ("w/o ALSN (manual)", "weights 0.1, 0.2, 0.3, 0.4"),
    "no_align": ("w/o cross-modal alignment", "no align term"),
    "no_relation": ("w/o relational distillation", "no relation term"),
    "one_stage": ("one-stage training", "all levels from the start"),
    "alsn": ("with ALSN", "the paper's selector, where a recipe has equal weights"),
    "random_alsn": ("random weights", "drawn for each sample"),
    "shuffled_alsn": ("shuffled weights", "ALSN's, of another sample"),
    "oracle_alsn": ("oracle's weights", "by the gradient on validation pairs; it cheats"),
    "reversed_alsn": ("reversed weights", "ALSN's, levels in reverse order"),
    "seed_alsn": ("ALSN on the loss it weights", "the paper's objective"),
    "embedding_alsn": ("ALSN toward embeddings", "utilities against task, kd, fd and icl"),
    "one_stage_uniform": ("one stage, uniform", "all levels from the start, equal weights"),
    "one_stage_embedding": ("one stage, toward embeddings", "all levels from the start, utilities as there"),
    "random_teacher_pyramid": ("unfitted teacher levels", "the teacher's pyramid as it was drawn"),
    "fine_to_coarse": ("fine to coarse", "levels in reverse order"),
    "outline": ("weights of the paper", "intra 1, align 0.5, relation 0.3, task 0.1; no fd"),
    "fd_alone": ("fd and task alone", "no other terms"),
    "no_levels": ("w/o level terms", "no terms on levels"),
    "no_similarities": ("w/o similarities", "no kd, icl, nor CLIP-RD's relations"),
    "similarities_alone": ("similarities and task alone", "no terms on levels, no distance of embeddings"),
    "bench_weights": ("weights of bench", "those of convolutional towers: fd and intra 16, no similarities"),
    "fd_64_alone": ("fd 64 and task alone", "no other terms, four times the weight"),
    "no_fd": ("w/o fd", "no distance of embeddings"),
    "fd_4": ("fd 4", "a quarter of the weight for convolutional towers"),
    "fd_16": ("fd 16", "the weight for convolutional towers"),
    "fd_64": ("fd 64", "four times the weight for convolutional towers"),
    "no_intra": ("w/o intra", "no distances of levels"),
    "intra_4": ("intra 4", "a quarter of the weight for convolutional towers"),
    "intra_16": ("intra 16", "the weight for convolutional towers"),
    "intra_64": ("intra 64", "four times the weight for convolutional towers"),
    "align_2": ("align 2", "four times the weight"),
    "relation_10": ("relation 10", "33 times the weight"),
    "task_025": ("task 0.25", "a quarter of the weight"),
    "with_kd": ("with kd", "similarities of the batch, weight 1"),
    "with_icl": ("with icl", "interactive contrast, weight 1"),
    "with_bank": ("with bank", "similarities to 1,024 stored captions and pictures, weight 4"),
    "with_rd": ("with CLIP-RD's relations", "its relations between student and teacher, weight 1"),
    "with_similarities": ("with all similarities", "kd, icl and CLIP-RD's relations, weight 1"),
    "two_teachers": ("two teachers", "a second image tower from packages, for the terms on embeddings"),
    "one_map": ("one map", "of pictures and captions into the teacher's joint space"),
    "two_maps": ("two maps", "of pictures and of captions into the teacher's joint space"),
    "clip_kd_one_map": ("CLIP-KD, one map", "of pictures and captions into the teacher's joint space"),
    "clip_rd_one_map": ("CLIP-RD, one map", "of pictures and captions into the teacher's joint space"),
    "two_teachers_one_map": ("two teachers, one map", "of pictures and captions into the space of both"),
    "lift_128": ("lifted to 128", "the student's image tokens lifted to 128 channels"),
    "lift_1024": ("lifted to 1024", "the student's image tokens lifted to 1,024 channels"),
    "clip_kd_500": ("CLIP-KD, features 500", "a quarter of the published weight"),
    "clip_kd_8000": ("CLIP-KD, features 8000", "four times the published weight"),
    "clip_kd_32000": ("CLIP-KD, features 32000", "16 times the published weight"),
    "clip_rd_500": ("CLIP-RD, features 500", "a quarter of the published weight"),
    "clip_rd_8000": ("CLIP-RD, features 8000", "four times the published weight"),
    "clip_rd_relations_025": ("CLIP-RD, relations 0.25", "a quarter of the published weight"),
    "clip_rd_relations_4": ("CLIP-RD, relations 4", "four times the published weight"),
    "tenth_finetune": ("Fine-tuned, a tenth", "a tenth of the captions, ten times the epochs"),
    "tenth_clip_kd": ("CLIP-KD, a tenth", "a tenth of the captions, ten times the epochs"),
    "tenth_pairs": ("CMAPKD, a tenth", "a tenth of the captions, ten times the epochs"),
    "tenth_captions": ("CMAPKD, a tenth, all pictures", "the same with the pictures of the other nine tenths"),
    FULL: ("CMAPKD (ours)", "complete, coarse to fine"),
}


def label(row: str) -> str:
    """The row's name in a table; a row that has none there keeps its own."""
    if row in NAMES or row not in BUDGETS:
        return NAMES.get(row, (row, ""))[0]
    return f"{label(at_least(row))}, {times(row)}x"


def meaning(row: str) -> str:
    """The row in a few words."""
    if row in NAMES or row not in BUDGETS:
        return NAMES.get(row, (row, ""))[1]
    return f"{meaning(at_least(row))}; {times(row)} times the updates"


# The fields that a row shares with the full method which it is compared with.
SETTING = frozenset({"schedule.times", "data.unpaired"})


def times(row: str) -> int:
    """How many times the recipe's updates a row trains for; epochs over a tenth of the pairs have a tenth of them."""
    fields = ROWS.get(row, {})
    epochs, unpaired = int(fields.get("schedule.times", 1)), float(fields.get("data.unpaired", 0.0))
    return max(1, round(epochs * (1 - unpaired)))


def at_least(row: str) -> str:
    """The row that is this one with the recipe's own updates."""
    alone = {name: value for name, value in ROWS.get(row, {}).items() if name != "schedule.times"}
    return FULL if not alone else row.removesuffix(f"_{times(row)}x")


def full_of(row: str) -> str:
    """The full method with as many updates and captions as a row has, which that is compared with."""
    same = {name: value for name, value in ROWS.get(row, {}).items() if name in SETTING}
    return next((name for name, fields in BUDGETS.items() if fields == same), FULL)


def compared_with(rows: Iterable[str]) -> tuple[str, ...]:
    """The full methods that rows are compared with, one for each number of updates and captions, the shortest first."""
    return tuple(sorted(dict.fromkeys(map(full_of, rows)), key=times))


# How artifacts are called, by what stands first and how many parts follow; any other begins with its TASK[-DATASET].
FORMS = {"evaluation": 2, "training": 2, "before": 1, "teacher": 0}
WRITTEN = "evaluation/ROW/SEED, training/ROW/SEED, before/SEED, teacher, TASK/ROW/SEED, TASK/ROW, TASK/teacher"


@dataclass(frozen=True)
class RowTraining:
    """One training: the joint stage's artifact, and the stages that led to it, first to last.

    Attributes:
        seconds: over its stages; 0 of an unfinished one, and where one of these stages is gone.
    """

    source: Source
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)  # of the joint stage's manifest
    earlier: tuple[Source, ...] = ()


@dataclass(frozen=True)
class SuiteInputs:
    """A suite and its artifacts, any of which may be missing. Keys are (row, seed); of `more` as the stage has them."""

    suite: str
    run: str
    recipe: Recipe
    overrides: str
    rows: tuple[str, ...]
    seeds: tuple[str, ...]
    methods: dict[str, Recipe]  # every row's recipe, with the first seed
    evaluations: dict[tuple[str, str], Source]
    trainings: dict[tuple[str, str], RowTraining]
    before: dict[str, Source]
    teacher: Source
    executions: int
    naive: int
    expectations: bool = False
    more: dict[str, Source] = field(default_factory=dict)
    commands: Commands = field(default_factory=Commands)


def check_suite_names(names: Iterable[str]) -> None:
    """Refuse an artifact whose name says nothing of a suite.

    Raises:
        InputError: a name of no form that is WRITTEN, a row that has no evaluation, or no evaluation at all.
    """
    parts = {name: name.split("/") for name in names}
    rows = [*(part[1] for part in parts.values() if part[0] == "evaluation" and len(part) == 3), "teacher"]
    for name, (kind, *of) in parts.items():
        if len(of) not in ((FORMS[kind],) if kind in FORMS else (1, 2)) or not all(of):
            raise InputError(f"--artifacts: {name} is none of {WRITTEN}")
        if kind not in FORMS and of[0] not in rows:
            raise InputError(f"--artifacts: {name} is of no row that has an evaluation: {nearest(of[0], rows)}")
    if len(rows) == 1:
        raise InputError("--artifacts has no evaluation/ROW/SEED: a report needs at least one row with one seed")


def suite_results(inputs: SuiteInputs) -> Results:
    """Teacher, untrained student and the suite's rows, over seeds; of what is not measured `missing` names the URL.

    Raises:
        InputError: evaluations of different data stand side by side.
    """
    teacher = _row(inputs, "teacher", "Teacher", {"": inputs.teacher}, "teacher")
    before = _row(inputs, "before", "Student before training", inputs.before)
    trained = [
        _row(inputs, name, label(name), {s: inputs.evaluations[name, s] for s in inputs.seeds}) for name in inputs.rows
    ]
    every, recipe = (*trained, teacher, before), inputs.recipe
    tools = efficiency_tools(source for task, _, _, source in _further(inputs) if task == EFFICIENCY)
    rows, split = (teacher, before, *trained), recipe.evaluate.split
    return Results(rows, chance(every), facts(every), recipe.data.source, split, tools, _concepts(inputs))


# Task -> the file of its evaluations that says what each concept adds, and what reads it.
BY_CONCEPT = {"retrieval": (QUERIES, concept_sums), "zeroshot": (BY_CLASS, class_sums)}


def _concepts(inputs: SuiteInputs) -> Mapping[str, ConceptSums]:
    """Of every retrieval and zero-shot test, TASK[-DATASET], what each concept adds to the rows' numbers."""
    sources: dict[str, dict[RowSeed, Source]] = {
        task: {c: one for c, one in inputs.evaluations.items() if one.files} for task in BY_CONCEPT
    }
    for task, row, seed, source in _further(inputs):
        kind = task.partition("-")[0]
        if kind in BY_CONCEPT and row in inputs.rows and source.files:
            kept, (file, _) = sources.setdefault(task, {}), BY_CONCEPT[kind]
            kept[row, seed] = kept[row, seed] if file in kept.get((row, seed), Source("")).files else source
    by_task = {task: BY_CONCEPT[task.partition("-")[0]][1](of) for task, of in sources.items()}
    return {task: sums for task, sums in by_task.items() if sums}


def _row(inputs: SuiteInputs, name: str, words: str, main: dict[str, Source], kind: str = "") -> ModelResults:
    evaluations = [Evaluation("", seed, source) for seed, source in main.items()]
    evaluations += [Evaluation(task, seed, source) for task, row, seed, source in _further(inputs) if row == name]
    return measure(name, words, evaluations, kind or ("ours" if name == full_of(name) else ""))


def _further(inputs: SuiteInputs) -> Iterator[tuple[str, str, str, Source]]:
    """Task, row, seed ("" of what belongs to no seed) and source of every further evaluation."""
    for name, source in inputs.more.items():
        task, row, seed = (*name.split("/"), "")[:3]
        yield task, row, seed, source


def suite_urls(inputs: SuiteInputs) -> dict[str, str]:
    """Where every number is from: `evaluation ROW/SEED` and so on -> URL; what was not given is left out."""
    named = {"teacher": inputs.teacher.url}
    named |= {f"before/{seed}": source.url for seed, source in inputs.before.items()}
    for kind, sources in (
        ("evaluation", inputs.evaluations),
        ("training", {cell: one.source for cell, one in inputs.trainings.items()}),
    ):
        named |= {f"{kind} {row}/{seed}": source.url for (row, seed), source in sources.items()}
    named |= {name: source.url for name, source in inputs.more.items()}
    return {name: url for name, url in named.items() if url}
