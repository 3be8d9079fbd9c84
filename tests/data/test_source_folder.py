import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from refused_user import refused

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data import files
from cmapkd_core.data.rows import BadRow, LazyRow, Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.errors import InputError
from cmapkd_core.storage import StorageError

Make = Callable[..., bytes]


def read(url: Path | str) -> list[Row | BadRow]:
    rows = open_rows(DataConfig(source="folder", url=str(url)))
    return [row.load() if isinstance(row, LazyRow) else row for row in rows]


@pytest.fixture
def folder(tmp_path: Path, picture: Make) -> Path:
    """Three pictures, a.png, b.jpg and sub/c.webp, without a captions file."""
    (tmp_path / "sub").mkdir()
    for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("sub/c.webp", "WEBP")):
        (tmp_path / name).write_bytes(picture(kind=kind))
    return tmp_path


def jsonl(folder: Path, *records: object) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def reason(folder: Path, record: object) -> str:
    """Why a captions file with this record, behind a good one, has no row for it."""
    jsonl(folder, record, {"key": "good", "file": "b.jpg", "caption": "good"})
    bad, _ = read(folder)
    assert isinstance(bad, BadRow)
    return f"{bad.key}: {bad.reason}"


def test_jsonl_with_all_columns(folder: Path) -> None:
    jsonl(
        folder,
        {"key": "a", "file": "a.png", "caption": "a red thing", "class": "thing", "split": "test"},
        {"key": "b", "file": "b.jpg", "captions": ["one", "two"]},
        "",
        {"key": 3, "file": "sub/c.webp", "caption": "three"},
    )
    image = {name: (folder / name).read_bytes() for name in ("a.png", "b.jpg", "sub/c.webp")}
    assert read(folder) == [
        Row("a", image["a.png"], ("a red thing",), "thing", split="test"),
        Row("b", image["b.jpg"], ("one", "two")),
        Row("3", image["sub/c.webp"], ("three",)),
    ]


def test_csv_with_quotes_lists_and_repeated_rows(folder: Path) -> None:
    (folder / "captions.csv").write_text(
        "\ufeffkey,file,captions,class,split\r\n"
        'a,a.png,"a red, ""plain"" thing",,\r\n'
        'b,b.jpg,"[""one"", ""two""]",thing,train\r\n'
        "b,b.jpg,three,thing,train\r\n"
        "c,sub/c.webp,[sic] a bracket,,\r\n",
        encoding="utf-8",
        newline="",
    )
    rows = [(row.key, row.captions, row.class_name, row.split) for row in read(folder) if isinstance(row, Row)]
    assert rows == [
        ("a", ('a red, "plain" thing',), "", ""),
        ("b", ("one", "two", "three"), "thing", "train"),
        ("c", ("[sic] a bracket",), "", ""),
    ]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"key": "a", "file": "a.png"}, "a (line 1): caption is missing or empty"),
        ({"key": "a", "file": "a.png", "caption": "  "}, "caption is missing or empty"),
        ({"key": "a", "file": "a.png", "captions": ["x", ""]}, "caption 2 of 2 is missing or empty"),
        ({"key": "a", "file": "a.png", "captions": {"en": "x"}}, "caption is no text: {'en': 'x'}"),
        ({"key": "a", "file": "a.png", "caption": 7}, "caption is no text: 7"),
        ({"file": "a.png", "caption": "x"}, "(no key) (line 1): key is missing or empty"),
        ({"key": "a", "caption": "x"}, "file is missing or empty"),
        ({"key": ["a"], "file": "a.png", "caption": "x"}, "key is no text"),
        ({"key": "a", "file": "a.png", "caption": "x", "split": "dev"}, "split 'dev' is none of train, val, test"),
        ({"key": "a", "file": "z.png", "caption": "x"}, "a: file z.png is not there"),
        ({"key": "a", "file": "sub", "caption": "x"}, "file sub is no regular file"),
        ({"key": "a", "file": "../a.png", "caption": "x"}, "leaves the folder"),
        ({"key": "a", "file": "/etc/passwd", "caption": "x"}, "leaves the folder"),
        ({"key": "a", "file": "s3://b/k", "caption": "x"}, "leaves the folder"),
        ('{"key": "a", "file": ', "(line 1): no JSON"),
        ('["a", "a.png"]', "(line 1): no JSON object"),
        ('{"key": "a", "key": "b"}', "(line 1): key stands twice in it"),
        ("[" * 100_000, "(line 1): no JSON: "),
        ({"key": "a", "file": "a\0.png", "caption": "x"}, "file has the control character U+0000"),
        ({"key": "a", "file": "é" * 200, "caption": "x"}, "is no name of a file below the folder"),
        ({"key": True, "file": "a.png", "caption": "x"}, "key is no text: True"),
        ({"key": None, "file": "a.png", "caption": "x"}, "(no key) (line 1): key is missing or empty"),
        ({"key": "a", "file": "a.png", "caption": "x", "class": ["mug"]}, "class is no text: ['mug']"),
        ({"key": "a", "file": "a.png", "caption": None}, "caption is missing or empty"),
    ],
)
def test_a_bad_record_is_named_with_its_reason(folder: Path, record: object, words: str) -> None:
    assert words in reason(folder, record)


def test_a_file_that_is_called_like_a_login_is_a_file(folder: Path) -> None:
    (folder / "a.png").rename(folder / "photo.jpg?key=1")
    jsonl(
        folder,
        {"key": "a", "file": "photo.jpg?key=1", "caption": "x"},
        {"key": "b", "file": "x?token=2", "caption": "y"},
    )
    there, absent = read(folder)
    assert isinstance(there, Row)
    assert absent == BadRow("b", "file x?token=2 is not there")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_one_json_list_is_read_as_its_entries(
    folder: Path, indent: int | None, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"file": "a.png", "captions": ["one", "two"]}, "no object", {"file_name": "x"}, {"file": "b.jpg"}]
    entries[3] |= {"caption": "three"}
    (folder / "captions.jsonl").write_text(json.dumps(entries, indent=indent), encoding=encoding)
    first, word, other, last = read(folder)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert (first.captions, last.key, last.captions) == (("one", "two"), "b.jpg", ("three",))
    assert word == BadRow("(line 2)", "no JSON object")
    assert isinstance(other, BadRow)
    assert "captions.jsonl is one JSON list: its entries are counted as lines" in caplog.text


@pytest.mark.parametrize("left", ['[\n {"file": "a.png", "caption": "x"},\n {"file": ', '[{"file": "a.png"}]\n[{}]'])
def test_a_json_list_that_is_cut_off_or_empty_is_refused(folder: Path, left: str) -> None:
    (folder / "captions.jsonl").write_text(left)
    with pytest.raises(
        InputError, match=r"captions\.jsonl (is no complete JSON in UTF-8|has no list, or nothing in it)"
    ):
        read(folder)


def test_a_key_with_two_files_is_a_duplicate(folder: Path) -> None:
    jsonl(
        folder,
        {"key": "a", "file": "a.png", "caption": "x"},
        {"key": "a", "file": "b.jpg", "caption": "y"},
    )
    row, bad = read(folder)
    assert bad == BadRow("a (line 2)", "duplicate key: line 1 has it with another file, class or split")
    assert isinstance(row, Row)
    assert row.captions == ("x",)


def test_links_out_of_the_folder_and_pipes_are_not_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("outside") / "secret.png"
    secret.write_bytes(b"secret")
    (folder / "link.png").symlink_to(secret)
    os.mkfifo(folder / "pipe.png")
    assert "a link that leads out of" in reason(folder, {"key": "a", "file": "link.png", "caption": "x"})
    assert "no regular file" in reason(folder, {"key": "a", "file": "pipe.png", "caption": "x"})


def test_links_that_lead_nowhere_are_of_no_matter_to_others(folder: Path) -> None:
    """To itself, to nothing, below a file, of a folder: the listing leaves them out, the row that names one is bad."""
    for name, target in (("loop.png", "loop.png"), ("gone.png", "nothing"), ("under.png", "a.png/x"), ("sub/l", "l")):
        (folder / name).symlink_to(target)
    files = ("loop.png", "gone.png", "under.png", "a.png")
    jsonl(folder, *({"key": file, "file": file, "caption": "x"} for file in files))
    assert sorted(storage.entries(str(folder))) == ["a.png", "b.jpg", "captions.jsonl", "sub/c.webp"]
    assert storage.entries(str(folder / "loop.png")) == {}
    *bad, row = read(folder)
    assert [one.reason for one in bad] == [f"file {file} is not there" for file in files[:3]]
    assert isinstance(row, Row)


def test_one_broken_line_of_a_csv_is_one_bad_row(folder: Path) -> None:
    long = "x" * 10_000_000
    lines = ["key,file,caption", 'a,a.png,"a "quoted" dog"', "b,b.jpg,y", f"d,sub/c.webp,{long}", 'c,a.png,"open']
    (folder / "captions.csv").write_text("\n".join(lines))
    bad = [row.reason for row in read(folder) if isinstance(row, BadRow)]
    assert [words.partition(":")[0] for words in bad] == [
        "',' expected after '\"'",
        "caption has 10000000 signs, more than 20000",
        "unexpected end of data",
    ]
    assert [row.key for row in read(folder) if isinstance(row, Row)] == ["b"]


def test_a_csv_line_of_another_length_is_bad(folder: Path) -> None:
    (folder / "captions.csv").write_text("key,file,caption\na,a.png,x\nb,b.jpg\nc,sub/c.webp,y,z\n")
    bad = [row for row in read(folder) if isinstance(row, BadRow)]
    assert [row.key for row in bad] == ["b (line 3)", "c (line 4)"]
    assert all("not 3 columns" in row.reason for row in bad)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "labels.csv",
            b"",
            r"has no captions\.jsonl and none of .*; it has a\.png, b\.jpg, labels\.csv, sub/c\.webp. Where "
            r"labels\.csv has the captions, move it there .* such as \{\"file\": ",
        ),
        (
            "captions.csv",
            b"picture,text\na.png,x\n",
            "no field for the picture's file; it has picture, text. Name it file",
        ),
        (
            "captions.jsonl",
            b'{"file": "a.png", "words": "x"}',
            "no field for its captions; it has file, words. Name it cap",
        ),
        (
            "captions.jsonl",
            b'{"path": "a.png", "text": "x", "title": "y"}',
            "has text and title: rename the one .* to cap",
        ),
        ("captions.csv", b"", "it has none"),
        (
            "captions.csv",
            b'key,file,caption\na,a.png,"x\nb,b.jpg,y\n',
            "line 2: unexpected end of data: mend the quoting of the record there",
        ),
        ("captions.jsonl", b'{"key": "\xff"}', "not UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(folder)


def test_two_captions_files_and_no_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    jsonl(folder, {"key": "a", "file": "a.png", "caption": "x"})
    (folder / "captions.csv").write_text("key,file,caption\n")
    with pytest.raises(InputError, match="keep one"):
        read(folder)
    with pytest.raises(InputError, match=r"there is no folder .*/supp: did you mean .*/sub\?"):
        read(tmp_path / "supp")
    with pytest.raises(InputError, match="is a file: name the folder in which it lies"):
        read(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"needs data\.url"):
        read("")


OTHER_SPELLINGS = {
    "Hugging Face": (
        "metadata.jsonl",
        '{"file_name": "a.png", "text": "one"}\n{"file_name": "sub/c.webp", "text": "two"}',
    ),
    "open_clip": ("captions.tsv", "filepath\ttitle\na.png\tone\nsub/c.webp\ttwo\n"),
    "tabs in a csv": ("captions.csv", "image\tcaption\na.png\tone\nsub/c.webp\ttwo\n"),
    "Excel": ("captions.csv", "filename;captions\na.png;one\nsub/c.webp;two\n"),
}


@pytest.mark.parametrize("spelling", OTHER_SPELLINGS)
def test_other_tools_names_are_taken_and_said(
    folder: Path, s3_root: str, caplog: pytest.LogCaptureFixture, spelling: str
) -> None:
    name, content = OTHER_SPELLINGS[spelling]
    (folder / name).write_text(content)
    rows = read(folder)
    assert [(row.key, row.captions) for row in rows if isinstance(row, Row)] == [
        ("a.png", ("one",)),
        ("sub/c.webp", ("two",)),
    ]
    assert [record.getMessage().count(" is the file") for record in caplog.records] == [1]
    for path in folder.rglob("*.*"):
        storage.put(path, storage.join(s3_root, path.relative_to(folder).as_posix()))
    assert read(s3_root) == rows


def test_our_names_and_files_win_over_others(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "metadata.csv").write_text("what,ever\n")
    jsonl(folder, {"key": "a", "file": "a.png", "path": "/else/where", "captions": ["one"], "title": "Untitled"})
    (row,) = read(folder)
    assert isinstance(row, Row)
    assert (row.key, row.captions) == ("a", ("one",))
    assert not caplog.records


def test_what_lies_in_place_of_a_captions_file_on_s3_is_said(s3_root: str) -> None:
    for name in ("a.png", "train.csv"):
        storage.write_bytes(storage.join(s3_root, name), b"x")
    with pytest.raises(InputError, match=r"has no captions\.jsonl.* it has a\.png, train\.csv. Where train\.csv has"):
        read(s3_root)


def test_rows_keep_the_order_of_the_file_and_their_number(folder: Path) -> None:
    count = 100
    jsonl(folder, *({"key": f"k{i}", "file": "a.png" if i % 3 else "z.png", "caption": f"c{i}"} for i in range(count)))
    rows = read(folder)
    assert [row.key for row in rows] == [f"k{i}" for i in range(count)]
    assert [isinstance(row, BadRow) for row in rows] == [i % 3 == 0 for i in range(count)]


def test_bad_lines_stand_where_the_file_has_them(folder: Path) -> None:
    good = {"file": "a.png", "caption": "x"}
    jsonl(
        folder, good | {"key": "a"}, good | {"key": "b", "caption": ""}, good | {"key": "c"}, "{", good | {"key": "d"}
    )
    assert [row.key for row in read(folder)] == ["a", "b (line 2)", "c", "(line 4)", "d"]
    limited = list(open_rows(DataConfig(source="folder", url=str(folder), size=3)))
    assert [row.key for row in limited] == ["a", "b (line 2)", "c"]


def test_a_csv_of_pandas(folder: Path) -> None:
    """Lists as Python spells them, with NumPy's blanks between them or cut off; None and nan."""
    (folder / "captions.csv").write_text(
        "key,file,captions,class\n"
        'a,a.png,"[\'a red, plain thing\', ""it\'s red""]","red\n toy"\n'
        "b,b.jpg,\"['one' 'two']\",None\n"
        "c,sub/c.webp,nan,thing\n"
        "d,a.png,None,thing\n"
        "e,a.png,\"['one', 'tw\",thing\n"
        "f,a.png,\"['one', None]\",thing\n"
    )
    a, b, *bad = read(folder)
    assert [(row.captions, row.class_name) for row in (a, b) if isinstance(row, Row)] == [
        (("a red, plain thing", "it's red"), "red toy"),
        (("one", "two"), ""),
    ]
    assert [row.reason for row in bad if isinstance(row, BadRow)] == [
        "caption is missing or empty: it is the word nan",
        "caption is missing or empty: it is the word None",
        "caption begins like a list of texts and cannot be read as one: ['one', 'tw",
        "caption 2 of 2 is missing or empty",
    ]


def test_caption_and_captions_are_all_captions(folder: Path) -> None:
    jsonl(
        folder,
        {"key": "a", "file": "a.png", "caption": "one", "captions": ["two", "one"]},
        {"key": "b", "file": "b.jpg", "caption": "one", "captions": None},
        {"key": "c", "file": "b.jpg", "caption": "one", "captions": []},
    )
    assert [row.captions for row in read(folder) if isinstance(row, Row)] == [("two", "one", "one"), ("one",), ("one",)]


def test_what_is_said_of_a_captions_file_leads_out(folder: Path) -> None:
    file = folder / "captions.csv"
    file.write_bytes("key,file,caption\na,a.png,café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8 \(.* at byte \d+, line 2\): save it as UTF-8"):
        read(folder)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        file.write_text("key,file,caption\na,a.png,café\n", encoding=encoding)
        assert [(row.key, row.captions) for row in read(folder) if isinstance(row, Row)] == [("a", ("café",))]
    file.write_text("key,file,caption,caption\na,a.png,one,two\n")
    with pytest.raises(InputError, match="has the column caption twice: rename one, or put all captions into one"):
        read(folder)
    file.write_text("key,file,captions\na,a.png,\"['one', 'two']\"\n")
    (row,) = read(folder)
    assert isinstance(row, Row)
    assert row.captions == ("one", "two")


def test_a_folder_on_s3_gives_the_same_rows(folder: Path, s3_root: str, prepare: Callable[..., ShardSet]) -> None:
    jsonl(
        folder,
        {"key": "a", "file": "a.png", "caption": "one", "split": "train"},
        {"key": "c", "file": "sub/c.webp", "caption": "three", "split": "test"},
        {"key": "z", "file": "z.png", "caption": "lost"},
    )
    for path in folder.rglob("*.*"):
        storage.put(path, storage.join(s3_root, path.relative_to(folder).as_posix()))
    far = read(s3_root)
    assert far == read(folder)
    shards = prepare(far, quarantine_bound=0.5)
    assert (shards.keys("train"), shards.keys("test")) == (["a"], ["c"])


def test_a_captions_file_that_may_not_be_read_is_no_traceback(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text("{}")
    said = "cannot read .*captions.jsonl: Permission denied; give this user the right to read it, and to enter the fold"
    with refused(file), pytest.raises(StorageError, match=said), files.opened(str(file)):
        pass
    with pytest.raises(InputError, match="none.jsonl is not there"), files.opened(str(tmp_path / "none.jsonl")):
        pass
