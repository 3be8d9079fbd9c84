"""Start the pipeline from a checkout, as `cmapkd submit` does: `python pipelines/submit.py --help` says more."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository; of a script its own folder stands there

from cmapkd.pipelines.submit import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
