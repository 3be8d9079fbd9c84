"""The names and pretrained tags of open_clip, without importing it: that takes seconds and loads torch.

Its configs are files. Its tags stand in pretrained.py, in a table of `NAME: dict(TAG=..)`. Where open_clip is imported
already it is asked itself, and so it is where the table is written otherwise.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_QUICK = "-quickgelu"  # the name's end under which it lists its tags of QuickGELU once more


def builtin(model: str) -> str:
    """open_clip's name of `model`: CLIP's own names have a slash."""
    return model.replace("/", "-")


def names() -> list[str]:
    """All that open_clip can build."""
    if "open_clip" in sys.modules:
        return list(sys.modules["open_clip"].list_models())
    return sorted(file.stem for file in (_folder() / "model_configs").glob("*.json"))


def config_file(model: str) -> Path:
    """Where the config of one of them lies."""
    return _folder() / "model_configs" / f"{builtin(model)}.json"


def tags_of(model: str) -> list[str]:
    """The pretrained tags of an open_clip name; [] of any other."""
    written = {} if "open_clip" in sys.modules else _written(_folder() / "pretrained.py")
    if written:
        return written.get(builtin(model), [])
    from open_clip.pretrained import list_pretrained_tags_by_model

    return list(list_pretrained_tags_by_model(builtin(model)))


def is_tag(model: str, tag: str) -> bool:
    """Whether open_clip knows `tag` as pretrained weights of `model`; capitals and hyphens do not count."""
    return tag.lower().replace("-", "_") in tags_of(model)


def _folder() -> Path:
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def _written(file: Path) -> dict[str, list[str]]:
    """The tags by name as the table has them; {} where it is written otherwise."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    table, result = assigned.get("_PRETRAINED"), {}
    for key, value in zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ():
        group = assigned.get(value.id) if isinstance(value, ast.Name) else value
        if not (isinstance(key, ast.Constant) and isinstance(group, ast.Call) and all(w.arg for w in group.keywords)):
            return {}
        name = str(key.value)
        result[name] = [str(word.arg) for word in group.keywords]
        quick = [str(word.arg) for word in group.keywords if "quick_gelu=True" in ast.unparse(word.value)]
        result |= {name + _QUICK: quick} if quick else {}
    return result
