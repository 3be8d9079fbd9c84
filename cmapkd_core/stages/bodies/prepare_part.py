"""What stage prepare_part does: some rows of a source into shards of their own."""

from __future__ import annotations

from cmapkd_core.data.rows import Partition
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import Interrupted
from cmapkd_core.stages.bodies.written_rows import write_rows
from cmapkd_core.stages.execute import Context


def body(context: Context, part: Partition) -> dict[str, float]:
    """The part into `context.out`; its counts are the metrics."""
    stop = StopRequest().listen()
    try:
        counts = write_rows(context, stop, part)
        if stop.asked:
            raise Interrupted(f"part {part.number} was asked to stop after its last row; its finished shards are kept")
    finally:
        stop.release()
    return {name: float(count) for name, count in counts.items()}
