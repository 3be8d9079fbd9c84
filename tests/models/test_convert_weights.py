"""Torch's formats become safetensors by a process that can take no more than its file is worth."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from peak import peak_of
from safetensors.torch import load_file

from cmapkd_core.config import ModelConfig
from cmapkd_core.convert_weights import main
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bounded import convert_here
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.named import read_weights
from cmapkd_core.models.pickled import read_pickled


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def equal_weights(one: Backbone, other: Backbone) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def bomb(path: Path, size: int) -> None:
    """A .pt of a few KB whose record of zeros inflates to `size` bytes."""
    torch.save({"w": torch.zeros(2)}, path.with_suffix(".small"))
    with zipfile.ZipFile(path.with_suffix(".small")) as small, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for record in small.infolist():
            data = bytes(size) if record.filename.endswith("data/0") else small.read(record)
            file.writestr(record.filename, data)


def test_a_training_checkpoint_of_torch_is_read(tmp_path: Path) -> None:
    tiny = build(ModelConfig("tiny-student", "random"), 3, tmp_path)
    state = {f"module.{name}": value for name, value in tiny.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    found = read_pickled(tmp_path / "epoch_3.pt")
    assert found.keys() == tiny.model.state_dict().keys()
    assert all(value.equal(found[name]) for name, value in tiny.model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_weights_that_may_hold_code_are_refused_by_their_name(suffix: str) -> None:
    way_out = rf"python -m cmapkd_core\.convert_weights s3://b/l\{suffix} s3://b/l\.safetensors, and name that"
    with pytest.raises(InputError, match=way_out):
        read_weights("ViT-L-14", f"openai@s3://b/l{suffix}")


def test_a_folder_with_weights_that_may_hold_code_is_refused(tmp_path: Path) -> None:
    save_model(student := build(ModelConfig("tiny-student", "random"), 3, tmp_path), tmp_path / "own")
    weights = tmp_path / "own" / "model.safetensors"
    data = weights.read_bytes()
    torch.save(load_file(weights), tmp_path / "own" / "pytorch_model.bin")
    weights.unlink()
    own = ModelConfig(f"local-dir:{tmp_path / 'own'}", "own")
    with pytest.raises(InputError, match=r"only \.safetensors is read.* (\S+)/pytorch_model\.bin \1/pytorch_model"):
        build(own, 0, tmp_path)
    (tmp_path / "own" / "pytorch_model.safetensors").write_bytes(data)  # as the command makes it
    assert equal_weights(build(own, 0, tmp_path), student)


def test_no_code_in_a_weights_file_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt cannot be read"):
        read_pickled(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_claims_more_than_it_holds_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.pt", 200_000_000)

    def refused() -> None:
        words = r"bomb\.pt has \d{6} bytes and claims to hold 2000\d{5}, 2000\d{5} of them compressed"
        with pytest.raises(InputError, match=words):
            read_pickled(tmp_path / "bomb.pt")

    assert peak_of(refused) < 20 * 2**20


def test_a_file_that_asks_for_more_memory_than_it_is_worth_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A view of one number that has 2 * 10^10, which no header tells: the bound of the process does."""
    torch.save({"w": torch.zeros(1).expand(20_000_000_000)}, tmp_path / "view.pt")
    assert (tmp_path / "view.pt").stat().st_size < 2000
    assert main([str(tmp_path / "view.pt"), str(tmp_path / "view.safetensors")]) == 2
    assert "takes more than 1024 MiB" in capsys.readouterr().err


def test_the_converter_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, target, words in (
        ("nowhere.pt", "x.safetensors", "there is no weights file nowhere.pt: check the place"),
        ("x.pt", "x.bin", "OUT x.bin: write a file that ends in .safetensors"),
    ):
        assert main([source, target]) == 2
        assert words in capsys.readouterr().err


def test_the_bounded_process_is_given_what_libraries_are_found_by_and_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\nenv > {tmp_path}/given\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in ("LD_LIBRARY_PATH", "HOME", "TMPDIR", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("TMPDIR")
    convert_here(tmp_path / "in", tmp_path / "out")
    given = dict(line.split("=", 1) for line in (tmp_path / "given").read_text().splitlines())
    assert given["LD_LIBRARY_PATH"] == given["HOME"] == str(tmp_path)
    assert given["PATH"] == os.environ["PATH"]
    assert not {"TMPDIR", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & set(given)
