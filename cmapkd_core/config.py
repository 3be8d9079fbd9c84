"""What one training run is made of: frozen dataclasses.

No torch here: a dry run, the submit command and the components read recipes without loading a model.
A `Recipe` is the full named configuration of one run. Every field is either part of the fingerprint
of the stages that read it, or lives in `RuntimeConfig`, which changes speed and never results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cmapkd_core.catalog import LEAKAGE_CHECKS, SELECTORS
from cmapkd_core.fields import FromTable
from cmapkd_core.method_specs import METHODS

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
SPLITS = ("train", "val", "test")
LEAKAGE_ACTIONS = ("refuse", "drop", "allow")  # drop: the training pictures; allow: the manifest says how many
EVALUATE_LEAKAGE_ACTIONS = ("refuse", "allow")  # after a training nothing can be dropped from it


@dataclass(frozen=True)
class DataConfig:
    """Where the pairs come from and what of them a student sees."""

    source: str = "folder"  # a row of catalog.SOURCES
    url: str = ""  # the folder or s3:// prefix a source reads; sources that carry their data need none
    # A limit: the first so many rows of the source, bad ones among them, are all that is read; 0 is no limit. A source
    # that generates pictures makes as many. It belongs to the source that it is given with: another begins without one.
    size: int = 0
    val_share: float = 0.1  # shares of the groups (concepts) held out, where rows name no split
    test_share: float = 0.1
    fraction: float = 1.0  # share of the training pairs that students train on, chosen by key
    samples_per_shard: int = 1024
    quarantine_bound: float = 0.001  # share of bad samples above which a stage fails
    max_pixels: int = 50_000_000  # a larger image is quarantined, never decoded
    crop_scale: tuple[float, float] = (0.9, 1.0)  # CLIP's random resized crop, share of the area
    splits: tuple[str, ...] = ()  # only these of train, val and test are prepared; empty: all of them
    leakage: tuple[str, ...] = tuple(LEAKAGE_CHECKS)  # how training pictures are compared with those held out
    leakage_action: str = "refuse"  # what happens where they meet, one of LEAKAGE_ACTIONS
    against: tuple[str, ...] = ()  # prepare artifacts whose val and test pictures must not be in training either


@dataclass(frozen=True)
class ModelConfig:
    """One side: an open_clip architecture and where its weights come from."""

    model: str = "ViT-B-16"  # an open_clip model name, a config file (path or s3://), or a file name in models/configs
    weights: str = "openai"  # an open_clip pretrained tag, a file (path or s3://), "packages" or "random"


@dataclass(frozen=True)
class Rates:
    """Learning rate per parameter group; a group at 0 is frozen in that phase."""

    student: float = 0.0
    pyramid: float = 0.0  # pyramids, hierarchies and bridges
    selector: float = 0.0
    heads: float = (
        0.0  # projections into the joint space: the teacher's in its own stage; of a student, 0: as `student`
    )
    extra: float = 0.0  # modules that a method owns beside the student, such as FitNet's regressors


@dataclass(frozen=True)
class Phase:
    """One row of a training schedule, run inside a stage."""

    epochs: int = 0
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


@dataclass(frozen=True)
class PyramidConfig:
    """Levels that a recipe uses at all, and their common width."""

    width: int = 256
    vision_levels: tuple[str, ...] = VISION_LEVELS
    text_levels: tuple[str, ...] = TEXT_LEVELS
    inherit: bool = False  # the student's level modules start from the teacher's fitted ones where shapes agree


@dataclass(frozen=True)
class TeacherFitConfig:
    """Stage `teacher`: what is fitted on the frozen teacher before any student is trained."""

    space: Phase = Phase()  # heads of locked towers, where the teacher has no joint space of its own
    pyramid: Phase = Phase(1, Rates(pyramid=1e-3))
    batch: int = 256  # global
    dropout: float = 0.3  # on the pooled states that the heads are fitted on
    reconstruction: float = 1.0  # weight of rebuilding the normalised taps from the levels
    alpha: str = "learned"  # compatibility of P_i with L_j: "learned", or "fixed" (1 / 0.5 normalised)
    alpha_prior: float = 1.0  # weight of KL(alpha || diagonal prior), so that the easiest pair does not win alone
    seed: int = 0  # apart from Recipe.seed: all student seeds share one teacher
    # Fixed crops of a picture that students train on, a random one of them each epoch. The teacher's
    # outputs for them are cached, and methods that need no more train from the cache. 0: new crops, a live teacher.
    views: int = 0
    store: str = "embeddings"  # what of the teacher is stored, a row of catalog.STORES


class TermWeights(FromTable):
    """Weights of the terms in the total, by term: `method.weights.kd`. A method uses those that its row names.

    Their names are the terms of all rows of METHODS. A recipe's default are the weights of the paper's method; terms of
    others weigh nothing until a row or an override says so.
    """

    new = "a term of a row of METHODS in cmapkd_core/method_specs.py"

    @staticmethod
    def defaults() -> dict[str, float]:
        """Every term of the table and its weight."""
        ours = METHODS[METHOD].terms
        return {**ours, **{term: 0.0 for spec in METHODS.values() for term in spec.terms if term not in ours}}

    def within(self, phase: Phase) -> dict[str, float]:
        """The weights in a phase: 0 for terms that do not count there."""
        known = vars(self)
        return {name: weight if name in (phase.terms or known) else 0.0 for name, weight in known.items()}


@dataclass(frozen=True)
class MethodConfig:
    """What is optimised: a method with the weights of its terms; other methods leave what they do not read."""

    name: str = METHOD  # a row of method_specs.METHODS
    weights: TermWeights = field(default_factory=TermWeights)
    tau: float = 1.0  # temperature of the align term's KL, on top of the learned scale
    kd_tau: float = 1.0  # temperature of the kd term, on top of both models' scales
    pyramid_align: float = 0.5  # beta: L_align = L_single + beta L_pyramid
    layer_relation: float = 0.3  # gamma: L_relation = sample + gamma layer
    bank: int = 1024  # promptkd: captions kept as classes beside the batch's
    kendall: float = 0.0  # c2kd: a sample's non-target term counts where the proxies' rank agreement is above this


@dataclass(frozen=True)
class SelectorConfig:
    """Who chooses the level weights of a sample."""

    kind: str = "alsn"  # a row of catalog.SELECTORS
    weights: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)  # of a fixed selector, coarse level last
    tau: float = 1.0  # softmax temperature of the weights
    objective: str = "utility"  # what ALSN learns, a row of catalog.OBJECTIVES: "utility", or the paper's "seed"
    toward: tuple[str, ...] = ("task",)  # of EMBEDDING_TERMS: a level is of use where its gradient agrees with theirs
    utility_tau: float = 0.1  # temperature of the target softmax(u / tau_u)
    uniform: float = 0.1  # weight of KL(w || uniform), or of the paper's entropy
    every: int = 10  # joint stage: micro-batches between two measurements of the utilities


@dataclass(frozen=True)
class OptimConfig:
    """Batches, AdamW, precision, and what happens to an update that goes wrong; the same for all methods."""

    batch: int = 256  # global: the in-batch contrastive terms see all of it
    accumulate: int = 1  # micro-batches per update; the contrastive terms then see one micro-batch
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0
    warmup: float = 0.05  # share of a phase's steps with a rising learning rate, before the cosine
    precision: str = "auto"  # one of PRECISIONS
    # An update whose gradient or loss is not finite is skipped; so is one whose gradient spikes.
    max_skipped: int = 20  # of a stage's updates, and of a phase's no more than half; one more stops the stage
    gradient_spike: float = 50.0  # a norm above so many times its running median, and above clip_norm; 0: none is
    loss_spike: float = 3.0  # a loss above so many times its running median is reported; 0: none is
    # Times that a stage which diverges (too many skipped, or a loss that spikes and stays) goes back to its last good
    # checkpoint and on with another order of the batches.
    rollbacks: int = 0


@dataclass(frozen=True)
class VqaConfig:
    """The fusion head that every model gets, on its frozen towers; the same for all of them."""

    answers: int = 3129  # the most frequent training answers; others cannot be said
    epochs: int = 20  # over all training questions, whatever data.fraction
    batch: int = 512  # questions
    lr: float = 5e-4
    width: int = 512
    layers: int = 2
    dropout: float = 0.1
    memory_gb: float = 12.0  # of features of pictures kept; above it every epoch goes through the pictures in parts
    seed: int = 0


@dataclass(frozen=True)
class CaptioningConfig:
    """The prefix decoder that every model gets, on its frozen image tower; the same for all of them."""

    epochs: int = 20  # over all training images, whatever data.fraction; one of its captions is drawn for each
    batch: int = 256
    lr: float = 5e-4
    width: int = 512
    layers: int = 4
    dropout: float = 0.1
    grid: int = 7  # positions of the image a side at most: larger maps are averaged down
    vocabulary: int = 10000  # the most frequent words of the training captions; others cannot be said
    length: int = 24  # words of a caption at most, its end counted
    beams: int = 3
    seed: int = 0


@dataclass(frozen=True)
class EfficiencyConfig:
    """How speed is measured; the numbers hold for the machine that the result names."""

    batches: tuple[int, ...] = (1, 32)
    warmup: int = 3  # calls before the measured ones
    repeats: int = 15  # measured calls; their median counts


@dataclass(frozen=True)
class EvaluateConfig:
    """Which tasks every model is measured on, on which data, and how."""

    tasks: tuple[str, ...] = ("retrieval", "zeroshot")  # on the recipe's own data
    sets: tuple[str, ...] = ()  # TASK[=SOURCE[:URL]]: tasks of their own, on other data where they name it
    split: str = "test"
    # What happens where a model was trained on pictures of the split, which is of another data set than its own: one of
    # EVALUATE_LEAKAGE_ACTIONS. No training reads it, as it does data.leakage_action: accepting a test set costs none.
    leakage_action: str = "refuse"
    templates: str = "clip"  # a row of evaluate.zeroshot.TEMPLATES, or a text file with one {} a line
    classes: str = ""  # what classes are called: "": their own names, "imagenet": by WordNet id, or a file
    batch: int = 256
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

    workers: int = 4  # loader processes per rank
    threads: int = 0  # torch threads per process; 0: torch's own choice
    # A training stage that is killed does again what it did since its last checkpoint; the first that is due makes one.
    checkpoint_every: int = 500  # steps; 0: by time alone
    checkpoint_minutes: float = 5.0  # by rank 0's clock; 0: by steps alone
    # A training whose ranks have all stood still for so long ends with exit code 75, to be tried again from its last
    # checkpoint; the first step of a phase may take four times as long, and writing a checkpoint as long as it takes.
    hang_minutes: float = 30.0  # 0: no bound
    log_every: int = 20
    shares_every: int = 200  # how often the terms' shares of the gradient are measured; costs a backward a term


@dataclass(frozen=True)
class Recipe:
    """One full named configuration; `recipes.RECIPES` has the rows."""

    name: str = "paper"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: ModelConfig = ModelConfig("ViT-L-14", "openai")
    student: ModelConfig = ModelConfig("ViT-B-16", "openai")
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


def learns_policy(recipe: Recipe) -> bool:
    """True where the level weights come from a policy, which stage alsn trains and joint training uses."""
    return METHODS[recipe.method.name].weighs_levels and SELECTORS[recipe.selector.kind].learns
