"""Zero-shot classification by hand, and prompt templates."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.classnames import imagenet_names, load_class_names
from cmapkd_core.evaluate.zeroshot import TEMPLATES, accuracy, class_embeddings, load_templates
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate
from cmapkd_core.stages.artifact import Artifact

torch.set_num_threads(1)


def test_a_class_is_the_renormalised_mean_of_its_normalised_prompts():
    spoken = {"a cat": [3.0, 0.0], "cat": [0.0, 5.0], "a dog": [0.0, -1.0], "dog": [0.0, -2.0]}
    found = class_embeddings(
        lambda texts: torch.tensor([spoken[t] for t in texts]), [("cat",), ("dog",)], ["a {}", "{}"]
    )
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
    assert rows[0] == {"class": "a", "images": 2, "top1": 50.0, "top5": 100.0}
    assert rows[5] == {"class": "f", "images": 2, "top1": 0.0, "top5": 50.0}


def test_a_class_without_an_image_is_named_and_has_no_accuracy():
    metrics, rows = accuracy(torch.eye(3)[:2], torch.tensor([0, 1]), ["a", "b", "c"])
    assert rows[2] == {"class": "c", "images": 0, "top1": None, "top5": None}
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


def test_a_class_of_two_names_is_the_mean_over_all_their_prompts():
    spoken = {"a cat": [3.0, 0.0], "a tomcat": [0.0, 5.0], "a dog": [0.0, -1.0]}
    names = [("cat", "tomcat"), ("dog",)]
    found = class_embeddings(lambda texts: torch.tensor([spoken[t] for t in texts]), names, ["a {}"])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_of_classes_with_equal_names_the_first_takes_the_answer():
    """Classes 0 and 2 are both called missile: equal scores, whatever the model."""
    similarity = torch.tensor([[0.9, 0.1, 0.9], [0.9, 0.1, 0.9], [0.2, 0.8, 0.2]])
    labels, names = torch.tensor([0, 2, 1]), [("missile",), ("dog",), ("missile",)]
    metrics, rows = accuracy(similarity, labels, ["n1", "n2", "n3"], names)
    assert metrics["top1"] == pytest.approx(200 / 3)
    assert [row["top1"] for row in rows] == [100.0, 100.0, 0.0]
    assert metrics["classes_with_shared_name"] == 2
    assert (similarity.argmax(1) == labels).float().mean() * 100 == pytest.approx(metrics["top1"])
    apart, _ = accuracy(similarity, labels, ["n1", "n2", "n3"])
    assert apart["top1"] == pytest.approx(100 / 3)  # equal scores of classes that differ count against the model
    assert apart["classes_with_shared_name"] == 0


def test_imagenet_folders_get_their_names_by_wordnet_id():
    names = imagenet_names()
    assert len(names) == 1000
    known = {
        "n01440764": "tench",
        "n02012849": "crane bird",
        "n03126707": "construction crane",
        "n15075141": "toilet paper",
    }
    assert {number: names[number] for number in known} == {number: (name,) for number, name in known.items()}
    assert load_class_names("imagenet", ["n15075141", "n01440764"]) == [("toilet paper",), ("tench",)]


def test_classes_without_a_source_are_their_own_names():
    assert load_class_names("", ["red circle", "dog"]) == [("red circle",), ("dog",)]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.json", json.dumps({"n1": ["tench", "Tinca  tinca"], "n2": "goldfish", "n9": "of no class here"})),
        ("names.txt", "n1\ttench\tTinca tinca\n\nn2\tgoldfish\nn9\tof no class here\n"),
    ],
)
def test_class_names_from_a_file(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    found = load_class_names(str(tmp_path / file), ["n2", "n1"])
    assert found == [("goldfish",), ("tench", "Tinca tinca")]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"n1\ttench\n", r"no name for 1 of the 2 classes \(n2\): add them"),
        ("a.txt", b"n1 tench\n", "line 1: 'n1 tench' has no tab"),
        ("a.txt", b"n1\ttench\nn1\tfish\n", "names class 'n1' twice"),
        ("a.json", b'{"n1": "tench", "n1": "fish"}', "names class 'n1' twice"),
        ("a.txt", b"n1\t\n", "class 'n1' needs one name or more"),
        ("a.json", b'{"n1": []}', "class 'n1' needs one name or more"),
        ("a.json", b'{"n1": 3}', "class 'n1' needs one name or more"),
        ("a.json", b'["tench"]', "is no JSON object"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        (
            "a.json",
            '{"a": "b\u202ec"}'.encode(),
            r"a name of class 'a' has U\+202E, which turns the direction of writing",
        ),
        ("a.txt", b"a\tb\x1bc", r"a name of class 'a' has the control character U\+001B"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_files_of_class_names(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_class_names(str(tmp_path / file), ["n1", "n2"])


def test_a_source_that_is_no_file_and_classes_that_are_no_ids():
    with pytest.raises(InputError, match="imagenet1k is no file: did you mean 'imagenet'"):
        load_class_names("imagenet1k", ["n1"])
    with pytest.raises(InputError, match=r"no name for 2 of the 2 classes \(cat, dog\): they must be WordNet ids"):
        load_class_names("imagenet", ["cat", "dog"])


def test_the_stage_asks_with_the_names_of_the_file(tmp_path):
    """Two pictures, two classes with ids for names; the names in the file reach the prompts."""
    rows = []
    for i in range(8):
        Image.new("RGB", (16, 16), (200, 30 * i, 0)).save(tmp_path / f"{i}.png")
        split = "test" if i < 4 else "train"
        rows.append({"key": str(i), "file": f"{i}.png", "caption": "a thing", "class": f"n{i % 2}", "split": split})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = tmp_path / "names.txt"
    names.write_text("n0\tred circle\nn1\tblue square\n")
    request = Request("tiny", str(tmp_path / "root"), data=f"folder:{tmp_path}", overrides=f"evaluate.classes={names}")
    url = evaluate.run(request, model="recipe:student", task="zeroshot")
    detail = json.loads(Artifact.open(url).fetch("zeroshot.json").read_bytes())
    assert [row["names"] for row in detail["classes"]] == [["red circle"], ["blue square"]]
    plain = evaluate.run(replace(request, overrides=""), model="recipe:student", task="zeroshot")
    assert plain != url
