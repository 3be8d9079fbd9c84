"""Files of one record a line: what is one bad record, and that none is held longer than it is used."""

import json
import tracemalloc
from io import BufferedReader, BytesIO
from pathlib import Path

import pytest
from peak import peak_of

from cmapkd_core.data import tables
from cmapkd_core.data.annotations import json_items
from cmapkd_core.data.shallow import DEEPEST, Shallow
from cmapkd_core.data.tables import byte_lines, csv_records, json_records
from cmapkd_core.data.texts import BadValueError
from cmapkd_core.errors import InputError


def test_a_line_too_long_to_hold_is_one_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_LINE", 64)
    for name, read in (("a.jsonl", json_records), ("a.csv", lambda url: csv_records(url, lambda columns: None))):
        rows = ['{"key": "a"}', "x" * 200, '{"key": "b"}'] if name == "a.jsonl" else ["key", "a", "x" * 200, "b"]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        found = [record for _, record in read(str(tmp_path / name))]
        assert [str(record) for record in found if isinstance(record, BadValueError)] == [
            "the line has 201 bytes, more than 64"
        ]
        assert [record["key"] for record in found if isinstance(record, dict)] == ["a", "b"]
    assert [len(line) for line in byte_lines(BufferedReader(BytesIO(b"x" * 63 + b"\n" + b"y" * 10)))] == [64, 10]  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_records_are_read_and_not_held(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"captions.{suffix}"
    with open(file, "w") as out:
        out.write("key,caption\n" if suffix == "csv" else "")
        for i in range(40_000):
            said = {"key": f"{i}", "caption": "a dog " * 20}
            out.write((json.dumps(said) if suffix == "jsonl" else ",".join(said.values())) + "\n")
    tracemalloc.start()
    records = json_records(str(file)) if suffix == "jsonl" else csv_records(str(file), lambda columns: None)
    assert sum(1 for _ in records) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < file.stat().st_size / 10


def shallow(data: bytes, size: int) -> bytes:
    file = Shallow(BytesIO(data))
    return b"".join(iter(lambda: file.read(size), b""))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 100_000])
def test_only_what_is_too_deep_is_cut_out_of_json(size: int) -> None:
    texts = ["[" * 100, '\\"[{', "\\" * 3, "}]\\", '"', ""]
    plain = json.dumps([{"a": [text, {text: 1}]} for text in texts]).encode()
    assert shallow(plain, size) == plain
    deep = b'{"x": ' * (DEEPEST + 50) + b'"\\"]}"' + b"}" * (DEEPEST + 50)
    mixed = b'[{"a": 1}, ' + deep + b', "b", ' + b"[ " * 200 + b"]" * 200 + b', {"c": "d"}]'
    cut = shallow(mixed, size)
    assert len(cut) == len(mixed)
    first, nested, word, lists, last = json.loads(cut)
    assert (first, word, last) == ({"a": 1}, "b", {"c": "d"})
    for value in (nested, lists):
        for _ in range(DEEPEST - 1):
            value = value["x"] if isinstance(value, dict) else value[0]
        assert value == 0
    just = b"[" * DEEPEST + b"]" * DEEPEST
    assert shallow(just, size) == just


def test_a_deep_value_takes_no_memory(tmp_path: Path) -> None:
    """Twenty thousand brackets took 1.2 GB, a hundred thousand all there was."""
    (tmp_path / "deep.json").write_bytes(b'{"a": [1, ' + b"[" * 100_000 + b"]" * 100_000 + b", 2]}")
    found: list[object] = []
    assert peak_of(lambda: found.extend(json_items(str(tmp_path / "deep.json"), "a.item"))) < 20 * 2**20
    one, deep, two = found
    assert (one, two, isinstance(deep, list)) == (1, 2, True)


def records(file: Path, content: bytes) -> list[object]:
    file.write_bytes(content)
    return [record for _, record in csv_records(str(file), lambda columns: None)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_a_table_has_the_same_lines_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    said = "a\u2028dog\x85and\x0ba\x0ccat\u2029"
    assert records(tmp_path / "a.csv", f"key,caption\r\nx,{said}\r\ny,b\n".encode(encoding)) == [
        {"key": "x", "caption": said},
        {"key": "y", "caption": "b"},
    ]
    (tmp_path / "a.jsonl").write_bytes('{"caption": "a\u2028b"}\n{"caption": "c"}'.encode(encoding))
    assert list(json_records(str(tmp_path / "a.jsonl"))) == [(1, {"caption": "a\u2028b"}), (2, {"caption": "c"})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_whose_lines_end_with_carriage_returns_is_read(encoding: str, tmp_path: Path) -> None:
    """Excel's "CSV (Macintosh)", also one larger than what its line ends are told by."""
    rows = [(f"{i}", f"a dog, {i}") for i in range(1000)]
    text = "key,caption\r" + "".join(f'{key},"{said}"\r' for key, said in rows)
    assert records(tmp_path / "a.csv", text.encode(encoding)) == [{"key": key, "caption": said} for key, said in rows]
    if encoding == "utf-8":
        with pytest.raises(InputError, match=r"a\.csv is not UTF-8 \(invalid start byte at byte 18, line 3\)"):
            records(tmp_path / "a.csv", b"key,caption\rx,y\ra,\xff\rb,c\r")


@pytest.mark.parametrize(
    ("begins", "text"), [(1, 'key,"cap\nx,y\n'), (5, 'key,cap\nx,"y\nz"\n\na,"b\nc,d\n' + "e,f\n" * 9)]
)
def test_an_open_quote_is_named_by_the_line_where_its_record_begins(begins: int, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"a\.csv, line {begins}: unexpected end of data: mend the quoting"):
        records(tmp_path / "a.csv", text.encode())


def test_records_of_another_length_and_empty_lines(tmp_path: Path) -> None:
    assert records(tmp_path / "a.csv", b"key,cap\n\nx\n\nx,y,z,w\n") == [
        {"key": "x", "cap": None},
        {"key": "x", "cap": "y", None: ["z", "w"]},
    ]
