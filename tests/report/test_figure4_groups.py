"""Figure 4's rules of choice on hand-made tables."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cmapkd_core.report.figures.figure4_groups import (
    COLUMNS,
    LINES,
    RULES,
    choose_groups,
    draw_radar,
    nearest_other,
    short_caption,
)
from cmapkd_core.report.figures.style import PRINT, painted
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.samples import Samples, read_samples
from cmapkd_core.report.sections.selector_sections import groups_section


def samples(n: int = 200, **more: object) -> Samples:
    """Captions of 1..n words, the hardest last; pictures on a circle, one pair near; one caption that is far off."""
    turn = np.linspace(0, np.pi, n)
    turn[7] = turn[6] + 1e-4  # nearer to 6 than any other two are
    image = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    text = image.copy()
    text[20] = -image[20]
    given = {
        "keys": [f"k{i}" for i in range(n)],
        "captions": [[" ".join(f"w{i}-{j}" for j in range(i + 1))] for i in range(n)],
        "names": ("P2", "P5"),
        "weights": np.stack([np.linspace(0, 1, n), np.linspace(1, 0, n)], axis=1),
        "difficulty": np.linspace(-1, 1, n),
        "image": image,
        "text": text,
    }
    return Samples(**(given | more))  # type: ignore[arg-type]


def test_each_rule_takes_its_extreme():
    chosen = {kind.rule.name: kind for kind in choose_groups(samples())}
    assert chosen["simple"].keys == [f"k{i}" for i in range(10)]  # 5 % of 200
    assert chosen["complex"].keys == [f"k{i}" for i in range(199, 189, -1)]
    assert set(chosen["fine-grained"].keys[:2]) == {"k6", "k7"}
    assert chosen["abstract"].keys[0] == "k20"
    assert chosen["simple"].mean["P2"] == pytest.approx(np.linspace(0, 1, 200)[:10].mean())
    expected = np.linspace(0, 1, 200)[:10].std(ddof=1) / 10**0.5
    assert chosen["simple"].error["P2"] == pytest.approx(expected)


def test_ties_go_by_difficulty():
    n = 40
    same = samples(n, captions=[["one word"]] * n)
    chosen = {kind.rule.name: kind.keys for kind in choose_groups(same)}
    assert chosen["simple"] == [f"k{i}" for i in range(8)]  # all captions are as long: the easiest
    assert chosen["complex"] == [f"k{i}" for i in range(39, 31, -1)]  # the hardest


def test_a_neighbour_that_shares_a_caption_does_not_count():
    twins = samples()
    captions = [list(texts) for texts in twins.captions]
    captions[7] = [captions[6][0].upper()]
    nearest = nearest_other(samples(captions=captions))
    assert nearest[6] < nearest_other(twins)[6]
    alone = nearest_other(samples(40, captions=[["the same"]] * 40))
    assert (alone == -1).all()


def test_the_rules_do_not_see_the_weights():
    flipped = samples(weights=samples().weights[::-1].copy())
    assert [k.keys for k in choose_groups(flipped)] == [k.keys for k in choose_groups(samples())]


def test_too_few_samples_are_missing():
    with pytest.raises(Missing, match="at least 32 samples"):
        choose_groups(samples(31))


def test_tables_are_joined_by_key(make_inputs):
    inputs = make_inputs()
    found = read_samples(inputs)
    assert found.keys[:2] == ["t0", "t1"]
    assert found.captions[2] == ["w2 w2 w2", "v2 v2 v2"]
    assert found.weights.shape == (64, 8)
    np.testing.assert_allclose(np.linalg.norm(found.image, axis=1), 1, rtol=1e-6)


def test_the_section_states_its_rules_and_shows_pictures(make_inputs):
    section = groups_section(make_inputs())
    for rule in RULES:
        assert f"{rule.name}: {rule.words}" in section.caption
    assert [drawing.title for drawing in section.figures] == [
        f"{n}, n = 8" for n in ("Simple", "Complex", "Fine-grained", "Abstract")
    ]
    (made,) = section.tables
    assert [line.label for line in made.rows] == ["simple", "complex", "fine-grained", "abstract", "all samples"]
    # P2's weight rises with difficulty, and the words with it (see conftest).
    first, second = (line.cells[0].interval for line in made.rows[:2])
    assert first.mean < 0.25 < second.mean
    assert made.rows[0].cells[0].origins == {"joint": "s3://bucket/joint/0123", "shards": "s3://bucket/shards/0123"}


@pytest.mark.parametrize(("row", "words"), [("no_alsn", "The selector is fixed"), ("finetune", "has no levels")])
def test_recipes_without_weights_say_so(make_inputs, row, words):
    section = groups_section(make_inputs(ablation=row))
    assert words in section.missing[0]
    assert not section.figures


LONG = (
    "a very long caption that tells of a red mug with a donaudampfschifffahrtsgesellschaft on a desk beside $5 and $6"
)


def test_a_long_caption_is_cut_and_stays_below_its_picture():
    lines = short_caption(LONG).split("\n")
    assert len(lines) == LINES
    assert max(map(len, lines)) <= COLUMNS
    assert lines[-1].endswith("…")
    assert short_caption("a mug") == "a mug"
    assert short_caption("一只红色的杯子") == ""  # DejaVu has no such letters


def test_pictures_and_their_words_lie_inside_the_figure():
    picture = Image.new("RGB", (32, 32), "red")
    drawing = draw_radar("Simple", {"image levels": [0.2] * 4}, ["P2 / L1"] * 4, 0.5, 0.25, [(picture, LONG)] * 3)
    with painted(drawing, PRINT) as figure:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        axes = figure.axes[1:]
        words = [one.texts[0].get_window_extent(canvas.get_renderer()) for one in axes]
        whole, boxes = figure.bbox, [one.get_window_extent() for one in axes]
    assert len(boxes) == 3
    for box in (*boxes, *words):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert all(left.x1 <= right.x0 for left, right in pairwise(words))
