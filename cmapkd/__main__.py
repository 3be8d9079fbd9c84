"""`python -m cmapkd`, which is the command `cmapkd`."""

import sys

from cmapkd.console import main

if __name__ == "__main__":
    sys.exit(main())
