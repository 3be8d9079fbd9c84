"""The paper's folder: every table and figure as files, every number with its origin, what is missing said."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from PIL import Image

from cmapkd_core.report.read.run_inputs import run_results
from cmapkd_core.report.render.paper_folder import write_folder
from cmapkd_core.report.sections.run_sections import RUN_HEADINGS
from cmapkd_core.report.sections.section import build_sections


def write(inputs, folder):
    built = build_sections(RUN_HEADINGS, inputs, run_results(inputs))
    return built, write_folder(folder, "some run", RUN_HEADINGS, built)


@pytest.fixture(scope="module")
def written(whole_run, tmp_path_factory):
    return write(whole_run, tmp_path_factory.mktemp("paper"))


def test_every_table_and_figure_has_its_files(written):
    built, folder = written
    tables = [made.key for section in built.values() for made in section.tables]
    assert {path.stem for path in (folder / "tables").iterdir()} == set(tables)
    assert len(set(tables)) == len(tables)
    drawings = sum(len(section.figures) for section in built.values())
    for kind in ("pdf", "png"):
        assert len(list((folder / "figures").glob(f"*.{kind}"))) == drawings
    assert {"figure3.tex", "figure4.tex", "figure5.tex", "figure6.tex"} <= {
        p.name for p in (folder / "figures").iterdir()
    }
    assert {"figure4_simple.pdf", "figure5_after_training.png"} <= {p.name for p in (folder / "figures").iterdir()}


def test_latex_names_files_that_are_there(written):
    _, folder = written
    text = (folder / "all.tex").read_text()
    inputs = re.findall(r"\\input\{(.+?)\}", text)
    assert len(inputs) == len(list(folder.glob("*/*.tex")))
    for name in inputs:
        included = (folder / name).read_text()
        for figure in re.findall(r"\\includegraphics\[.*?\]\{(.+?)\}", included):
            assert (folder / figure).exists()


def test_figures_are_vectors_with_embedded_fonts_and_sharp_pictures(written):
    _, folder = written
    pdf = (folder / "figures" / "figure3_image_levels.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf
    with Image.open(folder / "figures" / "figure3_image_levels.png") as picture:
        assert picture.size[0] == pytest.approx(4.1 * 300, abs=2)
        assert picture.info["dpi"][0] == pytest.approx(300, abs=1)


def test_every_number_has_a_value_and_an_artifact(written):
    built, folder = written
    found = json.loads((folder / "numbers.json").read_text())["numbers"]
    shown = [c for s in built.values() for made in s.tables for line in made.rows for c in line.cells if c.interval]
    assert len(found) == len(shown)  # each has a name of its own
    assert all(one["from"] and all(url.startswith("s3://") for url in one["from"].values()) for one in found.values())
    one = found["table3_vqa_zeroshot/student/vqa-easy_vqa/overall"]
    assert (one["value"], one["unit"], one["n"]) == (55.5, "%", 1)
    assert one["from"] == {"vqa-easy_vqa/student": "s3://bucket/vqa-easy_vqa/student"}
    assert found["figure3/P2/rho"]["value"] == pytest.approx(1.0)
    assert found["figure5/cosine/image/after"]["from"] == {"levels": "s3://bucket/levels/0123"}


def test_the_readme_says_which_file_is_which_and_what_is_missing(written):
    _, folder = written
    text = (folder / "README.txt").read_text()
    for path in folder.glob("*/*"):
        assert f"{path.parent.name}/{path.name}" in text
    assert "Missing:\n  Captioning: Not measured: captioning" in text
    assert "Ablations: Not measured: Table 4, which compares recipes" in text


def test_nothing_at_all_is_sentences(make_inputs, tmp_path):
    inputs = make_inputs()
    _, folder = write(dataclasses.replace(inputs, sources={}), tmp_path / "out")
    assert not list(folder.glob("figures/*"))
    assert json.loads((folder / "numbers.json").read_text())["numbers"] == {}
    for path in folder.glob("tables/*.tex"):
        assert "tabular" not in path.read_text()
        assert re.search("Missing: |Not measured: ", path.read_text())


def test_the_same_run_gives_the_same_files(written, whole_run, tmp_path):
    built, _ = written
    part = {key: built[key] for key in ("vqa_zeroshot", "kinds", "map")}
    again = build_sections(RUN_HEADINGS, whole_run, run_results(whole_run))
    other = {key: again[key] for key in part}
    first, second = (
        write_folder(tmp_path / name, "some run", RUN_HEADINGS, found) for name, found in (("a", part), ("b", other))
    )
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert len(files) > 15
    assert [str(f) for f in files if (first / f).read_bytes() != (second / f).read_bytes()] == []
