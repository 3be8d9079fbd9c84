"""Zero-shot classification by hand, and prompt templates."""

import pytest
import torch

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.zeroshot import TEMPLATES, accuracy, class_embeddings, load_templates

torch.set_num_threads(1)


def test_a_class_is_the_renormalised_mean_of_its_normalised_prompts():
    spoken = {"a cat": [3.0, 0.0], "cat": [0.0, 5.0], "a dog": [0.0, -1.0], "dog": [0.0, -2.0]}
    found = class_embeddings(lambda texts: torch.tensor([spoken[t] for t in texts]), ["cat", "dog"], ["a {}", "{}"])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_accuracy_by_hand():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.0, 0.0, 0.3],  # class 0: first
            [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],  # class 5: sixth, so not even among five
            [0.1, 0.2, 0.9, 0.8, 0.0, 0.0],  # class 0: fourth
            [0.3, 0.2, 0.1, 0.0, 0.0, 0.3],  # class 5: tied with class 0, so second
        ]
    )
    metrics, rows = accuracy(similarity, torch.tensor([0, 5, 0, 5]), list("abcdef"))
    assert metrics["top1"] == 25.0
    assert metrics["top5"] == 75.0
    assert metrics["per_class_top1"] == 25.0  # 50 % of a, 0 % of f; the other classes have no image
    assert metrics["majority"] == 50.0
    assert metrics["chance/top1"] == pytest.approx(100 / 6)
    assert metrics["chance/top5"] == pytest.approx(500 / 6)
    assert rows[0] == {"class": "a", "images": 2, "top1": 50.0}


def test_a_class_without_an_image_is_named_and_has_no_accuracy():
    metrics, rows = accuracy(torch.eye(3)[:2], torch.tensor([0, 1]), ["a", "b", "c"])
    assert rows[2] == {"class": "c", "images": 0, "top1": None}
    assert metrics["classes_without_image"] == 1
    assert metrics["per_class_top1"] == metrics["top1"] == 100.0


def test_chance_is_at_most_certain():
    metrics, _ = accuracy(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
    assert metrics["chance/top5"] == 100.0


def test_tables_of_templates():
    assert len(TEMPLATES["clip"]) == 80
    assert "a bad photo of a {}." in TEMPLATES["clip"]
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)


def test_templates_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of a {}.\n\n  {} on a table\n")
    assert load_templates(str(path)) == ("a photo of a {}.", "{} on a table")
    assert load_templates("plain") == TEMPLATES["plain"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a photo of a {}\na photo\n", "line 2: 'a photo' needs {} once"),
        (b"a {} and a {}\n", "line 1"),
        (b"\n\n", "are empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_template_files(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_templates(str(path))


def test_unknown_templates_name_the_nearest_row():
    with pytest.raises(InputError, match="did you mean 'plain'"):
        load_templates("plane")
