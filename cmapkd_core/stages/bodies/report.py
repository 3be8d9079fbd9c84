"""What stage report does: read the artifacts, and write the page, the tables and the paper's folder."""

from __future__ import annotations

import json

from cmapkd_core.report import reports
from cmapkd_core.report.render.paper_folder import write_folder
from cmapkd_core.stages.bodies.reported import of_run, of_suite
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.owed import deliver_owed
from cmapkd_core.stages.report_kinds import RUN, Kind, ReportArgs


def body(context: Context, kind: Kind, args: ReportArgs) -> dict[str, float]:
    """The files; returns the small numbers, such as `student/retrieval/i2t/R@1` or a row's mean `no_alsn/..`."""
    deliver_owed(args.request, context.inputs.values())
    context.say(f"{kind.stage}: reading the artifacts")
    made = reports.of_run(of_run(args, context)) if kind is RUN else reports.of_suite(of_suite(args, context))
    texts = {kind.html: made.html, kind.markdown: made.markdown, kind.table: json.dumps(made.table, indent=1)}
    for name, text in texts.items():
        (context.out / name).write_text(text, encoding="utf-8")
        context.tracker.artifact(context.out / name)
    context.say(f"{kind.stage}: writing the paper's folder")
    context.tracker.artifact(write_folder(context.out, made.title, made.headings, made.sections))
    context.tracker.conclude(made.markdown, made.metrics, context.out / kind.html)
    return made.metrics
