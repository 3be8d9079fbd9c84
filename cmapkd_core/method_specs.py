"""What each method reads and trains, known without torch; the classes themselves are in methods/."""

from __future__ import annotations

from dataclasses import dataclass

from cmapkd_core.config import LEARNED_SELECTORS, Recipe


@dataclass(frozen=True)
class MethodSpec:
    """What a method reads and trains, known without torch; the class itself is in methods/."""

    terms: tuple[str, ...]
    groups: tuple[str, ...] = ("student",)
    teacher: bool = True
    targets: str = "towers"  # what of the teacher it hears: all of its towers, or what may be stored (config.STORES)
    classes: bool = False  # compares the data's classes: the teacher's text features of them are made for it
    reads: tuple[str, ...] = ()  # recipe fields beyond weights of its terms, student, data and optimiser
    deviations: str = "none"  # from what was published, as it stands below a report's table

    @property
    def weighs_levels(self) -> bool:
        """True for methods that weigh levels for each sample."""
        return "selector" in self.groups


METHODS: dict[str, MethodSpec] = {
    "cmapkd": MethodSpec(
        terms=("intra", "align", "relation", "task", "kd", "fd", "icl", "policy"),
        groups=("student", "pyramid", "selector"),
        targets="levels",
        reads=("method.tau", "method.kd_tau", "method.pyramid_align", "method.layer_relation", "pyramid"),
        deviations="the README's table of what differs from the paper",
    ),
    "contrastive": MethodSpec(terms=("task",), teacher=False),
    "kd": MethodSpec(
        terms=("task", "kd"),
        targets="embeddings",
        reads=("method.kd_tau",),
        deviations="rows and columns of the batch's similarities stand for class scores",
    ),
    "fitnet": MethodSpec(
        terms=("hint", "task", "kd"),
        groups=("student", "extra"),
        reads=("method.kd_tau",),
        deviations="one hint a tower at half the depth; regressors without ReLU and batch norm onto layer-normed "
        "targets; mean for sum; kd with a constant weight, equal to the task's; AdamW and the recipe's schedule; "
        "captions as means where the two tokenizers differ",
    ),
    "promptkd": MethodSpec(
        terms=("prompt",),
        groups=("student", "extra"),
        targets="embeddings",
        reads=("method.kd_tau", "method.bank"),
        deviations="retrieval form: the batch's and banked captions stand for class names; the whole image tower "
        "trains in place of visual prompts; the projector reads the unit embedding; the teacher is not prompt-tuned; "
        "AdamW and the recipe's schedule. Inference needs the teacher's text tower",
    ),
    "promptkd_cls": MethodSpec(
        terms=("prompt",),
        groups=("student", "extra"),
        targets="embeddings",
        classes=True,
        reads=("method.kd_tau", "evaluate.templates", "evaluate.classes"),
        deviations="class-text form over the data's classes: the whole image tower trains in place of visual prompts; "
        "the projector reads the unit embedding; the teacher is not prompt-tuned, and templates stand for its learned "
        "prompts; AdamW and the recipe's schedule; "
        "weight 1000 for every data set. Inference needs the teacher's text tower; among the data's own classes "
        "their stored features are enough",
    ),
    "c2kd": MethodSpec(
        terms=("task", "proxy", "nontarget"),
        groups=("student", "extra"),
        reads=("method.kendall",),
        deviations="the batch's pairs stand for classes, both cross-modal directions are averaged, proxies are "
        "Linear-LN-GELU-Linear into the joint space, and the teacher stays frozen: of its side the proxies alone train "
        "(teacher_update=proxy_only); AdamW and the recipe's schedule. As released: the own logit is zeroed and not "
        "removed",
    ),
    "llava_kd": MethodSpec(
        terms=("task", "kd", "patches", "patch_relation"),
        groups=("student", "heads"),
        reads=("method.kd_tau",),
        deviations="adapted from language models: captions of the batch stand for the vocabulary, projections into the "
        "joint space for the projector; batch norms of frozen towers keep following the data; DPT, SFT and DFT take "
        "the phases' shares of the budget; all weights 1, since the paper's are not known to us",
    ),
    "clip_kd": MethodSpec(
        terms=("task", "kd", "mse", "icl"),
        groups=("student", "extra"),
        targets="embeddings",
        reads=("method.kd_tau",),
        deviations="the learned scale of ICL is an exponent, clamped at 100; projections are the same on every rank, "
        "and in the checkpoint; the gradient passes through the gather; the student's weights are the recipe's, not "
        "random",
    ),
    "tinyclip": MethodSpec(
        terms=("kd",),
        targets="embeddings",
        reads=("method.kd_tau",),
        deviations="weights are inherited in depth, and only by towers of the teacher's widths (released: the first "
        "channels of each width too); no mask is learned; one compression step; the student's scale is 50 from the "
        "first step on, not from the second",
    ),
    "mobileclip": MethodSpec(
        terms=("task", "soft"),
        targets="embeddings",
        deviations="one teacher instead of several, at its own scale (released: 100), whose embeddings are stored "
        "where teacher_fit.views is above 0; no synthetic captions and no RandAugment; lambda 0.75 for every student "
        "(released: 1 for the small ones)",
    ),
}


def learns_policy(recipe: Recipe) -> bool:
    """True where the level weights come from a policy, which stage alsn trains and joint training uses."""
    return METHODS[recipe.method.name].weighs_levels and recipe.selector.kind in LEARNED_SELECTORS
