"""Stage report: table, figures and page of a run, or of a suite over its seeds, from their artifacts.

Artifact: a page that stands alone (report.html, suite.html), Markdown for the KFP UI, JSON for programs, paper/ (tables
in LaTeX, figures as PDF and PNG, every number with its origin; see report/render/paper_folder.py). A run and a suite
differ in what is read and in the pages: RUN and SUITE. Ends by printing the small table and where the page is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cmapkd_core.errors import InputError
from cmapkd_core.executor_output import show
from cmapkd_core.fields import flatten
from cmapkd_core.places import report_url
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.foreign import refuse_evaluation_of_another
from cmapkd_core.stages.report_kinds import RUN, SUITE, ReportArgs
from cmapkd_core.stages.tracked import reported_to_mlflow
from cmapkd_core.view import NO_RESULT

NONE: Mapping[str, str] = MappingProxyType({})

# A run's evaluations, and the artifacts whose models they are of.
OF_MODEL = {"student_eval": "joint", "teacher_eval": "teacher", "reference_eval": "reference"}


def run(
    request: Request,
    *,
    artifacts: Mapping[str, str] = NONE,
    suite: str = "",
    expectations: str = "",
    executions: str = "0",
    naive: str = "0",
    html: str = "",
    markdown: str = "",
    metrics: str = "",
    executor_input: str = "",
) -> str:
    """Write the report of a run or, with the name of a suite, of that.

    Args:
        artifacts: URLs by what they are. Of a run those of read/run.ARTIFACTS, where one that is "" or not given makes
            a sentence that says so, and further evaluations as `TASK[-DATASET]/ROLE`, ROLE one of teacher, before,
            reference, student. Of a suite `evaluation/ROW/SEED`, `training/ROW/SEED` (the joint stage), `before/SEED`
            (the untrained student), `teacher`, and as more `TASK[-DATASET]/ROW/SEED`, `TASK/ROW`, `TASK/teacher`.
        suite: name of the suite; "" writes the report of a run.
        expectations: "yes" adds a section with what the paper expects of a suite, under a heading that says so.
        executions, naive: stage executions of the suite, and of one run for every row and seed.
        html, markdown, metrics: local files that get a copy, for KFP's output artifacts.
        executor_input: what KFP tells a container of itself; "" elsewhere.

    Raises:
        InputError: a name of another form, a count that is no number, a run's artifact that is not complete, or
            evaluations of different data, or of another model than its role's.
    """
    kind = SUITE if suite else RUN
    if expectations and not suite:
        raise InputError(
            "--expectations is of a suite's report, and this one is of a run: leave it out, or give --suite"
        )
    counts = number("executions", executions), number("naive", naive)
    kind.check(artifacts)
    with reported_to_mlflow(request, kind.stage):
        for evaluation, model in OF_MODEL.items() if kind is RUN else ():
            refuse_evaluation_of_another(
                f"--artifacts {evaluation}", artifacts.get(evaluation, ""), artifacts.get(model, "")
            )
    args = ReportArgs(request, artifacts, suite, bool(expectations), *counts)
    fields = {name: value for name, value in flatten(request.resolved()).items() if not name.startswith(NO_RESULT)}
    url = report_url(request.root, request.run, expectations)
    execute(
        request,
        kind.stage,
        url=url,
        fields=fields,
        inputs={name: where for name, where in args.urls.items() if where and (kind.whole or find(where))},
        body=Late("report", kind=kind, args=args),
        suite={"suite": suite, "seeds": str(len(args.cells[1]))} if suite else None,
    )
    artifact = Artifact.open(url)
    pages = {copy: artifact.fetch(name).read_bytes() for copy, name in ((html, kind.html), (markdown, kind.markdown))}
    show(pages, artifact.manifest["metrics"], metrics, executor_input)
    tell(json.loads(artifact.fetch(kind.table).read_bytes()))
    print(f"report: {artifact.file_url(kind.html)}")
    return url


def tell(table: Mapping[str, Any]) -> None:
    """Print the small table and what came out, which a report of an earlier code does not say."""
    print(table["text"])
    if "outcome" in table:
        print(f"report: {table['outcome']['sentence']}")


def number(name: str, text: str) -> int:
    """A count of stage executions.

    Raises:
        InputError: it is none.
    """
    if not text.isdecimal():
        raise InputError(f"--{name} {text}: a number of stage executions, such as 20")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(run))
