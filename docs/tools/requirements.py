"""What `make docs` installs: the optional dependencies `docs` of pyproject.toml, without those of the package."""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sys.stdout.write(" ".join(f"'{one}'" if " " in one else one for one in project["optional-dependencies"]["docs"]))
