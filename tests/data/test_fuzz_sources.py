"""Every field of every source with what no text, number or list should be: bad rows, and no silent word."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cmapkd_core.config import DataConfig
from cmapkd_core.data.layout import INDEX, QUARANTINE, QUESTIONS
from cmapkd_core.data.shards import write_shards
from cmapkd_core.data.sources import open_rows
from cmapkd_core.errors import InputError

Of = Callable[[int, str, Any], Any]  # sample, field, its right value -> the value to write
Files = dict[str, bytes]

ODD: list[Any] = [
    *(None, float("nan"), 7, -1, 1.5, True, 2**62, [], {}, [None], ["a", None], [["a"]], ["a", "a"], {"en": "a dog"}),
    *("", " \n", "None", "nan", "NaN", "null", "<NA>", "[]", "[None]", "[nan, nan]", "['a', None]", "{'en': 'a dog'}"),
    *(
        "['a dog', 'one dog']",
        "['a dog' 'one dog']",
        '["a dog", "one dog"]',
        "['a dog', 'one",
        "(['a'], 'b')",
        "[['a']]",
    ),
    *(
        "a\x00dog",
        "a\x1b[2Jdog",
        "caf\x92",
        "caf\ufffd",
        "\ufeffa dog",
        "half \ud800 pair",
        "../../etc/passwd",
        "x" * 300,
    ),
]
GOOD = 2  # samples behind them that nothing is changed in
COUNT = len(ODD) + GOOD


# ---- each source, small ---------------------------------------------------------------------------


def dumped(value: Any) -> bytes:
    """JSON in UTF-8; nan and halves of pairs, which its readers refuse, as null."""
    return json.dumps(value).replace("NaN", "null").replace("\\ud800", "\\ufffd").encode()


def coco_official(of: Of, image: bytes) -> Files:
    images = [{"id": of(i, "id", i)} for i in range(COUNT)]
    said = [{"image_id": of(i, "image_id", i), "caption": of(i, "caption", f"dog {i}")} for i in range(COUNT)]
    train, val = {"images": images, "annotations": said}, {"images": [{"id": 10**6}], "annotations": said[:1]}
    files = {f"train2017/{i:012d}.jpg": image for i in range(COUNT)}
    captions = {"train": dumped(train), "val": dumped(val)}
    return files | {f"annotations/captions_{part}2017.json": data for part, data in captions.items()}


def karpathy(of: Of, name: Callable[[int], str], **more: str) -> bytes:
    images = [
        {
            "filename": of(i, "filename", name(i)),
            "split": of(i, "split", "train"),
            "sentences": of(i, "sentences", [{"raw": of(i, "raw", f"dog {i}")}, of(i, "sentence", {"raw": "a dog"})]),
            **{field: of(i, field, i if field == "cocoid" else folder) for field, folder in more.items()},
        }
        for i in range(COUNT)
    ]
    return dumped({"images": images})


def coco_karpathy(of: Of, image: bytes) -> Files:
    files = {f"train2014/COCO_train2014_{i:012d}.jpg": image for i in range(COUNT)}
    return files | {"dataset_coco.json": karpathy(of, lambda i: f"{i}.jpg", cocoid="", filepath="train2014")}


def flickr30k(of: Of, image: bytes) -> Files:
    files = {f"images/{i}.jpg": image for i in range(COUNT)}
    return files | {"dataset_flickr30k.json": karpathy(of, lambda i: f"{i}.jpg")}


def vqav2(of: Of, image: bytes) -> Files:
    asked = [
        {
            "question_id": of(i, "question_id", i),
            "image_id": of(i, "image_id", i),
            "question": of(i, "question", f"what is {i}?"),
        }
        for i in range(COUNT)
    ]
    answered = [
        {
            "question_id": of(i, "question_id of the annotation", i),
            "answers": of(i, "answers", [{"answer": of(i, "answer", "net")}, of(i, "an answer", {"answer": "a net"})]),
            "answer_type": of(i, "answer_type", "other"),
            "question_type": of(i, "question_type", "what is"),
        }
        for i in range(COUNT)
    ]
    return {f"train2014/COCO_train2014_{i:012d}.jpg": image for i in range(COUNT)} | {
        "v2_OpenEndedQuestions_mscoco_train2014_questions.json": dumped({"questions": asked}),
        "v2_mscoco_train2014_annotations.json": dumped({"annotations": answered}),
    }


def visual_genome(of: Of, image: bytes) -> Files:
    images = [
        {
            "image_id": of(i, "image_id", i),
            "url": of(i, "url", f"http://x/VG_100K/{i}.jpg"),
            "coco_id": of(i, "coco_id", None),
            "flickr_id": of(i, "flickr_id", i),
        }
        for i in range(COUNT)
    ]
    described = [
        {
            "id": of(i, "id", i),
            "regions": of(i, "regions", [{"region_id": of(i, "region_id", i), "phrase": of(i, "phrase", f"dog {i}")}]),
        }
        for i in range(COUNT)
    ]
    files = {f"VG_100K/{i}.jpg": image for i in range(COUNT)}
    return files | {"image_data.json": dumped(images), "region_descriptions.json": dumped(described)}


def as_text(value: Any) -> bytes:
    """A value as careless tools write it into a file of text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def img2dataset(of: Of, image: bytes) -> Files:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", errors="surrogateescape") as tar:
        for i in range(COUNT):
            stem = str(of(i, "name", f"00000{i:04d}")).replace("\0", "").replace("\ud800", "\udce9") or "0"
            said = {"caption": of(i, "caption", f"dog {i}"), "url": of(i, "url", f"http://x/{i}")}
            txt = as_text(of(i, "txt", f"dog {i}"))
            for extension, data in (("jpg", image), ("json", json.dumps(of(i, "json", said)).encode()), ("txt", txt)):
                member = tarfile.TarInfo(f"{stem}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"00000.tar": file.getvalue()}


def cc3m(of: Of, image: bytes) -> Files:
    lines = []
    for i in range(COUNT):
        fields = [as_text(of(i, "caption", f"dog {i}")), as_text(of(i, "url", f"http://x/{i}"))]
        lines.append(b"\t".join(field.replace(b"\n", b"") for field in fields))
    return {f"images/{i}.jpg": image for i in range(COUNT)} | {"Train_GCC-training.tsv": b"\n".join(lines) + b"\n"}


def records(of: Of) -> list[dict[str, Any]]:
    right = {"caption": "a dog", "captions": None, "class": "dog", "split": "train"}
    return [
        {name: of(i, name, value) for name, value in ({"key": f"k{i}", "file": f"{i}.jpg"} | right).items()}
        for i in range(COUNT)
    ]


def folder_of_jsonl(of: Of, image: bytes) -> Files:
    lines = "\n".join(json.dumps(record) for record in records(of))
    return {f"{i}.jpg": image for i in range(COUNT)} | {"captions.jsonl": lines.encode()}


def folder_of_csv(of: Of, image: bytes) -> Files:
    file = io.StringIO()
    table = csv.writer(file)
    rows = [{name: str(value).replace("\ud800", "") for name, value in record.items()} for record in records(of)]
    table.writerows([list(rows[0]), *(row.values() for row in rows)])
    return {f"{i}.jpg": image for i in range(COUNT)} | {"captions.csv": file.getvalue().encode()}


def imagenet(of: Of, image: bytes) -> Files:
    shows = "\n".join(f'X{i},"{of(i, "class", "n1 1 2 3 4")!s}"'.replace("\ud800", "") for i in range(COUNT))
    files = {f"val/X{i}.JPEG": image for i in range(COUNT)}
    return files | {
        "synset_words.txt": b"n1 dog\nn2 cat\n",
        "LOC_val_solution.csv": f"ImageId,PredictionString\n{shows}\n".encode(),
    }


def stamps(of: Of, image: bytes) -> Files:
    root = "usr/share/tuxpaint/stamps/animals"
    texts = {f"{root}/{i}.txt": as_text(of(i, "caption", f"dog {i}")) for i in range(COUNT)}
    return {f"{root}/{i}.png": image for i in range(COUNT)} | texts


BUILD: dict[str, tuple[str, Callable[[Of, bytes], Files]]] = {
    "coco": ("coco", coco_official),
    "coco, Karpathy's": ("coco", coco_karpathy),
    "flickr30k": ("flickr30k", flickr30k),
    "vqav2": ("vqav2", vqav2),
    "visual_genome": ("visual_genome", visual_genome),
    "img2dataset": ("img2dataset", img2dataset),
    "cc3m": ("cc3m", cc3m),
    "folder, jsonl": ("folder", folder_of_jsonl),
    "folder, csv": ("folder", folder_of_csv),
    "imagenet": ("imagenet", imagenet),
    "stamps": ("stamps", stamps),
}


# ---- what comes of them ---------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, str]]:
    """Every source with every field that its builder asks for."""
    for name, (_, build) in BUILD.items():
        fields: dict[str, None] = {}
        build(lambda i, field, value, fields=fields: (fields.setdefault(field), value)[1], b"")  # type: ignore[misc]
        yield from ((name, field) for field in fields)


def prepared(name: str, of: Of, image: bytes, there: Path) -> dict[str, int]:
    """Counts of a data set written to `there`/out from `there`/in."""
    source, build = BUILD[name]
    for file, data in build(of, image).items():
        (path := there / "in" / file).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    more = {"splits": ("train",)} if source == "vqav2" else {}
    config = DataConfig(source, f"{there / 'in'}", val_share=0.0, test_share=0.0, quarantine_bound=1.0, **more)  # type: ignore[arg-type]
    return write_shards(open_rows(config), there / "out", config, lambda seen: None)


def stored(out: Path) -> tuple[list[str], list[str]]:
    """All captions, classes and questions of a data set; all answers."""
    index = pq.read_table(out / INDEX).to_pylist()
    texts = [text for row in index for text in (*row["captions"], row["class_name"] or "a dog")]
    if not (out / QUESTIONS).exists():
        return texts, []
    questions = pq.read_table(out / QUESTIONS).to_pylist()
    return [*texts, *(q["text"] for q in questions)], [answer for q in questions for answer in q["answers"]]


@pytest.mark.parametrize(("name", "field"), list(cases()))
def test_odd_values_are_bad_rows_and_no_words(
    name: str, field: str, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    def of(i: int, at: str, value: Any) -> Any:
        return ODD[i] if at == field and i < len(ODD) else value

    counts = prepared(name, of, picture(), tmp_path)
    assert counts["used"] >= GOOD
    assert counts["seen"] >= COUNT
    assert counts["seen"] == counts["used"] + counts["quarantined"]
    listed = [json.loads(line) for line in (tmp_path / "out" / QUARANTINE).read_text().splitlines()]
    assert len(listed) == counts["quarantined"] + counts.get("bad_questions", 0)
    assert all(bad["reason"] for bad in listed)
    texts, answers = stored(tmp_path / "out")
    for text in [*texts, *answers]:
        assert not set(text) & set("\x00\x1b\x92\ufffd\ufeff")
        assert not text.startswith(("['", '["', "[[", "([", "{'"))
    assert not {"", "None", "nan", "NaN", "null", "<NA>"} & set(texts)


@pytest.mark.parametrize("name", list(BUILD))
def test_nothing_odd_is_all_used(name: str, tmp_path: Path, picture: Callable[..., bytes]) -> None:
    counts = prepared(name, lambda i, field, value: value, picture(), tmp_path)
    assert (counts["used"], counts.get("bad_questions", 0)) == (COUNT, 0)
    assert counts["quarantined"] == (2 if name == "coco" else 0)  # the val file's one picture, and a caption of none


@pytest.mark.parametrize("name", list(BUILD))
def test_every_value_twice_is_counted(name: str, tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """Every second sample is called like the one before it."""
    counts = prepared(name, lambda i, field, value: 0 if value == 1 else value, picture(), tmp_path)
    assert counts["seen"] >= COUNT - 1
    assert counts["seen"] == counts["used"] + counts["quarantined"]


TEXT = {"cc3m": "caption", "img2dataset": "txt", "stamps": "caption"}  # where each has texts as they are
ENCODED = {
    "Latin-1": "café".encode("latin-1"),
    "UTF-16 without a mark": "a dog".encode("utf-16-le"),
    "half a letter": "café".encode()[:-1],
}


@pytest.mark.parametrize("encoding", list(ENCODED))
@pytest.mark.parametrize("name", list(TEXT))
def test_a_text_in_another_encoding_is_a_bad_row_that_says_so(
    name: str, encoding: str, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    def of(i: int, field: str, value: Any) -> Any:
        return ENCODED[encoding] if i == 0 and field == TEXT[name] else value

    counts = prepared(name, of, picture(), tmp_path)
    assert (counts["used"], counts["quarantined"]) == (COUNT - 1, 1)
    (line,) = (tmp_path / "out" / QUARANTINE).read_text().splitlines()
    assert ("is not UTF-8" in line) == ("mark" not in encoding)
    assert ("the control character U+0000" in line) == ("mark" in encoding)


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["img2dataset", "stamps"])
def test_a_text_with_a_byte_order_mark_is_read(
    name: str, mark: str, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    prepared(name, lambda i, at, value: "café".encode(mark) if at == TEXT[name] else value, picture(), tmp_path)
    assert set(stored(tmp_path / "out")[0]) == {"café", {"img2dataset": "a dog", "stamps": "animal"}[name]}


@pytest.mark.parametrize("name", ["coco", "flickr30k", "vqav2", "visual_genome"])
def test_annotations_in_another_encoding_are_refused_with_a_way_out(
    name: str, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    files = BUILD[name][1](lambda i, field, value: value, picture())
    file = [file for file in files if file.endswith(".json")][-1 if name == "visual_genome" else 0]
    config = DataConfig(BUILD[name][0], str(tmp_path), val_share=0.0, splits=("train",))
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    for wrong in (
        files[file].decode().encode("utf-16"),
        files[file].replace(b"dog", b"d\xf6g").replace(b"what", b"wh\xe4t"),
        files[file].replace(b'"', b"NaN", 1),
    ):
        (tmp_path / file).write_bytes(wrong)
        with pytest.raises(InputError, match=f"{Path(file).name} is .*UTF-8"):
            list(open_rows(config))
    (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + files[file])
    assert len(list(open_rows(config))) >= COUNT
