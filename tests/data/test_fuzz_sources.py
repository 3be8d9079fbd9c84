"""Every field of every source with what no text, number or list should be: bad rows, and no silent word."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.layout import INDEX, QUARANTINE, QUESTIONS
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import InputError

Of = Callable[[int, str, Any], Any]  # sample, field, its right value -> the value to write
Files = dict[str, bytes]

LONG = 200_000  # signs: more than Python's csv module reads, than a file's name has, and than a caption may
DEEP = "(nested)"  # in JSON a list in a list in a list ..
NESTED = b"[" * 100_000 + b"]" * 100_000
ODD: list[Any] = [
    *(None, float("nan"), float("inf"), 7, -1, 1.5, 2.0**80, 2**62, True, [], {}, [None], ["a", None], ["a", "a"]),
    *([["a"]], {"en": "a dog"}, "", " \n", "None", "nan", "NaN", "null", "<NA>", "[]", "[None]", "[nan, nan]"),
    *("['a', None]", "{'en': 'a dog'}", "b'a dog'", "['a dog', 'one dog']", "['a dog' 'one dog']", '["a dog", "x"]'),
    *("['a dog', 'one", "(['a'], 'b')", "[['a']]", "('a', 'b')", "a\x00dog", "a\x1b[2Jdog", "caf\x92", "caf\ufffd"),
    *("a \u202egod", "\u2066a dog", "x" * LONG, DEEP),
    *("\ufeffa dog", "half \ud800 pair", "../../etc/passwd", "/etc/passwd", "s3://b/k", "x" * 300, "a\tb", "a\r\nb"),
]
GOOD = 2  # samples behind them that nothing is changed in
COUNT = len(ODD) + GOOD
NO_TEXT = {"", "None", "nan", "NaN", "null", "<NA>"}
NO_SIGN = set("\x00\x1b\x92\ufffd\ufeff\ud800\u202e\u2066")
NO_START = ("['", '["', "[[", "(['", "('", "{'", "b'", "[None", "[nan")


def right(i: int, field: str, value: Any) -> Any:
    return value


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


# ---- each source, small: its texts, and what its pictures are called --------------------------------


def dumped(value: Any) -> bytes:
    """JSON; nan and inf, which no JSON has, as null."""
    plain = json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)).encode()
    return plain.replace(json.dumps(DEEP).encode(), NESTED)


def coco_official(of: Of) -> Files:
    images = [{"id": of(i, "id", i)} for i in range(COUNT)]
    said = [{"image_id": of(i, "image_id", i), "caption": of(i, "caption", f"dog {i}")} for i in range(COUNT)]
    train, val = {"images": images, "annotations": said}, {"images": [{"id": 10**6}], "annotations": said[-1:]}
    captions = {"train": dumped(train), "val": dumped(val)}
    return {f"annotations/captions_{part}2017.json": data for part, data in captions.items()}


def karpathy(of: Of, name: str, **more: str) -> Files:
    images = [
        {
            "filename": of(i, "filename", f"{i}.jpg"),
            "split": of(i, "split", "train"),
            "sentences": of(i, "sentences", [{"raw": of(i, "raw", f"dog {i}")}, of(i, "sentence", {"raw": "a dog"})]),
            **{field: of(i, field, i if field == "cocoid" else folder) for field, folder in more.items()},
        }
        for i in range(COUNT)
    ]
    return {name: dumped({"images": images})}


def coco_karpathy(of: Of) -> Files:
    return karpathy(of, "dataset_coco.json", cocoid="", filepath="train2014")


def flickr30k(of: Of) -> Files:
    return karpathy(of, "dataset_flickr30k.json")


def vqav2(of: Of) -> Files:
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
    return {
        "v2_OpenEndedQuestions_mscoco_train2014_questions.json": dumped({"questions": asked}),
        "v2_mscoco_train2014_annotations.json": dumped({"annotations": answered}),
    }


def visual_genome(of: Of) -> Files:
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
    return {"region_descriptions.json": dumped(described), "image_data.json": dumped(images)}


def as_text(value: Any) -> bytes:
    """A value as careless tools write it into a file of text; a half of a pair in bytes that are no UTF-8."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def img2dataset(of: Of) -> Files:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", errors="surrogateescape") as tar:
        for i in range(COUNT):
            stem = f"00000{i:04d}" + str(of(i, "name", "")).replace("\0", "").replace("\ud800", "\udce9")
            said = of(i, "json", {"caption": of(i, "caption", f"dog {i}"), "url": of(i, "url", f"http://x/{i}")})
            txt = as_text(of(i, "txt", ""))
            if txt and isinstance(said, dict):
                said.pop("caption", None)
            for extension, data in (
                ("jpg", PNG),
                ("json", json.dumps(said).encode().replace(json.dumps(DEEP).encode(), NESTED)),
                ("txt", txt),
            ):
                member = tarfile.TarInfo(f"{stem}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"00000.tar": file.getvalue()}


def cc3m(of: Of) -> Files:
    lines = []
    for i in range(COUNT):
        fields = [as_text(of(i, "caption", f"dog {i}")), as_text(of(i, "url", f"http://x/{i}"))]
        lines.append(b"\t".join(field.replace(b"\n", b"") for field in fields))
    return {"Train_GCC-training.tsv": b"\n".join(lines) + b"\n"}


def records(of: Of) -> list[dict[str, Any]]:
    fields = {"caption": "a dog", "captions": None, "class": "dog", "split": "train"}
    return [
        {name: of(i, name, value) for name, value in ({"key": f"k{i}", "file": f"{i}.jpg"} | fields).items()}
        for i in range(COUNT)
    ]


def folder_of_jsonl(of: Of) -> Files:
    return {
        "captions.jsonl": "\n".join(map(json.dumps, records(of))).encode().replace(json.dumps(DEEP).encode(), NESTED)
    }


def folder_of_csv(of: Of) -> Files:
    file = io.StringIO()
    table = csv.writer(file)
    rows = [{name: str(value).replace("\ud800", "") for name, value in record.items()} for record in records(of)]
    table.writerows([list(rows[0]), *(row.values() for row in rows)])
    return {"captions.csv": file.getvalue().encode()}


def imagenet(of: Of) -> Files:
    shows = io.StringIO()
    csv.writer(shows).writerows(
        [f"X{i}", str(of(i, "class", "n1 1 2 3 4")).replace("\ud800", "")] for i in range(COUNT)
    )
    return {
        "synset_words.txt": b"n1 dog\nn2 cat\n",
        "LOC_val_solution.csv": f"ImageId,PredictionString\n{shows.getvalue()}".encode(),
    }


def stamps(of: Of) -> Files:
    return {f"{STAMPS}/{i}.txt": as_text(of(i, "caption", f"dog {i}")) for i in range(COUNT)}


PNG = png()
STAMPS = "usr/share/tuxpaint/stamps/animals"
BUILD: dict[str, tuple[str, Callable[[Of], Files], str]] = {
    "coco": ("coco", coco_official, "train2017/{:012d}.jpg"),
    "coco, Karpathy's": ("coco", coco_karpathy, "train2014/COCO_train2014_{:012d}.jpg"),
    "flickr30k": ("flickr30k", flickr30k, "images/{}.jpg"),
    "vqav2": ("vqav2", vqav2, "train2014/COCO_train2014_{:012d}.jpg"),
    "visual_genome": ("visual_genome", visual_genome, "VG_100K/{}.jpg"),
    "img2dataset": ("img2dataset", img2dataset, ""),
    "cc3m": ("cc3m", cc3m, "images/{}.jpg"),
    "folder, jsonl": ("folder", folder_of_jsonl, "{}.jpg"),
    "folder, csv": ("folder", folder_of_csv, "{}.jpg"),
    "imagenet": ("imagenet", imagenet, "val/X{}.JPEG"),
    "stamps": ("stamps", stamps, STAMPS + "/{}.png"),
}


# ---- what comes of them ---------------------------------------------------------------------------


class Folders:
    """The pictures of each source, written once; `texts` puts the rest beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def texts(self, name: str, files: Files) -> DataConfig:
        source, _, picture = BUILD[name]
        there = self.root / name
        if picture and not there.exists():
            files = {picture.format(i): PNG for i in range(COUNT)} | files
        for file, data in files.items():
            (there / file).parent.mkdir(parents=True, exist_ok=True)
            (there / file).write_bytes(data)
        splits = ("train",) if source == "vqav2" else ()
        return DataConfig(
            source, str(there), splits=splits, val_share=0.0, test_share=0.0, quarantine_bound=1.0, max_pixels=64
        )

    def prepared(self, name: str, of: Of, out: Path) -> dict[str, int]:
        """Counts of a data set written to `out`."""
        config = self.texts(name, BUILD[name][1](of))
        return write_shards(open_rows(config), out, config, lambda seen: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("fuzz"))


def cases() -> Iterator[tuple[str, str]]:
    """Every source with every field that its builder asks for."""
    for name, (_, build, _) in BUILD.items():
        fields: dict[str, None] = {}
        build(lambda i, field, value, fields=fields: (fields.setdefault(field), value)[1])  # type: ignore[misc]
        yield from ((name, field) for field in fields)


def stored(out: Path) -> tuple[list[str], list[str]]:
    """All captions, classes and questions of a data set; all answers."""
    index = pq.read_table(out / INDEX).to_pylist()
    said = [text for row in index for text in (*row["captions"], *([row["class_name"]] if row["class_name"] else []))]
    if not (out / QUESTIONS).exists():
        return said, []
    questions = pq.read_table(out / QUESTIONS).to_pylist()
    return [*said, *(q["text"] for q in questions)], [answer for q in questions for answer in q["answers"]]


@pytest.mark.parametrize(("name", "field"), list(cases()))
def test_odd_values_are_bad_rows_and_no_words(name: str, field: str, folders: Folders, tmp_path: Path) -> None:
    counts = folders.prepared(name, lambda i, at, value: ODD[i] if at == field and i < len(ODD) else value, tmp_path)
    assert counts["used"] >= GOOD
    assert counts["seen"] >= COUNT
    assert counts["seen"] == counts["used"] + counts["quarantined"]
    listed = [json.loads(line) for line in (tmp_path / QUARANTINE).read_text().splitlines()]
    assert len(listed) == counts["quarantined"] + counts.get("bad_questions", 0)
    assert all(bad["reason"] for bad in listed)
    said, answers = stored(tmp_path)
    for text in [*said, *answers]:
        assert not set(text) & NO_SIGN
        assert not text.startswith(NO_START)
        assert "half ?" not in text
    assert not NO_TEXT & set(said)
    assert not (NO_TEXT - {""}) & set(answers)  # one person may have said nothing


@pytest.mark.parametrize("name", list(BUILD))
def test_nothing_odd_is_all_used(name: str, folders: Folders, tmp_path: Path) -> None:
    counts = folders.prepared(name, right, tmp_path)
    assert (counts["used"], counts.get("bad_questions", 0)) == (COUNT, 0)
    assert counts["quarantined"] == (2 if name == "coco" else 0)  # the val file's one picture, and a caption of none


@pytest.mark.parametrize("name", list(BUILD))
def test_every_value_twice_is_counted(name: str, folders: Folders, tmp_path: Path) -> None:
    """What is 1 of the second sample is 0, as of the first."""
    counts = folders.prepared(name, lambda i, field, value: 0 if value == 1 else value, tmp_path)
    assert counts["seen"] >= COUNT - 1
    assert counts["seen"] == counts["used"] + counts["quarantined"]


# ---- links out of the folder ----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BUILD))
def test_what_links_lead_to_outside_is_not_read(name: str, tmp_path: Path) -> None:
    """The pictures' folder is elsewhere, and a link to it stands in its place: rows or all of them are refused."""
    folders = Folders(tmp_path / "data")
    config = replace(folders.texts(name, BUILD[name][1](right)), quarantine_bound=0.0)
    picture = Path(BUILD[name][2].format(0) or "00000.tar")
    linked = Path(config.url) / (picture.parent if picture.parent.name else picture)
    linked.rename(tmp_path / "outside")
    linked.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=r"a link that leads out of .*: copy or mount it there"):
        write_shards(open_rows(config), tmp_path / "out", config, lambda seen: None)
    linked.unlink()
    (tmp_path / "outside").rename(linked)  # the way out
    config = replace(config, quarantine_bound=1.0)
    assert write_shards(open_rows(config), tmp_path / "out", config, lambda seen: None)["used"] == COUNT
    if name in ("stamps", "img2dataset", "imagenet", "cc3m"):
        return
    linked.rename(aside := Path(config.url) / "aside")
    linked.symlink_to(aside)  # this link leads nowhere outside
    assert write_shards(open_rows(config), tmp_path / "again", config, lambda seen: None)["used"] == COUNT


@pytest.mark.parametrize("name", ["stamps", "cc3m", "img2dataset"])
def test_a_linked_folder_that_a_listing_passes_over_is_no_silent_loss(name: str, tmp_path: Path) -> None:
    config = Folders(tmp_path / "data").texts(name, BUILD[name][1](right))
    folder = Path(config.url) / Path(BUILD[name][2]).parent
    (folder / "more").symlink_to(folder)
    with pytest.raises(InputError, match="more is a link, which is not followed: copy or mount what it leads to there"):
        open_rows(config)


@pytest.mark.parametrize("name", list(BUILD))
def test_a_captions_file_that_is_a_link_out_of_the_folder_is_not_read(name: str, tmp_path: Path) -> None:
    config = Folders(tmp_path / "data").texts(name, files := BUILD[name][1](right))
    for number, file in enumerate(files):
        (Path(config.url) / file).rename(tmp_path / f"outside{number}")
        (Path(config.url) / file).symlink_to(tmp_path / f"outside{number}")
    with pytest.raises(InputError, match="a link that leads out of"):
        write_shards(open_rows(config), tmp_path / "out", config, lambda seen: None)


# ---- encodings ------------------------------------------------------------------------------------

TEXT = {"cc3m": "caption", "img2dataset": "txt", "stamps": "caption"}  # where a file or line is one text
ENCODED = {
    "Latin-1": "café".encode("latin-1"),
    "UTF-16 without a mark": "a dog".encode("utf-16-le"),
    "half a letter": "café".encode()[:-1],
}


@pytest.mark.parametrize("encoding", list(ENCODED))
@pytest.mark.parametrize("name", list(TEXT))
def test_a_text_in_another_encoding_is_a_bad_row_that_says_so(
    name: str, encoding: str, folders: Folders, tmp_path: Path
) -> None:
    counts = folders.prepared(
        name, lambda i, at, value: ENCODED[encoding] if i == 0 and at == TEXT[name] else value, tmp_path
    )
    assert (counts["used"], counts["quarantined"]) == (COUNT - 1, 1)
    (line,) = (tmp_path / QUARANTINE).read_text().splitlines()
    assert ("is not UTF-8 (" in line and "at byte" in line) == ("mark" not in encoding)
    assert ("the control character U+0000" in line) == ("mark" in encoding)


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["img2dataset", "stamps"])
def test_a_text_with_a_byte_order_mark_is_read(name: str, mark: str, folders: Folders, tmp_path: Path) -> None:
    folders.prepared(name, lambda i, at, value: "café".encode(mark) if at == TEXT[name] else value, tmp_path)
    assert set(stored(tmp_path)[0]) == {"café"} | ({"animal"} if name == "stamps" else set())


@pytest.mark.parametrize("name", [name for name in BUILD if name not in ("img2dataset", "stamps")])
def test_a_whole_file_with_a_byte_order_mark_is_read(name: str, folders: Folders, tmp_path: Path) -> None:
    files = {file: b"\xef\xbb\xbf" + data for file, data in BUILD[name][1](right).items()}
    config = folders.texts(name, files)
    counts = write_shards(open_rows(config), tmp_path, config, lambda seen: None)
    assert (counts["used"], counts.get("bad_questions", 0)) == (COUNT, 0)
    assert not any("\ufeff" in text for text in stored(tmp_path)[0])


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "Latin-1": lambda data: data.replace(b"dog" if b"dog" in data else b"what", b"d\xf6g", 1),
    "a cut letter": lambda data: data + b"\xc3",
}


@pytest.mark.parametrize("name", [name for name in BUILD if name not in TEXT])
@pytest.mark.parametrize("wrong", list(BROKEN))
def test_a_file_in_another_encoding_is_refused_and_the_way_out_leads_out(
    name: str, wrong: str, folders: Folders
) -> None:
    file, good = next(iter(BUILD[name][1](right).items()))
    broken = BROKEN[wrong](good)
    place = next(at for at in range(len(broken)) if broken[at] > 127)
    way_out = f"{file} is (not UTF-8|no complete JSON in UTF-8) .*at byte {place}.*(save it as|write) UTF-8"
    with pytest.raises(InputError, match=way_out):
        list(open_rows(folders.texts(name, BUILD[name][1](right) | {file: broken})))
    saved = broken.decode("latin-1") if wrong == "Latin-1" else broken.decode(errors="ignore")
    assert len(list(open_rows(folders.texts(name, {file: saved.encode()})))) >= COUNT


@pytest.mark.parametrize("name", [name for name in BUILD if name not in TEXT])
def test_utf_16_with_a_mark_is_read_or_refused(name: str, folders: Folders) -> None:
    file, good = next(iter(BUILD[name][1](right).items()))
    config = folders.texts(name, BUILD[name][1](right) | {file: good.decode().encode("utf-16")})
    if file.endswith(".json"):  # as large as gigabytes, read piece by piece
        with pytest.raises(InputError, match=f"{file} is UTF-16: save it as UTF-8"):
            list(open_rows(config))
        folders.texts(name, {file: good})
    assert len(list(open_rows(config))) >= COUNT


def test_nan_in_json_is_refused_with_a_way_out(folders: Folders) -> None:
    files = coco_official(lambda i, at, value: 99.5 if at == "caption" else value)
    file = next(iter(files))
    with pytest.raises(InputError, match=r"is no complete JSON in UTF-8 \(.*null in place of NaN"):
        list(open_rows(folders.texts("coco", files | {file: files[file].replace(b"99.5", b"NaN")})))
    null = folders.texts("coco", files | {file: files[file].replace(b"99.5", b"null")})
    assert len(list(open_rows(null))) >= COUNT
