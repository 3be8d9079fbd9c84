"""The methods, a row each: what it reads and trains, and where its class is (one file a method in methods/). No torch.

A new method is its file and its row here. All else follows from the row: the weights `method.weights.*` of its terms,
the row of recipes.BASELINES that `--method` takes, its golden curve, its line among a report's deviations and in

    python -m cmapkd_core.method_specs > docs/deviations.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core.catalog import STORES, TableEntry
from cmapkd_core.markup import plain

TARGETS = ("towers", *STORES)


@dataclass(frozen=True)
class MethodSpec(TableEntry):
    """What a method reads and trains; `code` is its class, a methods.base.Method."""

    terms: Mapping[str, float]  # of its loss, each with its weight as published
    groups: tuple[str, ...] = ("student",)  # of parameters, those of config.Rates
    teacher: bool = True
    targets: str = "towers"  # teacher outputs it trains on: all of its towers', or what may be cached (catalog.STORES)
    ensemble: bool = False  # it averages over several teachers where the recipe names further ones (`teachers`)
    unpaired: bool = False  # pictures without captions train it too (data.unpaired, method.unpaired)
    classes: bool = False  # compares the data's classes: the teacher's text features of them are made for it
    on_demand: tuple[str, ...] = ()  # terms that are computed only where the recipe gives them a weight
    since: tuple[str, ...] = ()  # fields younger than its artifacts, out of their keys where they have their defaults
    reads: tuple[str, ...] = ()  # recipe fields beyond weights of its terms, student, data and optimiser
    settings: Mapping[str, Any] = field(default_factory=dict)  # recipe fields that it is published with, beside weights
    row: str = ""  # of recipes.ROWS that is this method as published, where it is not called as the method
    deviations: str = "none"  # from what was published; the only wording, which reports, cards and docs quote

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"the row of {self.code}: targets='{self.targets}': one of {', '.join(TARGETS)}")

    def terms_with(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """The terms that its loss has with these weights of a recipe."""
        return tuple(term for term in self.terms if term not in self.on_demand or weights[term] > 0)

    @property
    def weighs_levels(self) -> bool:
        """True for methods that weigh levels for each sample."""
        return "selector" in self.groups


KD = ("method.kd_tau", "method.kd_standardise")  # what a term kd reads
ONE_MAP = "method.one_map"  # of methods with methods/lifts.py
ON_DEMAND = ("bank", "vrd", "vrd_contrast", "xrd")  # of cmapkd; younger than its artifacts
# Modules that a method makes from nothing, at the rate of their papers' projectors in every recipe.
EXTRA = {f"schedule.{phase}.lr.extra": 1e-3 for phase in ("coarse", "medium", "fine")}

METHODS: dict[str, MethodSpec] = {
    "cmapkd": MethodSpec(
        "cmapkd_core.methods.cmapkd:Cmapkd",
        terms={
            "intra": 1.0,
            "align": 0.5,
            "relation": 0.3,
            "task": 0.1,
            "kd": 0.0,
            "fd": 0.0,
            "icl": 0.0,  # of embeddings, 0 in the paper's form
            "bank": 0.0,  # of embeddings too
            "vrd": 0.0,  # relations between student and teacher, as CLIP-RD has them
            "vrd_contrast": 0.0,
            "xrd": 0.0,
            "policy": 1.0,  # ALSN's own loss; its gradient reaches the selector alone
        },
        groups=("student", "pyramid", "selector"),
        targets="levels",
        ensemble=True,
        on_demand=ON_DEMAND,
        unpaired=True,
        since=("method.bank", *(f"method.weights.{term}" for term in ON_DEMAND)),
        reads=(
            *(*KD, ONE_MAP, "method.tau", "method.bank"),
            *("method.pyramid_align", "method.layer_relation", "method.unpaired"),
            "pyramid",
        ),
        row="none",
        deviations="the teacher's pyramid is fitted first and then frozen; levels are compared by direction, position "
        "by position; ALSN learns utilities, without a sigmoid; the task's loss is on the CLIP embeddings, with kd, "
        "fd, icl, bank and CLIP-RD's relations as further terms there; single levels are aligned with the teacher's; "
        "relations between levels are linear CKA; one schedule of 25 epochs (docs/decisions says why)",
    ),
    "contrastive": MethodSpec(
        "cmapkd_core.methods.contrastive:Contrastive",
        terms={"task": 1.0},
        teacher=False,
        row="finetune",
    ),
    "kd": MethodSpec(
        "cmapkd_core.methods.kd:Kd",
        terms={"task": 1.0, "kd": 1.0},
        targets="embeddings",
        ensemble=True,
        reads=KD,
        deviations="rows and columns of the batch's similarities stand for class scores; kd_standardise z-scores by "
        "the deviation of the row itself, as in its paper (released: B - 1 for B), at the temperature and the weight "
        "of kd, 1 and 1 (released: 2 and 9, for CIFAR-100)",
    ),
    "fitnet": MethodSpec(
        "cmapkd_core.methods.fitnet:FitNet",
        terms={"hint": 1.0, "task": 1.0, "kd": 1.0},
        groups=("student", "extra"),
        reads=KD,
        settings={  # hints for the first quarter of the budget, then kd
            **EXTRA,
            "schedule.coarse.terms": ("hint",),
            "schedule.medium.terms": ("task", "kd"),
            "schedule.fine.terms": ("task", "kd"),
        },
        deviations="one hint a tower at half the depth, on both towers; regressors without ReLU and batch norm "
        "(torchdistill has both) onto layer-normed targets, since a transformer's states are signed and a "
        "few of its channels would be the whole loss; means for sums; kd with a constant weight, equal to "
        "the task's (published: annealed from 4 to 1; torchdistill: task and kd by halves); AdamW and the "
        "recipe's schedule (torchdistill: Adam, then SGD); tokens one by one where both tokenizers give "
        "the same ids, else as means over the caption",
    ),
    "promptkd": MethodSpec(
        "cmapkd_core.methods.promptkd:PromptKd",
        terms={"prompt": 1000.0},
        groups=("student", "extra"),
        targets="embeddings",
        reads=("method.kd_tau", "method.bank"),
        settings=EXTRA,
        deviations="retrieval form: the batch's and banked captions stand for class names; the whole image tower "
        "trains in place of visual prompts, since a student of another family has none; the projector "
        "reads the unit embedding (released: the raw projection); the teacher is not prompt-tuned; AdamW "
        "and the recipe's schedule (published: SGD, 20 epochs of batches of 8). Inference needs the "
        "teacher's text tower",
    ),
    "promptkd_cls": MethodSpec(
        "cmapkd_core.methods.promptkd_cls:PromptKdCls",
        terms={"prompt": 1000.0},
        groups=("student", "extra"),
        targets="embeddings",
        classes=True,
        reads=("method.kd_tau", "evaluate.templates", "evaluate.classes"),
        settings=EXTRA,
        deviations="class-text form over the data's classes: the whole image tower trains in place of visual "
        "prompts, since a student of another family has none; the projector reads the unit embedding "
        "(released: the raw projection); the teacher is not prompt-tuned, and templates stand for its "
        "learned prompts; AdamW and the recipe's schedule (published: SGD, 20 epochs of batches of 8); "
        "weight 1000 for every data set (published: 200 for three of them). Inference needs the teacher's "
        "text tower; among the data's own classes their stored features are enough",
    ),
    "c2kd": MethodSpec(
        "cmapkd_core.methods.c2kd:C2Kd",
        terms={"task": 1.0, "proxy": 1.0, "nontarget": 1.0},
        groups=("student", "extra"),
        reads=("method.kendall",),
        settings=EXTRA,
        deviations="the batch's pairs stand for classes, both cross-modal directions are averaged, proxies are "
        "Linear-LN-GELU-Linear into the joint space (published: 1x1 convolution, BN, LeakyReLU, FC over "
        "classes), and the teacher stays frozen: of its side the proxies alone train "
        "(teacher_update=proxy_only), so the teacher's cross entropy and its KL to its proxy are constants "
        "and left out; AdamW and the recipe's schedule (published: SGD). As released: the own logit is zeroed and "
        "not removed, the mean is over the batch, tau over all classes",
    ),
    "llava_kd": MethodSpec(
        "cmapkd_core.methods.llava_kd:LlavaKd",
        terms={"task": 1.0, "kd": 1.0, "patches": 1.0, "patch_relation": 1.0},
        groups=("student", "heads"),
        reads=KD,
        # DPT: the projections alone, at LLaVA's rate for its projector. SFT: the task alone. DFT: everything.
        settings={
            "schedule.coarse.lr.student": 0.0,
            "schedule.coarse.lr.heads": 1e-3,
            "schedule.medium.terms": ("task",),
        },
        deviations="adapted from language models: captions of the batch stand for the vocabulary, projections into "
        "the joint space for the projector; batch norms of frozen towers keep following the data in DPT; "
        "DPT, SFT and DFT take the phases' shares of the budget (a quarter, a quarter, a half); all "
        "weights 1, since the paper's are not known to us",
    ),
    "clip_kd": MethodSpec(
        "cmapkd_core.methods.clip_kd:ClipKd",
        terms={"task": 1.0, "kd": 1.0, "mse": 2000.0, "icl": 1.0},
        groups=("student", "extra"),
        targets="embeddings",
        ensemble=True,
        reads=(*KD, ONE_MAP),
        settings={**EXTRA, ONE_MAP: False},
        deviations="the learned scale of ICL is an exponent, clamped at 100 (released: the bare parameter); "
        "projections are the same on every rank, and in the checkpoint (released: neither); the gradient "
        "passes through the gather; the student's weights are the recipe's, not random",
    ),
    "clip_rd": MethodSpec(
        "cmapkd_core.methods.clip_rd:ClipRd",
        terms={"task": 1.0, "kd": 1.0, "mse": 2000.0, "icl": 1.0, "vrd": 1.0, "vrd_contrast": 1.0, "xrd": 1.0},
        groups=("student", "extra"),
        targets="embeddings",
        ensemble=True,
        reads=(*KD, ONE_MAP),
        settings={**EXTRA, ONE_MAP: False},
        deviations="terms and weights from the code of that name at github.com/Rosieyang01/CLIP-RD, since of the paper "
        "we could read the abstract alone; learned scales are exponents, clamped at 100 (released: bare parameters); "
        "the task and kd compare the student's own embeddings also where widths differ (released: those lifted into "
        "the teacher's space); projections, gather and the student's weights as of clip_kd",
    ),
    "tinyclip": MethodSpec(
        "cmapkd_core.methods.tinyclip:TinyClip",
        terms={"kd": 1.0},
        targets="embeddings",
        reads=KD,
        deviations="weights are inherited in depth, and only by towers of the teacher's widths (released: the first "
        "channels of each width too, or learned masks); no mask is learned; one compression step, where "
        "the paper compresses in several; the student's scale is 50 from the first step on, not from the "
        "second",
    ),
    "mobileclip": MethodSpec(
        "cmapkd_core.methods.mobileclip:MobileClip",
        terms={"task": 0.25, "soft": 0.75},
        targets="embeddings",
        ensemble=True,
        deviations="one teacher, or several by field teachers (published: two), each at its own scale (released: 100, "
        "its teachers' own), whose embeddings are stored where teacher_fit.views is above 0; no synthetic captions and "
        "no RandAugment; lambda 0.75 for every student, that of MobileCLIP-B on DataCompDR-1B (released for "
        "-S and for 12M: 1)",
    ),
}


def document() -> str:
    """docs/deviations.md: every method with the weights of its terms and what deviates from its paper."""
    lines = [
        "# The methods, and what deviates from what was published",
        "",
        "Written by `python -m cmapkd_core.method_specs > docs/deviations.md` from the rows of `METHODS`,",
        "which reports and model cards quote too.",
        "",
        "| method | row | terms with their weights | deviations |",
        "|---|---|---|---|",
    ]
    for name, spec in METHODS.items():
        weights = ", ".join(f"{term} {weight:g}" for term, weight in spec.terms.items())
        lines.append(f"| {plain(name)} | {plain(spec.row or name)} | {plain(weights)} | {plain(spec.deviations)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(document(), end="")
