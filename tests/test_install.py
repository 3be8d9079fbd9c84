"""What `pip install` of this repository puts into somebody's environment."""

from __future__ import annotations

import tomllib
from pathlib import Path

from setuptools import find_packages

REPOSITORY = Path(__file__).parents[1]


def test_two_names_are_installed_and_no_common_words() -> None:
    """`pipelines`, `components` or `tests` at the top of site-packages would be another project's as well."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = find_packages(str(REPOSITORY), include=settings["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in found} == {"cmapkd", "cmapkd_core"}
    with_code = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for top in ("cmapkd", "cmapkd_core")
        for path in (REPOSITORY / top).rglob("*.py")
    }
    assert with_code == {*found}  # a folder without __init__.py would be left out
