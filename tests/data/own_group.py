"""What test_feed.py stops: a process that reads from two workers and, asked by SIGTERM, ends after an item: 143."""

import sys
import time

from cmapkd_core.data import feed
from cmapkd_core.data.feed import Feed, Items
from cmapkd_core.engine.runtime import StopRequest


class Slow(Items[int]):
    def make(self, number: int) -> int:
        time.sleep(0.02)
        return number


leave = feed._own_group


def late(worker: int) -> None:
    """A worker that is still starting when the first item and the signal come."""
    time.sleep(2.0 * worker)
    leave(worker)


def main() -> int:
    feed._own_group = late
    stop = StopRequest().listen()
    for number in Feed(Slow(), workers=2).items(0, 5000):
        print(number, flush=True)
        if stop.asked:
            print("asked to stop", flush=True)
            return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
