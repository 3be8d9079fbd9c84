"""A run's artifacts, and the models that were measured in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.method_specs import METHODS
from cmapkd_core.report.read.artifacts import Commands, Missing, Source
from cmapkd_core.report.read.results import EFFICIENCY, Evaluation, Results, chance, efficiency_tools, facts, measure
from cmapkd_core.usage import StudentUse


@dataclass(frozen=True)
class RunInputs:
    """A run, its recipe and its artifacts; how its student is used, and commands that make what it does not have."""

    recipe: Recipe
    ablation: str
    run: str
    sources: dict[str, Source]
    picture: Callable[[str], bytes]  # key -> the encoded image; raises Missing
    commands: Commands = field(default_factory=Commands)
    use: StudentUse | None = None  # None: the student is not exported, or was not yet

    def source(self, name: str) -> Source:
        """The artifact of that name; one that was not given has no file."""
        return self.sources.get(name, Source(name))

    def without_further(self) -> RunInputs:
        """The run without its further evaluations."""
        return replace(self, sources={name: one for name, one in self.sources.items() if "/" not in name})

    def first(self, file: str, *names: str) -> Source:
        """The first of the named artifacts that holds `file`.

        Raises:
            Missing: none does.
        """
        for name in names:
            if file in self.source(name).files:
                return self.source(name)
        raise Missing(f"Missing: none of the artifacts {', '.join(names)} was given with {file} in it.")


@dataclass(frozen=True)
class Role:
    """A model of a run. evaluation: its main one, an argument of the report stage. short: its name in figures."""

    evaluation: str
    label: str
    short: str
    kind: str = ""  # of its row in a table


# By their names in further evaluations, TASK/ROLE, in the order of every table.
ROLES = {
    "teacher": Role("teacher_eval", "Teacher", "teacher", "teacher"),
    "before": Role("before_eval", "Student before training", "before"),
    "reference": Role("reference_eval", "Student fine-tuned, no teacher", "no teacher"),
    "student": Role("student_eval", "Student distilled", "student", "ours"),
}
REFERENCE_WARMUP = "reference_warmup"  # what `reference` went on from: no report is given it, its manifest names it
MAIN_EVALUATIONS = tuple(role.evaluation for role in ROLES.values())
ARTIFACTS = (
    *("shards", "teacher", "warmup", "alsn", "joint", "reference"),
    *("teacher_eval", "before_eval", "student_eval", "reference_eval", "levels"),
)


def run_results(inputs: RunInputs) -> Results:
    """The run's models with all their evaluations: rows by their names in ROLES, values of no seed.

    Raises:
        InputError: two models were measured on different data.
    """
    further = [name for name in inputs.sources if "/" in name]
    rows = []
    for name, role in ROLES.items():
        own = [Evaluation(n.partition("/")[0], "", inputs.source(n)) for n in further if n.rpartition("/")[2] == name]
        main = Evaluation("", "", inputs.source(role.evaluation))
        rows.append(measure(name, _label(inputs, name), [main, *own], role.kind))
    tools = efficiency_tools(inputs.source(n) for n in further if n.startswith(f"{EFFICIENCY}/"))
    recipe = inputs.recipe
    return Results(tuple(rows), chance(rows), facts(rows), recipe.data.source, recipe.evaluate.split, tools)


def _label(inputs: RunInputs, name: str) -> str:
    """The student is called distilled where its method has a teacher."""
    has_teacher = METHODS[inputs.recipe.method.name].teacher
    return ROLES[name].label if has_teacher or name != "student" else f"Student, {inputs.ablation}"


def check_run_names(names: Iterable[str]) -> None:
    """Refuse an artifact whose name says nothing of a run.

    Raises:
        InputError: none of ARTIFACTS, and not of the form TASK/ROLE.
    """
    for name in names:
        if name not in ARTIFACTS and (name.count("/") != 1 or name.rpartition("/")[2] not in ROLES):
            form = f"TASK/ROLE with ROLE one of {', '.join(ROLES)}"
            raise InputError(f"--artifacts: {name} is not {form}, and no artifact of a run: {nearest(name, ARTIFACTS)}")


def origins(inputs: RunInputs, *names: str) -> dict[str, str]:
    """Those of the named artifacts that were given, name -> URL."""
    return {name: inputs.source(name).url for name in names if inputs.source(name).url}
