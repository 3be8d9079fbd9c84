"""What is named where no artifact is: the one that was meant, or those that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.stages.nearby import MODELS, TRAINED, nearby, open_input

FIRST, OTHER, STUDENT, DATA, HALF = "4f0c21aa9b3e", "77d3e5b0c19a", "c80b55f2e0d1", "9e1f6a7b3c2d", "123456789abc"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Artifacts of three stages, and one that is not complete."""
    place = str(tmp_path / "root") if request.param == "local" else str(request.getfixturevalue("s3_root"))
    for name in (f"joint/{FIRST}", f"joint/{OTHER}", f"export/{STUDENT}", f"prepare/{DATA}"):
        storage.write_bytes(storage.join(place, name, "manifest.json"), b"{}")
    storage.write_bytes(storage.join(place, f"joint/{HALF}/work/x"), b"")
    return place


def test_the_artifact_that_was_meant(root: str) -> None:
    right = f"{root}/joint/{FIRST}"
    for typed in (f"joint/{FIRST[:-1]}", f"jiont/{FIRST}", f"joint/{FIRST}/out-1/model", f"joint/{FIRST}0/out-1/model"):
        assert nearby(f"{root}/{typed}", TRAINED) == f"did you mean {right}?", typed
    with pytest.raises(InputError, match=f"run it first, or give one that is complete: did you mean {right}\\?$"):
        open_input("init", f"{root}/joint/{FIRST[1:]}")
    with pytest.raises(InputError, match="run it first$"):
        open_input("teacher", f"{root}/joint/{FIRST[1:]}")


def test_one_and_two_levels_too_high(root: str) -> None:
    trained = f"{root}/joint/{FIRST}, {root}/joint/{OTHER}"
    assert nearby(f"{root}/joint", MODELS) == nearby(f"{root}/joint/", MODELS) == f"below it are {trained}"
    assert nearby(root, MODELS) == f"below it are {root}/export/{STUDENT}, {trained}"
    assert nearby(root, ("prepare",)) == f"below it are {root}/prepare/{DATA}"


def test_a_key_of_nothing_lists_what_there_is(root: str) -> None:
    trained = f"{root}/joint/{FIRST}, {root}/joint/{OTHER}"
    for typed in (f"joint/{HALF}", "joint/x"):
        assert nearby(f"{root}/{typed}", TRAINED) == f"there are {trained}"
    for number in range(3):
        storage.write_bytes(f"{root}/joint/5{number}/manifest.json", b"{}")
    assert (
        nearby(f"{root}/joint", TRAINED)
        == f"below it are {root}/joint/{FIRST}, " + ", ".join(f"{root}/joint/5{number}" for number in range(3)) + ", .."
    )


def test_a_root_that_is_misspelled_and_a_place_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert nearby(f"{tmp_path}/result/joint/{FIRST}", MODELS) == f"did you mean {tmp_path}/results?"
    assert nearby(f"{tmp_path}/other", MODELS) == ""
    assert nearby("no/such/folder", MODELS) == ""
