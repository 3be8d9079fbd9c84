"""Weights and tokenizers from the internet to a place that pods can reach; run it where there is a network.

    python -m cmapkd_core.fetch_weights ViT-L-14 openai s3://bucket/weights
    python -m cmapkd_core.fetch_weights hf-hub:ORG/NAME own s3://bucket/weights

One safetensors file; of a model whose text tower or tokenizer comes from a hub too, a folder that stands alone. What
was written is read back and compared, tensor by tensor. The last lines are for site.toml and for a single run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cmapkd_core import storage, temporary
from cmapkd_core.command_line import Parser
from cmapkd_core.config import FOLDER, HUB, ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.logins import refuse_login
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.model_folder import WEIGHTS
from cmapkd_core.models.named import require_known
from cmapkd_core.models.open_clip_names import is_tag, tags_of

OWN = "own"


def fetch(model: str, tag: str, place: str) -> ModelConfig:
    """Fetch what (model, tag) names and keep it below `place`; the two fields that name the kept one.

    Args:
        model, tag: a name of open_clip with one of its pretrained tags, or hf-hub:NAME with "own".
        place: a folder or s3:// prefix, or the .safetensors file itself.

    Raises:
        InputError: nothing that a hub has, no network, or a place that cannot hold it.
        StorageError: the place cannot be written or gives back other bytes.
    """
    refuse_login("place", place)
    _require_fetched(model, tag)
    with temporary.folder() as cache:
        backbone = build(ModelConfig(model, tag), 0, cache)
        save_model(backbone, cache / "model")
        kept = _keep(backbone, model, tag, place, cache / "model")
        _compare(backbone, kept, cache / "back")
    return kept


def _require_fetched(model: str, tag: str) -> None:
    require_known(model)
    if model.startswith(HUB):
        if tag != OWN:
            raise InputError(f"weights '{tag}' of {model}: what a hub's model comes with is called '{OWN}'")
    elif not is_tag(model, tag):
        known = tags_of(model)
        hint = nearest(tag, known) if known else f"{model} has none, so that nothing of it is fetched from a hub"
        raise InputError(f"'{tag}' is no pretrained tag of {model}: {hint}")


def _keep(backbone: Backbone, model: str, tag: str, place: str, folder: Path) -> ModelConfig:
    """Upload a saved model, whole where a file of weights would not be enough."""
    name = re.sub(r"[^\w.-]+", "-", f"{model.removeprefix(HUB)}-{tag}".removesuffix(f"-{OWN}"))
    is_file = place.endswith(".safetensors")
    if not (backbone.files or model.startswith(HUB)):
        url = place if is_file else storage.join(place, f"{name}.safetensors")
        storage.put(folder / WEIGHTS, url)
        return ModelConfig(model, f"{tag}@{url}")
    if is_file:
        raise InputError(f"{model} is kept as a folder, with its tokenizer: give a folder, not the file {place}")
    url = storage.join(place, name)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        storage.put(file, storage.join(url, file.relative_to(folder).as_posix()))
    return ModelConfig(f"{FOLDER}{url}", OWN)


def _compare(backbone: Backbone, kept: ModelConfig, cache: Path) -> None:
    back = build(kept, 1, cache)
    first, second = backbone.model.state_dict(), back.model.state_dict()
    if first.keys() != second.keys() or any(not first[name].equal(second[name]) for name in first):
        raise storage.StorageError(f"{kept.model} {kept.weights} gives back other weights than were fetched: try again")


def lines(model: str, tag: str, kept: ModelConfig) -> str:
    """What to write into site.toml, and what to give a single run."""
    value = kept.weights if kept.model == model else kept.model
    fields = {"weights": kept.weights} if kept.model == model else {"model": kept.model, "weights": kept.weights}
    flags = " ".join(f"--set teacher.{name}={text}" for name, text in fields.items())
    return (
        "kept, read back and equal\n"
        f'in site.toml, for every run that names it:\n[weights]\n"{model} {tag}" = "{value}"\n'
        f"or for one run (student. in place of teacher. for the student):\n{flags}"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("model", help="a name of open_clip, or hf-hub:ORG/NAME")
    cli.add_argument("tag", help=f"its pretrained tag; of hf-hub: {OWN}")
    cli.add_argument("place", help="a folder or s3:// prefix (credentials as for a run)")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        print(lines(args.model, args.tag, fetch(args.model, args.tag, args.place)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
