"""What stage export does: write every format of a student, compare it, and write the card."""

from __future__ import annotations

import json
from typing import Any

from cmapkd_core.config import Recipe
from cmapkd_core.data.images import decode
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.export import FORMATS, Inexpressible, card, parity
from cmapkd_core.export.quiet import quiet
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.progress import Progress
from cmapkd_core.stages import export_facts
from cmapkd_core.stages.bodies.evaluate import open_model
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context

CARD, PARITY, TRAINING = "README.md", "parity.json", "training.json"
PICTURES = 32  # of the evaluated split, with a caption each, that every format is compared on


def body(context: Context, model: str, licence: str) -> dict[str, float]:
    """Write every format, compare it, write the card; the metrics are the bounds, `onnx/image/max_difference`."""
    training = export_facts.training_of(context, model)
    backbone = open_model(context, model).eval()
    data = shards_of(context)
    agreement = compare(context, backbone, data)
    facts = export_facts.facts(context, backbone, data, training, agreement, licence)
    for name, text in (
        (PARITY, json.dumps(agreement, indent=1)),
        (TRAINING, json.dumps(vars(training), indent=1)),
        (CARD, card.render(facts)),
    ):
        (context.out / name).write_text(text, encoding="utf-8")
    context.tracker.artifact(context.out / CARD)
    return {
        f"{name}/{tower}/{measure}": entry[tower][measure]
        for name, entry in agreement["formats"].items()
        for tower in parity.TOWERS
        for measure in ("max_difference", "min_cosine")
        if tower in entry
    }


def compare(context: Context, backbone: Backbone, data: ShardSet) -> dict[str, Any]:
    """Each format written below `context.out`, opened by its own library and held to the tolerance.

    Raises:
        ParityError: one gives other embeddings than the student.
    """
    given = _probe(backbone, data, context.recipe)
    formats: dict[str, dict[str, Any]] = {}
    progress = Progress(context.say, "export", len(FORMATS), "formats")
    for done, (name, form) in enumerate(FORMATS.items()):
        progress(done, name)
        folder = context.out / name
        try:
            with quiet():
                form.write(backbone, folder)
                towers = form.load(folder)
        except Inexpressible as reason:
            formats[name] = {"reason": str(reason)}
            context.say(f"export: {name}: not given: {reason}\n")
            continue
        formats[name] = parity.measure(towers, given)
        for tower in parity.TOWERS:
            context.say(f"export: {name}: {tower} embeddings: {parity.Bound(**formats[name][tower])}\n")
        parity.check(name, formats[name])
    progress(len(FORMATS))
    counts = {"pictures": len(given.pictures), "random_images": parity.NOISE}
    counts |= {"captions": len(given.captions), "hard_captions": len(parity.HARD)}
    return {"tolerance": parity.TOLERANCE, "inputs": counts, "formats": formats}


def _probe(backbone: Backbone, data: ShardSet, recipe: Recipe) -> parity.Probe:
    split = recipe.evaluate.split
    chosen = range(min(PICTURES, data.count(split)))
    pictures = [decode(data.read_image(split, i), data.max_pixels) for i in chosen]
    return parity.probe(backbone, pictures, [caption for i in chosen for caption in data.captions(split, i)[:1]])
