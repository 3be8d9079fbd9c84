"""Names and tags as open_clip has them, read from its files."""

from __future__ import annotations

from pathlib import Path

import open_clip
from open_clip.pretrained import list_pretrained_tags_by_model

from cmapkd_core.models import open_clip_names

FOLDER = Path(open_clip.__file__).parent


def test_its_files_say_what_it_says(monkeypatch) -> None:
    tags = {name: list_pretrained_tags_by_model(name) for name in open_clip.list_models()}
    written = open_clip_names._written(FOLDER / "pretrained.py")
    assert {name: written.get(name, []) for name in tags} == tags
    monkeypatch.delitem(open_clip_names.sys.modules, "open_clip")
    assert open_clip_names.names() == sorted(tags)


def test_a_table_that_is_written_otherwise_is_not_guessed_at(tmp_path: Path) -> None:
    table = tmp_path / "pretrained.py"
    for text in (
        "_PRETRAINED = load()",
        "_PRETRAINED = {'ViT-B-16': TAGS}",
        "_PRETRAINED = {'ViT-B-16': dict(**TAGS)}",
    ):
        table.write_text(text)
        assert open_clip_names._written.__wrapped__(table) == {}
