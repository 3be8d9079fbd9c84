"""The model card: README.md of an exported folder, with the header that Hugging Face reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FunctionLoader, StrictUndefined

from cmapkd_core.config import STAGE_PHASES
from cmapkd_core.export.card_results import Result
from cmapkd_core.export.licences import Licence
from cmapkd_core.export.parity import LEVELS, TOLERANCE
from cmapkd_core.markup import Markdown, code, plain
from cmapkd_core.method_specs import METHODS
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.features import Spec
from cmapkd_core.models.identity import Identity

TEMPLATE = "card.md.j2"
TASK = "zero-shot-image-classification"  # of the hub's list


@dataclass(frozen=True)
class Cost:
    """One stage that the student is made of. seconds: None where its artifact is gone, which `note` says."""

    name: str
    seconds: float | None
    finished: str = ""
    run: str = ""
    note: str = ""


@dataclass(frozen=True)
class TrainingFacts:
    """How the weights came about: the request of the training stage and the flattened fields that it read.

    method: "" of a model that was not trained here; its fields are the recipe's.
    """

    fields: Mapping[str, Any]
    recipe: str = ""
    ablation: str = ""
    overrides: str = ""

    @property
    def method(self) -> str:
        """A row of METHODS."""
        return str(self.fields.get("method.name", "")) if self.recipe else ""

    @property
    def deviations(self) -> str:
        """From what was published."""
        return METHODS[self.method].deviations

    @property
    def seed(self) -> Any:
        """Of the student's training."""
        return self.fields.get("seed", "")

    @property
    def batch(self) -> Any:
        """Global."""
        return self.fields.get("optim.batch", "")

    @property
    def terms(self) -> dict[str, float]:
        """Weights of the terms that count."""
        start = "method.weights."
        return {name.removeprefix(start): w for name, w in self.fields.items() if name.startswith(start) and w}

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The schedule's rows that have epochs."""
        rows = []
        for phase in (name for names in STAGE_PHASES.values() for name in names):
            epochs, start = self.fields.get(f"schedule.{phase}.epochs", 0), f"schedule.{phase}.lr."
            rates = {name.removeprefix(start): rate for name, rate in self.fields.items() if name.startswith(start)}
            if epochs:
                text = ", ".join(f"{group} {rate:g}" for group, rate in rates.items() if rate)
                rows.append({"name": phase, "epochs": epochs, "rates": text})
        return rows

    @property
    def further_teachers(self) -> list[tuple[str, str]]:
        """Model and weights of each beside the first."""
        named = (named_model(text) for text in self.fields.get("teachers", ()))
        return [one for one in named if one is not None]

    @property
    def teachers(self) -> str:
        """All of them in words; "" where the training read none."""
        further = [f"{model} ({weights})" for model, weights in self.further_teachers]
        return " and ".join(filter(None, (self.model("teacher"), *further)))

    def model(self, side: str) -> str:
        """`ViT-B-16 (openai)` of the teacher or the student; "" where the training read none."""
        name, lift = self.fields.get(f"{side}.model", ""), self.fields.get(f"{side}.lift")
        lifted = f", image tokens lifted to {lift} channels" if lift else ""
        return f"{name} ({self.fields[f'{side}.weights']}{lifted})" if name else ""


@dataclass(frozen=True)
class Facts:
    """Everything that the card says.

    pixels: what is done to a picture, in words. identity: what the model is beside its tensors. parity: as parity.json.
    usage: Python by format. data: counts of shards.json.
    """

    name: str
    spec: Spec
    pixels: str
    identity: Identity
    parameters: Mapping[str, float]
    training: TrainingFacts
    data: Mapping[str, Any]
    parity: Mapping[str, Any]
    titles: Mapping[str, str]
    usage: Mapping[str, str]
    licence: str = ""
    licences: Sequence[tuple[str, Licence]] = ()
    looked_at: int = 0
    results: Sequence[Result] = ()
    results_note: str = ""
    costs: Sequence[Cost] = field(default=())


def render(facts: Facts) -> str:
    """The card as Markdown."""
    environment = Environment(
        autoescape=False,  # Markdown: `finalize` escapes for that
        finalize=plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"brief": brief, "code": code, "markdown": Markdown}
    formats = facts.parity["formats"]
    return environment.get_template(TEMPLATE).render(
        **vars(facts),
        header=_header(facts.licence),
        student=facts.training.model("student") or facts.name,
        teachers=facts.training.teachers,
        several=bool(facts.training.further_teachers),
        tolerance=f"{TOLERANCE:g}",
        levels=f"{LEVELS:g}",
        inputs=facts.parity["inputs"],
        formats=[_format(name, formats[name], facts) for name in formats],
        total=sum(cost.seconds or 0.0 for cost in facts.costs),
        numbers=lambda values: " ".join(f"{value:.6g}" for value in values),
        millions=lambda count: f"{count / 1e6:.2f}",
        figure=lambda value: f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}",
    )


def _format(name: str, entry: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    otherwise = [brief(caption) for caption in entry.get("captions_otherwise", [])]
    known = {"reason": "", "preprocessing": None, "levels": None, **entry, "captions_otherwise": otherwise}
    return {"name": name, "title": facts.titles[name], "usage": facts.usage[name], **known}


def brief(text: str) -> str:
    """The beginning of words of others inside a sentence or a cell."""
    return " ".join(text.split())[:120]


def _header(licence: str) -> str:
    """What Hugging Face reads, as YAML; a licence that nobody named is `other` with a name, as the hub asks for."""
    tags = ["clip", "knowledge-distillation", "cmapkd"]
    data = ModelCardData(
        library_name="open_clip",
        pipeline_tag=TASK,
        license=licence or "other",
        license_name=None if licence else "not-decided",
        tags=tags,
    )
    return data.to_yaml()
