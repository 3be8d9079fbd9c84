"""What one training run is made of: frozen dataclasses.

No torch here: a dry run, the submit command and the components read recipes without loading a model.
A `Recipe` is the full named configuration of one run. Every field is either part of the fingerprint
of the stages that read it, or changes speed and never results: those in `RuntimeConfig`, and `view.NO_RESULT`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Predicate
from pydantic import AfterValidator, Field

from cmapkd_core.catalog import EVALUATIONS, LEAKAGE_CHECKS, LEVEL_CODES, OBJECTIVES, SELECTORS, SOURCES, STORES
from cmapkd_core.fields import FromTable
from cmapkd_core.method_specs import METHODS
from cmapkd_core.values import AboveZero, Amount, AnyNumber, Count, Must, Named, Share, Whole

VISION_LEVELS = ("P2", "P3", "P4", "P5")
TEXT_LEVELS = ("L1", "L2", "L3", "L4")
ALL_LEVELS = VISION_LEVELS + TEXT_LEVELS
METHOD = "cmapkd"  # the paper's, and a recipe's default
EMBEDDING_TERMS = ("task", "kd", "fd", "icl")  # of cmapkd: those of the embeddings that are evaluated
ALPHAS = ("learned", "fixed")
HUB, FOLDER = "hf-hub:", "local-dir:"  # open_clip's prefixes of models whose weights lie beside their config
RESIZE_MODES = ("shortest", "longest", "squash")  # open_clip's ways to make a picture a square: data/augment.py
INTERPOLATIONS = ("bicubic", "bilinear", "random")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
AS_STUDENT = "student"  # optim.teacher_precision: that of optim.precision
MATMUL_PRECISIONS = ("highest", "high", "medium")  # torch's words for fp32, TF32, and bf16 within fp32
SPLITS = ("train", "val", "test")
BY_CAPTION, BY_GROUP = ANSWERS = ("caption", "group")
LEAKAGE_ACTIONS = ("refuse", "drop", "allow")  # drop: the training pictures; allow: the manifest says how many
EVALUATE_LEAKAGE_ACTIONS = ("refuse", "allow")  # after a training nothing can be dropped from it
CATALOG = "{} in cmapkd_core/catalog.py"
SOURCE = Named("data source", SOURCES, CATALOG.format("SOURCES"))
LEAKAGE = Named("leakage check", LEAKAGE_CHECKS, CATALOG.format("LEAKAGE_CHECKS"))
EVALUATION = Named("evaluation task", EVALUATIONS, CATALOG.format("EVALUATIONS"))

Area = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class DataConfig:
    """Where the pairs come from and what of them a student sees."""

    source: Annotated[str, SOURCE] = "folder"  # a row of catalog.SOURCES; its file says what it reads
    url: str = ""  # the folder or s3:// prefix a source reads; sources that carry their data need none
    # A limit: the first so many rows of the source, bad ones among them, are all that is read; 0 is no limit. A source
    # that generates pictures makes as many. It belongs to the source that it is given with: another begins without one.
    size: Whole = 0
    val_share: Share = 0.1  # shares of the groups (concepts) held out, where rows name no split
    test_share: Share = 0.1  # the same of the test split
    # Share of the training pairs that students train on, chosen by key.
    fraction: Annotated[float, Field(gt=0, le=1), Must("it must be above 0 and at most 1")] = 1.0
    # Share of those pairs whose captions are withheld from students; their pictures train methods that can use them.
    unpaired: Annotated[float, Field(ge=0, lt=1), Must("it must be from 0 to below 1")] = 0.0
    # Share of those pairs that students see with another's caption, chosen by key: wrong on purpose, to see who finds
    # it. The teacher is fitted on the right ones.
    noise: Share = 0.0
    samples_per_shard: Count = 1024  # pictures in one tar file
    # Tasks that prepare a run of the source's rows each, before one joins them to the same bytes; 1: one task does it.
    # A package has as many as the recipe that it was compiled with.
    partitions: Count = 1
    # Share of bad samples above which a stage fails. A single row that prepare cannot use never does, unless this is 0.
    quarantine_bound: Share = 0.001
    max_pixels: Count = 50_000_000  # a larger image is quarantined, never decoded
    # Prepare makes training pictures JPEGs (data/repack.py) of so short a side, such as 256; 0: as they are.
    repack: Annotated[
        int,
        Field(ge=0),
        Predicate(lambda side: side == 0 or side >= 32),
        Must("it must be a shorter side of 32 pixels or more, such as 256, or 0 to leave pictures"),
    ] = 0
    crop_scale: Annotated[  # CLIP's random resized crop
        tuple[Area, Area],
        Predicate(lambda scale: scale[0] <= scale[1]),
        Must("the least and the largest share of the area, such as 0.9,1.0"),
    ] = (0.9, 1.0)
    splits: tuple[Annotated[str, Named("split", SPLITS)], ...] = ()  # only these are prepared; empty: all of them
    # How training pictures are compared with those held out, and what happens where they meet.
    leakage: tuple[Annotated[str, LEAKAGE], ...] = tuple(LEAKAGE_CHECKS)
    leakage_action: Annotated[str, Named("leakage action", LEAKAGE_ACTIONS)] = "refuse"  # drop: from training
    against: tuple[str, ...] = ()  # prepare artifacts whose val and test pictures must not be in training either


@dataclass(frozen=True)
class ModelConfig:
    """One side: an open_clip architecture and where its weights come from."""

    model: str = "ViT-B-16"  # an open_clip model name, a config file (path or s3://), or a file name in models/configs
    weights: str = "openai"  # an open_clip pretrained tag, a file (path or s3://), "packages" or "random"


@dataclass(frozen=True)
class StudentConfig(ModelConfig):
    """The student: a model, and what it has that its own architecture has not."""

    # A learned map of its image tokens to so many channels, such as the teacher's width, which stays in the student
    # (models/lifted.py); for vision transformers of open_clip's own kind. 0: none.
    lift: Whole = 0


@dataclass(frozen=True)
class Rates:
    """Learning rate per parameter group; a group at 0 is frozen in that phase."""

    student: Amount = 0.0  # the student's towers
    pyramid: Amount = 0.0  # pyramids, hierarchies and bridges
    selector: Amount = 0.0  # ALSN
    heads: Amount = 0.0  # into the joint space: the teacher's in its own stage; of a student, 0: as `student`
    extra: Amount = 0.0  # modules that a method owns beside the student, such as FitNet's regressors


@dataclass(frozen=True)
class Phase:
    """One row of a training schedule, run inside a stage."""

    epochs: Whole = 0  # passes over the training pairs; 0: the phase does nothing
    lr: Rates = Rates()
    levels: tuple[str, ...] = ALL_LEVELS  # the active ones; weights are renormalised over them
    terms: tuple[str, ...] = ()  # the method's terms that count in this phase; empty: all of them
    selects: bool = False  # level weights by the recipe's selector; else uniform


@dataclass(frozen=True)
class Schedule:
    """Table 1 of the paper with its 25 epochs; `STAGE_PHASES` says which stage runs which phase."""

    coarse: Phase = Phase(5, Rates(student=5e-5, pyramid=1e-5), ("P5", "L4"))
    medium: Phase = Phase(5, Rates(student=3e-5, pyramid=1e-5), ("P4", "P5", "L3", "L4"))
    alsn: Phase = Phase(5, Rates(selector=1e-4))
    fine: Phase = Phase(10, Rates(student=1e-5, pyramid=5e-6, selector=5e-5), selects=True)
    # Students train so many times the epochs of coarse, medium and fine; a resolved recipe has the products, and 1.
    times: Count = 1
    # Quarters of the depth of both student towers, from below, that no phase trains; statistics of their batch norms
    # are fixed too, and their dropout is off. Level terms move the levels' own modules alone where a tap is frozen.
    frozen_quarters: Annotated[int, Field(ge=0, le=3), Must("it must be 0, 1, 2 or 3")] = 0


@dataclass(frozen=True)
class PyramidConfig:
    """Levels that a recipe uses at all, and their common width."""

    width: Count = 256  # channels of every level
    vision_levels: tuple[Annotated[str, Named("level of pyramid.vision_levels", VISION_LEVELS)], ...] = VISION_LEVELS
    text_levels: tuple[Annotated[str, Named("level of pyramid.text_levels", TEXT_LEVELS)], ...] = TEXT_LEVELS
    inherit: bool = False  # the student's level modules start from the teacher's fitted ones where shapes agree


@dataclass(frozen=True)
class TeacherFitConfig:
    """Stage `teacher`: what is fitted on the frozen teacher before any student is trained."""

    space: Phase = Phase()  # heads of locked towers, where the teacher has no joint space of its own
    pyramid: Phase = Phase(1, Rates(pyramid=1e-3))
    batch: Count = 256  # global
    dropout: Share = 0.3  # on the pooled states that the heads are fitted on
    reconstruction: Amount = 1.0  # weight of rebuilding the normalised taps from the levels
    # Compatibility of P_i with L_j: "learned", or "fixed" (1 / 0.5 normalised).
    alpha: Annotated[str, Named("teacher_fit.alpha", ALPHAS)] = "learned"
    alpha_prior: Amount = 1.0  # weight of KL(alpha || diagonal prior), so that the easiest pair does not win alone
    seed: Whole = 0  # apart from Recipe.seed: all student seeds share one teacher
    # Fixed crops of a picture that students train on, a random one of them each epoch. The teacher's
    # outputs for them are cached, and methods that need no more train from the cache. 0: new crops, a live teacher.
    views: Whole = 0
    # What of the teacher is stored.
    store: Annotated[str, Named("teacher_fit.store", STORES, CATALOG.format("STORES"))] = "embeddings"
    # How stored levels are written: int8 takes half the room, with the terms of the loss within 1 %.
    levels: Annotated[str, Named("teacher_fit.levels", LEVEL_CODES, CATALOG.format("LEVEL_CODES"))] = "float16"


class TermWeights(FromTable):
    """Weights of the terms in the total, by term: `method.weights.kd`. A method uses those that its row names.

    Their names are the terms of all rows of METHODS. A recipe's default are the weights of the paper's method; terms of
    others weigh nothing until a row or an override says so.
    """

    new = "a term of a row of METHODS in cmapkd_core/method_specs.py"
    each = Amount

    @staticmethod
    def defaults() -> dict[str, float]:
        """Every term of the table and its weight."""
        own = METHODS[METHOD].terms
        return {**own, **{term: 0.0 for spec in METHODS.values() for term in spec.terms if term not in own}}

    def within(self, phase: Phase) -> dict[str, float]:
        """The weights in a phase: 0 for terms that do not count there."""
        known = vars(self)
        return {name: weight if name in (phase.terms or known) else 0.0 for name, weight in known.items()}


@dataclass(frozen=True)
class MethodConfig:
    """What is optimised: a method with the weights of its terms; other methods leave what they do not read."""

    name: Annotated[str, Named("method", METHODS, "METHODS in cmapkd_core/method_specs.py")] = METHOD
    weights: TermWeights = field(default_factory=TermWeights)
    tau: AboveZero = 1.0  # temperature of the align term's KL, on top of the learned scale
    kd_tau: AboveZero = 1.0  # temperature of the terms kd and bank, on top of the models' scales
    # The kd term compares similarities that are z-scored for each query (mean 0, deviation 1), whatever the scales.
    kd_standardise: bool = False
    # Pictures and captions of a student of another width are led into the teacher's joint space, for the terms that
    # compare embeddings there, by one linear map; else by one each. Nothing where the widths are equal.
    one_map: bool = False
    unpaired: Amount = 1.0  # weight of a picture of data.unpaired beside one of a pair, in intra and fd; 0: unread
    pyramid_align: Amount = 0.5  # beta: L_align = L_single + beta L_pyramid
    layer_relation: Amount = 0.3  # gamma: L_relation = sample + gamma layer
    # promptkd: captions kept as classes beside the batch's. Term bank: training pairs whose teacher embeddings each
    # picture and each caption is compared with; all where there are fewer.
    bank: Count = 1024
    # c2kd: a sample's non-target term counts where the proxies' rank agreement (-1 to 1) is above this.
    kendall: AnyNumber = 0.0


@dataclass(frozen=True)
class SelectorConfig:
    """Who chooses the level weights of a sample."""

    kind: Annotated[str, Named("selector", SELECTORS, CATALOG.format("SELECTORS"))] = "alsn"
    weights: Annotated[  # of a fixed selector, coarse level last
        tuple[Amount, Amount, Amount, Amount], Predicate(any), Must("four weights, none below 0, one above")
    ] = (0.25, 0.25, 0.25, 0.25)
    tau: AboveZero = 1.0  # softmax temperature of the weights
    # What ALSN learns: "utility", or the paper's "seed".
    objective: Annotated[str, Named("selector objective", OBJECTIVES, CATALOG.format("OBJECTIVES"))] = "utility"
    # A level is of use where its gradient agrees with that of these terms.
    toward: tuple[Annotated[str, Named("term of selector.toward", EMBEDDING_TERMS)], ...] = ("task",)
    utility_tau: AboveZero = 0.1  # temperature of the target softmax(u / tau_u)
    uniform: Amount = 0.1  # weight of KL(w || uniform), or of the paper's entropy
    every: Count = 10  # joint stage: steps between two measurements of the utilities
    # Share of the pairs that are measured: of a batch in joint training, of an epoch's batches at the end of warm-up.
    measured: Annotated[float, Field(gt=0, le=1), Must("it must be above 0 and at most 1")] = 0.0625


Decay = Annotated[float, Field(ge=0, lt=1), Must("it must be from 0 to below 1")]
Spike = Annotated[
    float,
    Field(ge=0),
    Predicate(lambda times: times == 0 or times > 1),
    Must("it must be above 1, or 0 for no spikes at all"),
]


@dataclass(frozen=True)
class OptimConfig:
    """Batches, AdamW, precision, and what happens to an update that goes wrong; the same for all methods."""

    batch: Count = 256  # global: the in-batch contrastive terms see all of it
    # Parts in which a batch passes the towers, to fit into memory, at the cost of a second forward. Every term sees the
    # whole batch, so results are those of 1 to rounding, but for batch norms (statistics of a part) and dropout.
    accumulate: Count = 1
    weight_decay: Amount = 0.05  # of AdamW, as are the next two
    beta1: Decay = 0.9
    beta2: Decay = 0.98
    clip_norm: Amount = 1.0  # 0: nothing is clipped
    warmup: Share = 0.05  # share of a phase's steps with a rising learning rate, before the cosine
    precision: Annotated[str, Named("precision", PRECISIONS)] = "auto"
    teacher_precision: Annotated[str, Named("teacher precision", (AS_STUDENT, *PRECISIONS))] = AS_STUDENT
    # Of fp32 tensors, which are all of them at precision fp32 and else those of the losses and the update.
    matmul_precision: Annotated[str, Named("matmul precision", MATMUL_PRECISIONS)] = "highest"
    # An update whose gradient or loss is not finite is skipped; so is one whose gradient spikes.
    max_skipped: Whole = 20  # of a stage's updates, and of a phase's no more than half; one more stops the stage
    gradient_spike: Spike = 50.0  # a norm above so many times its running median, and above clip_norm; 0: none is
    loss_spike: Spike = 3.0  # a loss above so many times its running median is reported; 0: none is
    # Times that a stage which diverges (too many skipped, or a loss that spikes and stays) goes back to its last good
    # checkpoint and on with another order of the batches.
    rollbacks: Whole = 0


@dataclass(frozen=True)
class VqaConfig:
    """The fusion head that every model gets, on its frozen towers; the same for all of them."""

    answers: Count = 3129  # the most frequent training answers; others cannot be said
    epochs: Count = 20  # over all training questions, whatever data.fraction
    batch: Count = 512  # questions
    lr: Amount = 5e-4
    # Its heads, four, share it evenly.
    width: Annotated[int, Field(ge=4, multiple_of=4), Must("it must be a multiple of 4")] = 512
    layers: Count = 2
    dropout: Share = 0.1
    memory_gb: AboveZero = 12.0  # of features of pictures kept; above it every epoch goes through the pictures in parts
    seed: Whole = 0


@dataclass(frozen=True)
class CaptioningConfig:
    """The prefix decoder that every model gets, on its frozen image tower; the same for all of them."""

    epochs: Count = 20  # over all training images, whatever data.fraction; one of its captions is drawn for each
    batch: Count = 256
    lr: Amount = 5e-4
    width: Count = 512
    layers: Count = 4
    dropout: Share = 0.1
    grid: Count = 7  # positions of the image a side at most: larger maps are averaged down
    vocabulary: Count = 10000  # the most frequent words of the training captions; others cannot be said
    length: Count = 24  # words of a caption at most, its end counted
    beams: Count = 3
    seed: Whole = 0


@dataclass(frozen=True)
class EfficiencyConfig:
    """How speed is measured; the numbers hold for the machine that the result names."""

    batches: tuple[Count, ...] = (1, 32)
    warmup: Whole = 3  # calls before the measured ones
    repeats: Count = 15  # measured calls; their median counts


def _known_set(entry: str) -> str:
    task, _, data = entry.partition("=")
    EVALUATION(task)
    if data:
        SOURCE(data.partition(":")[0])
    return entry


@dataclass(frozen=True)
class EvaluateConfig:
    """Which tasks every model is measured on, on which data, and how."""

    tasks: tuple[Annotated[str, EVALUATION], ...] = ("retrieval", "zeroshot")  # on the recipe's own data
    # TASK[=SOURCE[:URL]]: tasks of their own, on other data where they name it.
    sets: tuple[Annotated[str, AfterValidator(_known_set)], ...] = ()
    split: Annotated[str, Named("evaluate.split", SPLITS)] = "test"  # the split that is measured
    # What of retrieval's answers is right: an image's own captions, or all of its group (concept).
    answers: Annotated[str, Named("evaluate.answers", ANSWERS)] = BY_CAPTION
    # Retrieval also by queries of which all words are in training captions, and the others.
    strata: bool = False
    # What happens where a model was trained on pictures of the split, which is of another data set than its own. No
    # training reads it, as it does data.leakage_action: accepting a test set costs none.
    leakage_action: Annotated[str, Named("evaluate.leakage_action", EVALUATE_LEAKAGE_ACTIONS)] = "refuse"
    templates: str = "clip"  # a row of evaluate.zeroshot.TEMPLATES, or a text file with one {} a line
    classes: str = ""  # what classes are called: "": their own names, "imagenet": by WordNet id, or a file
    batch: Count = 256
    vqa: VqaConfig = VqaConfig()
    captioning: CaptioningConfig = CaptioningConfig()
    efficiency: EfficiencyConfig = EfficiencyConfig()

    def own(self) -> list[tuple[str, str]]:
        """(task, SOURCE[:URL]) of each entry of `sets`; "" is the recipe's own data."""
        parts = (entry.partition("=") for entry in self.sets)
        return [(task, data) for task, _, data in parts]


@dataclass(frozen=True)
class RuntimeConfig:
    """Speed and safety of a run; no result depends on it, so no fingerprint has it but task efficiency's `threads`."""

    workers: Whole = 4  # loader processes per rank
    threads: Whole = 0  # torch threads per process; 0: torch's own choice
    # A training stage that is killed does again what it did since its last checkpoint; the first that is due makes one.
    checkpoint_every: Whole = 500  # steps; 0: by time alone
    checkpoint_minutes: Amount = 5.0  # by rank 0's clock; 0: by steps alone
    # A training whose ranks have all stood still for so long ends with exit code 75, to be tried again from its last
    # checkpoint; the first step of a phase may take four times as long, and writing a checkpoint as long as it takes.
    hang_minutes: Amount = 30.0  # 0: no bound
    # Of copies of shards, and of the teacher's outputs for them, that a machine keeps of what lies on S3; the least
    # recently read go. Two blocks of 16 shards let one be fetched while the other is read. 0: no bound, none goes.
    cache_gb: Amount = 0.0
    # The student's towers compute activations again on the way back in place of keeping them: a third more work in the
    # towers, and memory of a block and not of all of them.
    grad_checkpointing: bool = False
    # A live teacher on a GPU works on a stream of its own, one batch ahead: more memory, the same numbers.
    teacher_ahead: bool = True
    # torch.compile for the blocks of towers while a phase trains: seconds to begin with, the same numbers but rounding.
    compile: bool = False
    log_every: Count = 20  # steps between two points of the curves
    shares_every: Count = 200  # how often the terms' shares of the gradient are measured; costs a backward a term


@dataclass(frozen=True)
class Recipe:
    """One full named configuration; `recipes.RECIPES` has the rows."""

    name: str = "paper"  # as `--recipe` takes it
    seed: Whole = 0  # of the student's training: order, crops, weights that start at random
    data: DataConfig = DataConfig()
    teacher: ModelConfig = ModelConfig("ViT-L-14", "openai")
    # Further teachers as NAME:WEIGHTS, whose embeddings stand beside the first one's in all terms of embeddings; levels
    # are the first one's alone (ensemble.py).
    teachers: tuple[str, ...] = ()
    student: StudentConfig = StudentConfig("ViT-B-16", "openai")
    pyramid: PyramidConfig = PyramidConfig()
    teacher_fit: TeacherFitConfig = TeacherFitConfig()
    method: MethodConfig = MethodConfig()
    selector: SelectorConfig = SelectorConfig()
    schedule: Schedule = Schedule()
    optim: OptimConfig = OptimConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


STAGE_PHASES: dict[str, tuple[str, ...]] = {
    "warmup": ("coarse", "medium"),
    "alsn": ("alsn",),
    "joint": ("fine",),
}


def phases_of(schedule: Schedule) -> dict[str, Phase]:
    """A schedule's phases by name, in the order in which they train."""
    return {name: getattr(schedule, name) for names in STAGE_PHASES.values() for name in names}


def learns_policy(recipe: Recipe) -> bool:
    """True where the level weights come from a policy, which stage alsn trains and joint training uses."""
    return METHODS[recipe.method.name].weighs_levels and SELECTORS[recipe.selector.kind].learns
