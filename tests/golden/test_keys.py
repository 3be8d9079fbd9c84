"""No artifact moves without a word: the keys of every recipe x row x stage are those of keys.tsv."""

import dataclasses

import pytest


@pytest.fixture(scope="module")
def keys(command):
    return command("keys")


def test_every_artifact_lies_where_it_lay(keys):
    moved = keys.moved(keys.kept(), keys.now())
    shown = "\n".join(moved[:20])
    assert not moved, f"{len(moved)} keys have moved; where they must: python tests/golden/keys.py --write\n{shown}"


def test_what_moves_is_shown_by_recipe_row_and_stage(keys):
    kept = keys.kept()
    recipe = keys.resolve("tiny", "no_alsn")
    other = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, batch=recipe.optim.batch * 2))
    now = {**kept, ("tiny", "no_alsn"): keys.keys_of(other)}
    moved = keys.moved(kept, now)
    stages = {line.partition(":")[0] for line in moved}
    assert {"tiny no_alsn warmup", "tiny no_alsn joint", "tiny no_alsn retrieval", "tiny no_alsn export"} <= stages
    assert not {"tiny no_alsn prepare", "tiny no_alsn teacher", "tiny no_alsn retrieval before"} & stages


def test_a_row_that_is_new_is_shown(keys):
    kept = keys.kept()
    cell = ("tiny", "no_alsn")
    first = next(iter(kept[cell].items()))
    moved = keys.moved({k: v for k, v in kept.items() if k != cell}, kept)
    assert moved[0] == f"tiny no_alsn {first[0]}: None -> {first[1]}"


def test_the_file_is_written_where_that_is_asked_for_alone(keys, tmp_path, monkeypatch, capsys):
    """What stands in it keeps its line; it once was written for `--help` too."""
    text = keys.FILE.read_text()
    monkeypatch.setattr(keys, "FILE", tmp_path / "keys.tsv")
    keys.FILE.write_text(text.replace("tiny\tno_alsn\tprepare/", "tiny\tno_alsn\tother/"))
    assert keys.main([]) == 0
    assert "tiny no_alsn prepare: other/" in capsys.readouterr().out
    assert keys.FILE.read_text() != text
    assert keys.main(["--write"]) == 0
    assert keys.FILE.read_text() == text
