"""Stage suite_report: the table of a suite over its seeds, paired differences, and the page, from all evaluations.

Artifact: suite.html (one page that stands alone), suite.md (for the KFP UI), suite.json (for programs), paper/
(tables in LaTeX, figures, every number with its origin). A row or a seed that is not finished is named as missing; the
rest stands. Ends by printing the small table and where the page is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import flatten
from cmapkd_core.places import report_url
from cmapkd_core.recipes import FULL, resolve, row_overrides
from cmapkd_core.report import paper, suite_costs, suite_page, suite_sections
from cmapkd_core.report.inputs import Source
from cmapkd_core.report.suite import SuiteInputs, Training, as_json, build, check_more
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.common import Context, Request, execute
from cmapkd_core.stages.owed import deliver_owed
from cmapkd_core.stages.report import NONE, hand_out

HTML, MARKDOWN, TABLE = "suite.html", "suite.md", "suite.json"


def run(
    request: Request,
    *,
    suite: str,
    evaluations: Mapping[str, str],
    trainings: Mapping[str, str] = NONE,
    before: Mapping[str, str] = NONE,
    more: Mapping[str, str] = NONE,
    teacher_eval: str = "",
    executions: str = "0",
    naive: str = "0",
    expectations: str = "",
    html: str = "",
    markdown: str = "",
    metrics: str = "",
    executor_input: str = "",
) -> str:
    """Write the report of a suite.

    Args:
        suite: its name.
        evaluations, trainings: URLs of the evaluations and of the joint stages by `ROW/SEED`.
        before: URLs of the untrained student's evaluations by seed.
        more: URLs of further evaluations by `TASK[-DATASET]/ROW/SEED`, `TASK/ROW` for what every seed answers
            alike, `TASK/teacher`; such as vqa/none/0, efficiency/none, vqa/teacher.
        teacher_eval: URL of the teacher's evaluation.
        executions, naive: stage executions of the suite, and of one run for every row and seed.
        expectations: "yes" adds a section with what the paper expects, under a heading that says so.
        html, markdown, metrics: local files that get a copy, for KFP's output artifacts.
        executor_input: what KFP tells a container of itself; "" elsewhere.

    Raises:
        InputError: a key of another form, a count that is no number, or evaluations of different data.
    """
    given: dict[str, Mapping[str, str]] = {"evaluation": evaluations, "training": trainings, "before": before}
    given |= {"teacher": {"": teacher_eval}, "more": more}
    named = {f"{kind} {key}".strip(): url for kind, urls in given.items() for key, url in urls.items()}
    _check_given(evaluations, trainings, {"executions": executions, "naive": naive})
    check_more(more, {key.rpartition("/")[0] for key in evaluations})
    told = {"suite": suite, "executions": executions, "naive": naive, "expectations": expectations}
    fields = {name: value for name, value in flatten(request.resolved()).items() if not name.startswith("runtime.")}
    url = report_url(request.root, request.run, expectations)
    complete = {name: where for name, where in named.items() if where and find(where)}
    seeds = {key.rpartition("/")[2] for key in evaluations}
    execute(
        request,
        "suite_report",
        url=url,
        fields=fields,
        inputs=complete,
        body=partial(body, request, told, named),
        suite={"suite": suite, "seeds": str(len(seeds))},
    )
    artifact = Artifact.open(url)
    hand_out(artifact, {html: HTML, markdown: MARKDOWN}, metrics, executor_input)
    print(json.loads(artifact.fetch(TABLE).read_bytes())["text"])
    print(f"report: {artifact.file_url(HTML)}")
    return url


def _check_given(evaluations: Mapping[str, str], trainings: Mapping[str, str], counts: Mapping[str, str]) -> None:
    for name, count in counts.items():
        if not count.isdecimal():
            raise InputError(f"--{name} {count}: a number of stage executions")
    if not evaluations:
        raise InputError("--evaluations is empty: a report needs at least one row with one seed")
    for key in (*evaluations, *trainings):
        if not all(key.rpartition("/")):
            raise InputError(
                f"'{key}' in --evaluations or --trainings: every URL stands under ROW/SEED, such as no_alsn/0"
            )


def body(request: Request, told: dict[str, str], named: dict[str, str], context: Context) -> dict[str, float]:
    """The files; the metrics are every row's means as `no_alsn/retrieval/i2t/R@1`."""
    deliver_owed(request, context.inputs.values())
    context.say("suite_report: reading the suite's artifacts")
    inputs = gather(request, told, named, context.inputs)
    table = build(inputs)
    headings, sections = suite_sections.build(inputs, table)
    texts = {
        HTML: suite_page.render(inputs, table, headings, sections),
        MARKDOWN: suite_page.markdown(inputs, table, headings, sections),
        TABLE: json.dumps(as_json(inputs, table, suite_page.text) | suite_costs.as_json(inputs, table), indent=1),
    }
    for name, text in texts.items():
        (context.out / name).write_text(text, encoding="utf-8")
        context.tracker.artifact(context.out / name)
    title = f"{inputs.run}: suite {inputs.suite}, recipe {inputs.recipe.name}, seeds {', '.join(inputs.seeds)}"
    context.say("suite_report: writing the paper's folder")
    context.tracker.artifact(paper.write(context.out, title, headings, sections))
    metrics = suite_page.facts(table)
    context.tracker.conclude(texts[MARKDOWN], metrics, context.out / HTML)
    return metrics


def gather(request: Request, told: dict[str, str], named: dict[str, str], opened: dict[str, Artifact]) -> SuiteInputs:
    """The suite from its artifacts; rows and seeds are those of the evaluations, in their order."""
    cells = [tuple(name.removeprefix("evaluation ").rsplit("/", 1)) for name in named if name.startswith("evaluation ")]
    rows, seeds = (tuple(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))

    def recipe(row: str, seed: str = "") -> Recipe:
        return resolve(request.recipe, row, row_overrides(row, request.overrides), seed, request.data)

    every = [(row, seed) for row in rows for seed in seeds]

    def source(name: str) -> Source:
        return _source(name, named.get(name, ""), opened.get(name))

    return SuiteInputs(
        suite=told["suite"],
        run=request.run or "unnamed run",
        recipe=recipe(FULL),
        overrides=request.overrides,
        rows=rows,
        seeds=seeds,
        methods={row: recipe(row, seeds[0]) for row in rows},
        evaluations={(row, seed): source(f"evaluation {row}/{seed}") for row, seed in every},
        trainings={(r, s): _training(source(f"training {r}/{s}"), opened.get(f"training {r}/{s}")) for r, s in every},
        before={name.removeprefix("before "): source(name) for name in named if name.startswith("before ")},
        teacher=source("teacher"),
        executions=int(told["executions"]),
        naive=int(told["naive"]),
        expectations=bool(told["expectations"]),
        more={n.removeprefix("more "): _more(source(n)) for n in named if n.startswith("more ")},
    )


def _source(name: str, url: str, artifact: Artifact | None) -> Source:
    return Source(name, url, frozenset(artifact.files()), artifact.fetch) if artifact else Source(name, url)


def _more(source: Source) -> Source:
    return replace(source, name=source.name.removeprefix("more "))


def _training(source: Source, artifact: Artifact | None) -> Training:
    """A training with the stages before it, which its manifest names."""
    if artifact is None:
        return Training(source)
    stages = [artifact]
    while "init" in stages[0].manifest["inputs"]:
        stages.insert(0, stages[0].source("init"))
    seconds = sum(stage.manifest["seconds"] for stage in stages)
    earlier = tuple(_source(stage.manifest["stage"], stage.url, stage) for stage in stages[:-1])
    metrics: dict[str, Any] = artifact.manifest["metrics"]
    return Training(source, seconds, metrics, earlier)


if __name__ == "__main__":
    sys.exit(main(run))
