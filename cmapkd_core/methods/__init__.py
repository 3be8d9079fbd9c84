"""One file per method, one contract (`base.Method`), one line per method in this table."""

from __future__ import annotations

from cmapkd_core.methods.base import Method
from cmapkd_core.methods.cmapkd import Cmapkd
from cmapkd_core.methods.contrastive import Contrastive
from cmapkd_core.methods.kd import Kd

METHODS: dict[str, type[Method]] = {
    "cmapkd": Cmapkd,
    "contrastive": Contrastive,
    "kd": Kd,
}
