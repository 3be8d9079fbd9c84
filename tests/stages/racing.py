"""What each process of a race does: `racing.py turns|passed GO MODULE ARGV`, a stage as soon as the file GO is there.

turns: as it is. passed: nobody waits for the other, as where one was silent for so long that it was passed.
"""

import importlib
import sys
import time
from pathlib import Path

from cmapkd_core.stages import common
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.turn import Turn

if __name__ == "__main__":
    mode, go, module = sys.argv[1:4]
    common.LOOK = 0.02
    if mode == "passed":
        Turn.take = lambda self: ""
    run = importlib.import_module(module).run
    while not Path(go).exists():
        time.sleep(0.001)
    sys.exit(main(run, sys.argv[4:]))
