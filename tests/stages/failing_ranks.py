"""What each of two processes does in test_failing_ranks.py: `failing_ranks.py fails|waits`.

fails: rank 1 raises while rank 0 is in a collective; leaving the group takes for ever, as NCCL's teardown does then.
waits: rank 0 is busy for longer than the timeout of training's collectives.
"""

import sys
import time
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from cmapkd_core import parallel
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main


def run(request: Request, *, mode: str) -> str:
    parallel.start()
    if mode == "fails" and parallel.rank() == 1:
        raise RuntimeError("no memory left on rank 1")
    if mode == "waits" and parallel.rank() == 0:
        time.sleep(5)
    parallel.barrier()
    return str(parallel.broadcast(f"done by {parallel.rank()}"))


if __name__ == "__main__":
    mode = sys.argv[1]
    dist.init_process_group = partial(dist.init_process_group, timeout=timedelta(seconds=2))
    if mode == "fails":
        parallel.stop = lambda: time.sleep(600)
    sys.exit(main(run, ["--recipe", "tiny", "--root", ".", "--mode", mode]))
