"""The page and its Markdown: complete, well formed, alone, and honest about what is missing."""

import re
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from cmapkd_core.report.figures.style import PAGE, painted
from cmapkd_core.report.read.results import RECALLS
from cmapkd_core.report.read.run_inputs import MAIN_EVALUATIONS, ROLES
from cmapkd_core.report.render import html as html_form
from cmapkd_core.report.render.html import environment
from cmapkd_core.report.reports import of_run
from cmapkd_core.report.sections.examples import GROUPS, choose_examples
from cmapkd_core.report.sections.run_sections import RUN_HEADINGS

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that every element is closed in order; collects ids, links, table cells and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []
        self.rows, self.counts = [], Counter()

    def handle_starttag(self, tag, attrs):
        self.counts[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.links.append(value)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text.append(data)


def rendered(inputs):
    made = of_run(inputs)
    html = made.html
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return html, reader, made.markdown


@pytest.fixture(scope="module")
def made(made_run):
    """The page of the made run with all its artifacts, its reader and the Markdown: for tests that read them only."""
    return rendered(made_run)


def words(reader):
    return " ".join(" ".join(reader.text).split())


def test_the_page_stands_alone(made):
    html, reader, _ = made
    assert all(link.startswith(("data:image/", "#")) for link in reader.links)  # those to the export: test_use_of_the..
    assert not re.search(r"url\((?!#)", html)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert reader.counts["script"] == reader.counts["link"] == 0
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert len(html) < 3_000_000


def test_ids_are_unique_and_every_reference_is_there(made):
    html, reader, _ = made
    assert not [i for i, n in Counter(reader.ids).items() if n > 1]
    wanted = {link[1:] for link in reader.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(reader.ids)


def test_figures_are_well_formed_and_take_the_pages_colours(made):
    html, reader, _ = made
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == reader.counts["figure"] >= 12
    for figure in figures:
        ElementTree.fromstring(figure)
        assert 'aria-label="' in figure
        assert not re.search(r"#0[0-9]0[0-9]0[0-9]", figure), "a placeholder colour was left"
        assert "<text" in figure


def test_every_number_of_the_table_is_there_once(made_run, made):
    inputs, (_, reader, text) = made_run, made
    for name, label in ((role.evaluation, role.label) for role in ROLES.values()):
        metrics = inputs.source(name).json("metrics.json")
        first, second, *_ = [row for row in reader.rows if row and row[0] == label]
        wanted = [f"{metrics[f'retrieval/{key}']:.1f}" for key in RECALLS]
        assert [cell for i, cell in enumerate(first[2:]) if i not in (3, 7, 8, 9)] == wanted
        assert first[11] == f"{metrics['retrieval/geometric_rank']:.1f}"
        assert (first[5], first[9]) == tuple(f"{metrics[f'retrieval/{s}/median_rank']:.1f}" for s in ("i2t", "t2i"))
        assert first[1] == f"{(metrics['parameters/image'] + metrics['parameters/text']) / 1e6:.1f}"
        assert second[1:] == [f"{metrics[f'zeroshot/{key}']:.1f}" for key in ("top1", "top5")]
        assert f"| {label} | {' | '.join(first[1:])} |" in text
    assert sum(row[:1] == ["Chance"] for row in reader.rows) == 2


def test_sampling_error_counts_and_sources_are_named(made):
    _, reader, text = made
    words_ = words(reader)
    # R@1 of 30 % over 20 queries, z = 1.96: (0.3 + z^2 / 40 +- z sqrt(0.3 * 0.7 / 20 + z^2 / 1600)) / (1 + z^2 / 20).
    assert "14.5 to 51.9 (image to text) and 14.5 to 51.9 (text to image)" in words_
    assert "20 images and 20 distinct captions" in words_
    assert "the paired t-interval over the test queries at 95 %, in [ ], excludes zero" in words_
    assert "This table makes 18 comparisons" in words_
    assert "| Image to text | +10.0 [" in text
    for name in ("teacher_eval", "student_eval", "shards", "warmup", "joint", "teacher", "levels"):
        assert f"s3://bucket/{name}/0123" in words_


def test_further_evaluations_fill_their_tables(make_inputs, further):
    _, reader, text = rendered(make_inputs(more=further))
    for wanted in (
        "| Student distilled | 55.5 | 60.0 | 30.0 | 40.0 | 41.6 | 81.6 |",
        "| Student before training | - | - | - | - | 41.4 | 81.4 |",
    ):
        assert wanted in text
    assert "VQA on easy_vqa (100 questions, the most frequent answer alone gives 20.0 %" in words(reader)
    assert "s3://bucket/vqa-easy_vqa/student" in words(reader)
    assert "Not measured: vqa" not in text
    assert "Not measured: captioning, which would give BLEU-1" in text
    assert text.count("s3://") == 0  # Markdown stays compact: the page has the sources


def test_names_are_escaped(made):
    html, _, text = made
    assert text.startswith("# run &lt;one&gt;")
    assert "<one>" not in text
    assert "run &lt;one&gt;" in html
    assert "caption &lt;0&gt; &amp; more" in html
    assert "<one>" not in html


def test_a_text_turns_nothing_that_stands_beside_it():
    assert (
        environment().from_string("<h1>{{ name }}</h1>").render(name="a\u202eb\u200e\u200f\u061c<") == "<h1>ab&lt;</h1>"
    )


def test_examples_show_hits_and_failures_by_a_rule():
    queries = {f"q{i}": {"rank": 1 if i % 4 == 0 else 3 if i % 4 == 1 else 9} for i in range(40)}
    chosen = choose_examples(queries, 3)
    assert [round(share) for share, _ in chosen.values()] == [25, 25, 50]
    for (low, high), (_, members) in zip(GROUPS.values(), chosen.values(), strict=True):
        assert len(members) == 3
        assert all(low <= queries[q]["rank"] <= high for q in members)
    assert chosen == choose_examples(dict(reversed(queries.items())), 3)


def test_examples_mark_right_answers_by_more_than_colour(made):
    html, reader, _ = made
    assert html.count('<li class="right">') == 4  # the four of "right answer first"; those at place 7 have none
    assert '.example li.right::before { content: "\\2713"' in html
    assert "right: caption" in words(reader)  # what a failure should have found
    assert "right answer at 7 (teacher" in words(reader)
    groups = dict(re.findall(r"<h3>Image to text: ([a-z ]+) <small>\(([\d.]+) %", html))
    assert groups == {
        "right answer first": "30.0",
        "right answer second to fifth": "0.0",
        "right answer not among the first five": "70.0",
    }


ALL = ("shards", "teacher", "warmup", "alsn", "joint", "reference", "levels", *MAIN_EVALUATIONS)
FEW = ("shards", "joint")  # the others with `make test-heavy`


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.heavy] * (name not in FEW)) for name in ALL])
def test_one_missing_artifact_is_said_and_the_rest_stands(make_inputs, monkeypatch, name):
    """Every figure that is left is painted; written as SVG, which takes as long again, they are for another test."""
    figures = []

    def paint(drawing):
        with painted(drawing, PAGE) as figure:
            figures.append(figure)
        return "<svg></svg>"

    monkeypatch.setattr(html_form, "svg", paint)
    _, reader, text = rendered(make_inputs(without=(name,)))
    assert f"s3://bucket/{name}/" not in words(reader)
    bare = 3  # captioning, efficiency, ablations: a line each at the end
    assert reader.counts["h2"] == len(RUN_HEADINGS) - bare + 3  # and contents, what is not there, the artifacts
    assert f"no {name} artifact" in words(reader)
    assert f"no {name} artifact" in text
    assert len(figures) == reader.counts["svg"] >= 10


def test_nothing_at_all_is_a_page_of_sentences_without_an_axis(make_inputs):
    _, reader, text = rendered(make_inputs(without=ALL))
    assert reader.counts["svg"] == 0
    assert "Missing: the report was given no artifact." in words(reader)
    assert text.count("Missing:") >= 10


def test_a_fixed_selector_has_no_figure_and_says_why(make_inputs):
    html, reader, text = rendered(make_inputs(ablation="no_alsn"))
    for place in (words(reader), text):
        assert "The selector is fixed: every sample has the weights 0.25, 0.25, 0.25, 0.25" in place
    assert "Image levels, shuffled" not in html
    assert "Figure 4. Level weights of four kinds of sample" in words(reader)


def test_a_method_without_levels_says_so(make_inputs):
    _, reader, _ = rendered(make_inputs(ablation="finetune"))
    assert "The method contrastive has no levels" in words(reader)


def test_rho_of_real_and_shuffled_weights(made):
    _, reader, _ = made
    rows = {row[0]: row for row in reader.rows if row and row[0] in ("P2", "P5", "L1") and len(row) == 6}
    assert rows["P2"][4] == "1.00"
    assert rows["P5"][4] == "-1.00"
    assert abs(float(rows["P2"][5])) < 0.5
    assert rows["L1"][4:] == ["constant", "constant"]
