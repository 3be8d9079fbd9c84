"""One file per method, one contract (`base.Method`), one line per method in this table."""

from __future__ import annotations

from cmapkd_core.methods.base import Method
from cmapkd_core.methods.c2kd import C2Kd
from cmapkd_core.methods.clip_kd import ClipKd
from cmapkd_core.methods.cmapkd import Cmapkd
from cmapkd_core.methods.contrastive import Contrastive
from cmapkd_core.methods.fitnet import FitNet
from cmapkd_core.methods.kd import Kd
from cmapkd_core.methods.llava_kd import LlavaKd
from cmapkd_core.methods.mobileclip import MobileClip
from cmapkd_core.methods.promptkd import PromptKd
from cmapkd_core.methods.promptkd_cls import PromptKdCls
from cmapkd_core.methods.tinyclip import TinyClip

METHODS: dict[str, type[Method]] = {
    "cmapkd": Cmapkd,
    "contrastive": Contrastive,
    "kd": Kd,
    "fitnet": FitNet,
    "promptkd": PromptKd,
    "promptkd_cls": PromptKdCls,
    "c2kd": C2Kd,
    "llava_kd": LlavaKd,
    "clip_kd": ClipKd,
    "tinyclip": TinyClip,
    "mobileclip": MobileClip,
}
