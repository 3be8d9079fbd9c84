"""What a run and each of its stages are given, as strings. This dataclass is the list of them, and the only one.

A stage's command line, a component's inputs, the form in the KFP UI, the flags of submit.py and the strings of a run's
record are made from its fields. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core import storage
from cmapkd_core.commands import submit
from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import parse_overrides
from cmapkd_core.folders import spelled
from cmapkd_core.logins import refuse_login
from cmapkd_core.recipes import resolve


def _string(default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A string of the request.

    Args:
        metadata: decides: it is one of those that decide the recipe, and recorded. recorded: it is in an artifact's
            or a run's record. form: what the run form in the KFP UI says of it, where it is there. flag: what
            `submit.py --help` says of its flag, where it has one; metavar: of that flag. option: what a stage's --help
            says of it; inner: it is given by the pipeline, not by people.
    """
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Request:
    """What every stage is given, as strings.

    recipe, ablation, overrides, seed, data: as `recipes.resolve` reads them. root: the folder (kept as an
    absolute path, so that what is recorded holds in every working directory) or s3:// prefix of all artifacts.
    run: the submission's name. tracking_uri: MLflow's, "" for none. redo: "yes" runs a stage again although it
    is complete; "" does not, and nothing else is taken. own_overrides: of this task alone, such as the data set of an
    evaluation; they win over the run's and are no part of its record. check: TASK:GPUS of `submit.py --check`: in
    place of its work the stage looks whether it could do it in this pod, which shall see as many GPUs
    (stages/check.py); "" is a stage that works.
    """

    recipe: str = _string(
        decides=True,
        form="Named configuration, a row of RECIPES such as paper or demo.",
        flag="named configuration; default: the site's",
        option="the recipe: full settings with a name",
        metavar="NAME",
    )
    root: str = _string(
        recorded=True,
        form="Where artifacts, checkpoints and reports go, such as s3://bucket/cmapkd.",
        flag="where artifacts go; default: the site's",
        option="folder or s3:// prefix of all results",
        metavar="PLACE",
    )
    ablation: str = _string(
        "none",
        decides=True,
        form="What to change in it; none, a row of ABLATIONS such as no_alsn, or of BASELINES such as kd.",
        flag="row of ABLATIONS or BASELINES to apply to it",
        option="a row to apply to the recipe",
        metavar="ROW",
    )
    overrides: str = _string(
        "",
        decides=True,
        form="Single fields, blanks between: optim.batch=128 method.weights.align=0.3. They win over the row.",
        option="single fields, blanks between",
        metavar="'FIELD=VALUE ..'",
    )
    seed: str = _string(
        "",
        decides=True,
        form="Seed of the student's training; empty keeps the recipe's.",
        flag="seed of the student's training",
        option="seed of the student's training",
        metavar="N",
    )
    data: str = _string(
        "",
        decides=True,
        form="Empty keeps the recipe's data; else SOURCE:URL, such as folder:s3://bucket/pictures.",
        flag="other data, such as /data/pictures or folder:s3://bucket/pictures",
        metavar="SOURCE[:URL]",
        option="other data than the recipe's, such as folder:/data/pictures",
    )
    run: str = _string(
        "",
        flag="name of the run; the same name goes on with it",
        option="the run's name, for MLflow and messages",
        metavar="NAME",
    )
    tracking_uri: str = _string(
        "",
        form="MLflow server; empty keeps a journal in the artifacts only.",
        flag="of --deliver: MLflow's; default: the site's",
        metavar="URI",
        option="MLflow's server, or sqlite:///FILE; empty: a journal in the artifact only",
    )
    redo: str = _string("", option="runs the stage again although it is complete", metavar="yes")
    own_overrides: str = _string("", recorded=True, option="fields of this task alone", inner=True)
    check: str = _string("", option="looks whether the pod can do the work", inner=True, metavar="TASK:GPUS")

    def __post_init__(self) -> None:
        for name in (*RECORDED, *DECIDING):  # the tracking URI is not recorded
            refuse_login(name, getattr(self, name))
        if self.redo not in ("", "yes"):
            raise InputError(
                f"--redo {self.redo}: it takes yes, which runs this one stage again although it is complete; leave it "
                f"out to keep what is complete (of a whole run: {submit('--run', 'RUN', '--only', 'STAGE')})"
            )
        object.__setattr__(self, "root", storage.absolute(self.root))
        object.__setattr__(self, "data", spelled(self.data))

    def resolved(self) -> Recipe:
        """The full recipe."""
        return resolve(self.recipe, self.ablation, self.all_overrides, self.seed, self.data)

    @property
    def all_overrides(self) -> str:
        """The run's and the task's own."""
        return f"{self.overrides} {self.own_overrides}".strip()

    @property
    def own_source(self) -> str:
        """Source of the task's own data; "" where it reads the run's."""
        return parse_overrides(self.own_overrides).get("data.source", "")


STRINGS = tuple(one.name for one in dataclasses.fields(Request))
DEFAULTS = {one.name: "" if one.default is dataclasses.MISSING else one.default for one in dataclasses.fields(Request)}


def _saying(what: str) -> dict[str, Any]:
    return {one.name: one.metadata[what] for one in dataclasses.fields(Request) if one.metadata.get(what)}


DECIDING = tuple(_saying("decides"))  # what decides the recipe, and is recorded of a run
RECORDED = tuple(_saying("recorded"))
FORM: dict[str, str] = _saying("form")
FLAGS: dict[str, str] = _saying("flag")
METAVARS: dict[str, str] = _saying("metavar")
OPTIONS: dict[str, str] = _saying("option")
INNER = tuple(_saying("inner"))


def flag_of(name: str) -> str:
    """`--tracking-uri` of tracking_uri."""
    return f"--{name.replace('_', '-')}"


def recipe_of(strings: Mapping[str, str]) -> Recipe:
    """The full recipe that the deciding strings name; others beside them do not count.

    Raises:
        InputError: as recipes.resolve.
    """
    return resolve(**{name: strings[name] for name in DECIDING})
