"""Stage report: one run's table, figures and page from its artifacts.

Artifact: report.html (one page that stands alone), report.md (for the KFP UI), table.json (for programs), paper/
(tables in LaTeX, figures as PDF and PNG, every number with its origin; see report/paper.py). Ends by printing the
small table and where the page is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from cmapkd_core.executor_output import show
from cmapkd_core.fields import choose, flatten
from cmapkd_core.places import report_url
from cmapkd_core.report import markdown as markdown_report
from cmapkd_core.report import page, paper, sections, table
from cmapkd_core.report.inputs import Inputs, Source, no_pictures
from cmapkd_core.report.results import check_names
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.common import Context, Request, execute
from cmapkd_core.stages.owed import deliver_owed
from cmapkd_core.stages.shards import open_shards

NONE: Mapping[str, str] = MappingProxyType({})
ARTIFACTS = (
    *("shards", "teacher", "warmup", "alsn", "joint", "reference"),
    *("teacher_eval", "before_eval", "student_eval", "reference_eval", "levels"),
)
HTML, MARKDOWN, TABLE = "report.html", "report.md", "table.json"


def run(
    request: Request,
    *,
    artifacts: Mapping[str, str] = NONE,
    evaluations: Mapping[str, str] = NONE,
    html: str = "",
    markdown: str = "",
    metrics: str = "",
    executor_input: str = "",
) -> str:
    """Write the report of a run.

    Args:
        artifacts: URLs of the run's artifacts by what they are, of ARTIFACTS; one that is "" or not given makes a
            sentence that says so.
        evaluations: URLs of further evaluations by `TASK[-DATASET]/ROLE`, ROLE one of teacher, before, reference,
            student, such as vqa-easy_vqa/student.
        html, markdown, metrics: local files that get a copy, for KFP's output artifacts.
        executor_input: what KFP tells a container of itself; "" elsewhere.

    Raises:
        InputError: an artifact of an unknown name or that is not complete, evaluations of different data or of no
            known model.
    """
    check_names(evaluations)
    for name in artifacts:
        choose("artifact", name, dict.fromkeys(ARTIFACTS))
    given = {name: artifacts.get(name, "") for name in ARTIFACTS} | dict(evaluations)
    inputs = {name: url for name, url in given.items() if url}
    fields = {name: value for name, value in flatten(request.resolved()).items() if not name.startswith("runtime.")}
    url = report_url(request.root, request.run)
    execute(request, "report", url=url, fields=fields, inputs=inputs, body=lambda context: body(context, request))
    artifact = Artifact.open(url)
    hand_out(artifact, {html: HTML, markdown: MARKDOWN}, metrics, executor_input)
    print(json.loads(artifact.fetch(TABLE).read_bytes())["text"])
    print(f"report: {artifact.file_url(HTML)}")
    return url


def hand_out(artifact: Artifact, copies: dict[str, str], metrics: str, executor_input: str) -> None:
    """Give KFP what it shows of a report: copies (local file -> name in the artifact) and the manifest's metrics."""
    values = artifact.manifest["metrics"]
    pages = {target: artifact.fetch(name).read_bytes() for target, name in copies.items()}
    show(pages, values, metrics, executor_input)


def body(context: Context, request: Request) -> dict[str, float]:
    """The files; the metrics are the main table's numbers as `student/retrieval/i2t/R@1`."""
    deliver_owed(request, context.inputs.values())
    inputs = Inputs(
        recipe=context.recipe,
        ablation=request.ablation or "none",
        run=request.run or "unnamed run",
        sources={name: _source(name, artifact) for name, artifact in context.inputs.items()},
        picture=_pictures(context),
    )
    context.say("report: reading the run's artifacts")
    found = table.build(inputs)
    built = sections.build(inputs, found)
    texts = {
        HTML: page.render(inputs, found, built),
        MARKDOWN: markdown_report.render(inputs, built),
        TABLE: json.dumps(table.as_json(found, inputs), indent=1),
    }
    for name, text in texts.items():
        (context.out / name).write_text(text, encoding="utf-8")
        context.tracker.artifact(context.out / name)
    title = f"{inputs.run}: recipe {context.recipe.name}, ablation {inputs.ablation}, seed {context.recipe.seed}"
    context.say("report: writing the paper's folder")
    context.tracker.artifact(paper.write(context.out, title, sections.HEADINGS, built))
    metrics = {f"{table.SHORT[row.name]}/{key}": value for row in found.rows for key, value in row.values.items()}
    context.tracker.conclude(texts[MARKDOWN], metrics, context.out / HTML)
    return metrics


def _source(name: str, artifact: Artifact) -> Source:
    return Source(name, artifact.url, frozenset(artifact.files()), artifact.fetch)


def _pictures(context: Context) -> Callable[[str], bytes]:
    """key -> encoded image; of a key that two splits have, the evaluated split's."""
    if "shards" not in context.inputs:
        return no_pictures
    shards = open_shards(context.inputs["shards"])
    splits = sorted(shards.manifest["splits"], key=lambda name: name == context.recipe.evaluate.split)
    places = {key: (split, i) for split in splits for i, key in enumerate(shards.keys(split))}
    return lambda key: shards.read_image(*places[key])


if __name__ == "__main__":
    sys.exit(main(run))
