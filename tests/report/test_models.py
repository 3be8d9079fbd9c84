"""The report says what its models are beside their tensors."""

from dataclasses import replace

from cmapkd_core.report.read.run_inputs import run_results
from cmapkd_core.report.sections.run_sections import RUN_HEADINGS
from cmapkd_core.report.sections.section import build_sections


def test_each_measured_model_has_its_row(whole_run):
    section = build_sections(RUN_HEADINGS, whole_run, run_results(whole_run))["models"]
    (made,) = section.tables
    rows = {line.label: [cell.main for cell in line.cells] for line in made.rows}
    assert rows["Teacher"] == [
        "ViT-L-14",
        "quick_gelu",
        "224 px, shortest, bicubic",
        "0.481 0.458 0.408, 0.269 0.261 0.276",
        "77 tokens, open_clip's BPE (49408 entries)",
        "768",
    ]
    assert rows["Student distilled"][1:3] == ["gelu (image), gelu_tanh (text)", "64 px, squash, bicubic"]
    assert rows["Student distilled"][-1] == "256, logit bias"


def test_evaluations_of_an_older_version_say_that_they_lack_it(whole_run):
    old = {n: replace(source, files=source.files - {"model.json"}) for n, source in whole_run.sources.items()}
    section = build_sections(RUN_HEADINGS, replace(whole_run, sources=old), run_results(whole_run))["models"]
    assert section.missing == ("Missing: no evaluation holds model.json; those of version 0.1 do not.",)
