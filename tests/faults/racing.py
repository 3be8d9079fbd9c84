"""What each process of a race does: `racing.py turns|passed|slow GO MODULE ARGV`, a stage once the file GO is there.

turns: as it is. passed: nobody waits for the other, as where one was silent for so long that it was passed.
slow: the same, and each part of a teacher's store takes long.
"""

import importlib
import sys
import time
from pathlib import Path

from cmapkd_core.stages import execute, store_filling
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.turn import Turn


def slowly(work):
    def worked(*given):
        time.sleep(0.5)
        return work(*given)

    return worked


if __name__ == "__main__":
    mode, go, module = sys.argv[1:4]
    execute.LOOK = 0.02
    if mode != "turns":
        Turn.take = lambda self: ""
    if mode == "slow":
        store_filling.write_part = slowly(store_filling.write_part)
    run = importlib.import_module(module).run
    while not Path(go).exists():
        time.sleep(0.001)
    sys.exit(main(run, sys.argv[4:]))
