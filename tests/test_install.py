"""What `pip install` of this repository puts into somebody's environment, and what `make` installs when."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
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


# ---- make -----------------------------------------------------------------------------------------

# In place of Python: keeps what it is asked, makes such a one where a venv is made, and runs what is given by -c.
STUB = """#!/bin/sh
printf '%s\\n' "$*" >>{log}
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
-c*) PYTHONPATH={metadata} exec {python} "$@" ;;
esac
"""
Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make TARGET ..` with a Python that only writes down what it was asked, in `log`."""
    for name in ("torch-2.9.0+cpu", "torchvision-0.24.0+cpu"):
        release(tmp_path, name)
    stub = tmp_path / "python"
    named = {"log": tmp_path / "log", "metadata": tmp_path / "metadata", "python": sys.executable}
    stub.write_text(STUB.format(**{name: shlex.quote(str(path)) for name, path in named.items()}))
    stub.chmod(0o755)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "log").write_text("")
        command = ["make", f"PYTHON={stub}", f"VENV={tmp_path / 'venv'}", *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    return run


def release(folder: Path, name: str) -> None:
    """What is told of an installed package, NAME-VERSION."""
    (folder / "metadata" / f"{name}.dist-info").mkdir(parents=True)
    package, _, version = name.partition("-")
    (folder / "metadata" / f"{name}.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")


def installed(tmp_path: Path) -> list[str]:
    """What pip was asked for."""
    lines = (tmp_path / "log").read_text().splitlines()
    return [line.partition("--disable-pip-version-check ")[2] for line in lines if line.startswith("-m pip install")]


def test_the_demo_waits_for_what_it_needs_and_says_how_much(make: Make, tmp_path: Path) -> None:
    first = make("demo")
    assert first.returncode == 0, first.stderr
    assert installed(tmp_path) == ["-e .[demo]"]
    told = first.stdout
    assert told.index("180 packages, 6.7 GB on disk") < told.index("pip install") < told.index("setup: done")
    assert "make demo TORCH_INDEX=URL" in told
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("pipelines/submit.py --recipe demo --local")
    again = make("demo")
    assert "setup" not in again.stdout
    assert installed(tmp_path) == []


def test_what_tests_need_is_added_to_it(make: Make, tmp_path: Path) -> None:
    make("install-demo")
    assert make("install").returncode == 0
    assert installed(tmp_path) == ["-e .[demo,test]"]
    make("install")
    assert installed(tmp_path) == []


def test_torch_and_torchvision_come_from_the_index_that_is_given(make: Make, tmp_path: Path) -> None:
    make("install-demo")  # with CUDA
    asked = [f"--no-deps --index-url https://x.org/{name} torch>=2.4 torchvision>=0.19" for name in ("cpu", "other")]
    assert make("install-demo", "TORCH_INDEX=https://x.org/cpu").returncode == 0
    assert installed(tmp_path) == [asked[0], "-e .[demo]"]
    for words in (["TORCH_INDEX=https://x.org/cpu"], []):  # what is there stays where nothing else is asked for
        make("install-demo", *words)
        assert installed(tmp_path) == []
    make("install-demo", "TORCH_INDEX=https://x.org/other")
    assert installed(tmp_path)[0] == asked[1]
    make("install-demo", "TORCH_INDEX=https://x.org/cpu")
    assert installed(tmp_path)[0] == asked[0]


def test_builds_of_two_indexes_are_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "metadata/torchvision-0.24.0+cpu.dist-info/METADATA").write_text("Name: torchvision\nVersion: 0.24.0\n")
    done = make("install-demo")
    assert done.returncode
    assert "torch 2.9.0+cpu and torchvision 0.24.0 are of two indexes: make install-demo TORCH_INDEX=URL" in done.stderr
    assert not list((tmp_path / "venv").glob(".installed*"))
