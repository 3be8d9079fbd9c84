"""What the rows of recipes.ROWS are called in the paper's tables, and what each is, in a few words."""

from __future__ import annotations

from cmapkd_core.recipes import FULL

FULL_METHOD = "full method"  # in sentences and figures
# Row -> its name in a table, what it is.
NAMES: dict[str, tuple[str, str]] = {
    "scratch": ("Scratch", "random weights, no teacher"),
    "finetune": ("Fine-tuned", "no teacher"),
    "kd": ("KD", "similarities of the batch"),
    "fitnet": ("FitNet", "hints first, then KD"),
    "fitnet_joint": ("FitNet, joint", "hints and KD together"),
    "promptkd": ("PromptKD", "captions as classes"),
    "promptkd_cls": ("PromptKD, classes", "class names as classes"),
    "c2kd": ("C2KD", "proxies, filtered by rank agreement"),
    "llava_kd": ("LLaVA-KD", "three stages, patch distributions"),
    "clip_kd": ("CLIP-KD", "features, logits, interactive contrast"),
    "tinyclip": ("TinyCLIP", "inherited weights, affinities"),
    "mobileclip": ("MobileCLIP", "soft targets"),
    "no_pyramid": ("w/o visual pyramid", "P5 alone"),
    "no_hierarchy": ("w/o language hierarchy", "L4 alone"),
    "no_alsn": ("w/o ALSN (uniform)", "equal weights for all levels"),
    "manual_alsn": ("w/o ALSN (manual)", "weights 0.1, 0.2, 0.3, 0.4"),
    "no_align": ("w/o cross-modal alignment", "no align term"),
    "no_relation": ("w/o relational distillation", "no relation term"),
    "one_stage": ("one-stage training", "all levels from the start"),
    "random_alsn": ("random weights", "drawn for each sample"),
    "shuffled_alsn": ("shuffled weights", "ALSN's, of another sample"),
    "reversed_alsn": ("reversed weights", "ALSN's, levels in reverse order"),
    "seed_alsn": ("ALSN on the loss it weights", "the paper's objective"),
    "embedding_alsn": ("ALSN toward embeddings", "utilities against all terms of the embeddings"),
    "one_stage_uniform": ("one stage, uniform", "all levels from the start, equal weights"),
    "one_stage_embedding": ("one stage, toward embeddings", "all levels from the start, utilities as there"),
    "random_teacher_pyramid": ("unfitted teacher levels", "the teacher's pyramid as it was drawn"),
    "fine_to_coarse": ("fine to coarse", "levels in reverse order"),
    "outline": ("weights of the paper", "intra 1, align 0.5, relation 0.3, task 0.1; no fd"),
    "fd_alone": ("fd and task alone", "no level terms"),
    "fd_64_alone": ("fd 64 and task alone", "no level terms, four times the weight"),
    "no_fd": ("w/o fd", "no term on the embedding but the task"),
    "fd_64": ("fd 64", "four times the weight"),
    "intra_4": ("intra 4", "a quarter of the weight"),
    "intra_64": ("intra 64", "four times the weight"),
    "align_2": ("align 2", "four times the weight"),
    "relation_10": ("relation 10", "33 times the weight"),
    "task_025": ("task 0.25", "a quarter of the weight"),
    "with_kd": ("with kd", "similarities of the batch, weight 1"),
    "clip_kd_500": ("CLIP-KD, features 500", "a quarter of the published weight"),
    "clip_kd_8000": ("CLIP-KD, features 8000", "four times the published weight"),
    "clip_kd_32000": ("CLIP-KD, features 32000", "16 times the published weight"),
    FULL: ("CMAPKD (ours)", "complete, coarse to fine"),
}


def label(row: str) -> str:
    """The row's name in a table; a row that has none there keeps its own."""
    return NAMES.get(row, (row, ""))[0]


def meaning(row: str) -> str:
    """The row in a few words."""
    return NAMES.get(row, (row, ""))[1]
