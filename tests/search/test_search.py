"""Searching a folder with a tiny exported student: order, cache, what is left out, the page and its server."""

import http.client
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from cmapkd import search
from cmapkd.searching import MOST
from cmapkd.searching.page_server import serve
from cmapkd_core import storage
from cmapkd_core.config import ModelConfig
from cmapkd_core.export import open_clip_folder
from cmapkd_core.models.build import build
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.execute import execute

QUERY = "a red mug"
NASTY = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module", autouse=True)
def _one():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders in open_clip's form, as stage export writes them: (a student's, a teacher's)."""
    root = tmp_path_factory.mktemp("models")
    for name in ("tiny-student", "tiny-teacher"):
        open_clip_folder.write(build(ModelConfig(name, "random"), 0, root), root / name / "open_clip")
    return root / "tiny-student", root / "tiny-teacher"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Nine pictures of smooth noise, one in a subfolder, one with a name that is HTML, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    (folder / "sub").mkdir()
    names = [*(f"{i}.png" for i in range(6)), "sub/a.jpg", "sub/b.bmp", NASTY]
    for name in names:
        noise = Image.fromarray(random.integers(0, 255, (3, 3, 3), dtype=np.uint8))
        noise.resize((64, 64)).save(folder / name, quality=95)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def pictures(made, tmp_path):
    return shutil.copytree(made, tmp_path / "pictures")


@pytest.fixture
def searched(models, pictures, tmp_path, capsys):
    """`searched(*words)`: what the command prints for the student and the pictures."""

    def run(*words, code=0, folder=pictures):
        assert search.main([str(models[0]), str(folder), *words, "--cache", str(tmp_path / "cache")]) == code
        told = capsys.readouterr()
        return told.err if code else told.out

    return run


def ranked(text):
    """[(score, path)] of the first table."""
    return [(float(s), p) for s, p in re.findall(r"^ +\d+ +(-?[\d.]+)  (.+)$", text, re.MULTILINE)]


def test_the_order_is_that_of_open_clip_by_hand(models, pictures, searched):
    place = f"local-dir:{models[0] / 'open_clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    files = sorted(path for path in pictures.rglob("*") if path.suffix in (".png", ".jpg", ".bmp"))
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
        text = open_clip.get_tokenizer(place)([QUERY])
        cosines = model.eval().encode_image(images, normalize=True) @ model.encode_text(text, normalize=True)[0]
    byhand = sorted(zip(cosines.tolist(), (str(f.relative_to(pictures)) for f in files), strict=True), reverse=True)
    found = ranked(searched(*QUERY.split(), "--top", "9"))
    assert [path for _, path in found] == [path for _, path in byhand]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in byhand], abs=6e-4)


def test_only_what_is_new_is_embedded(pictures, searched):
    assert "9 pictures embedded, 0 from the cache" in searched(QUERY)
    first = searched(QUERY)
    assert "0 pictures embedded, 9 from the cache" in first
    Image.new("RGB", (40, 40), "red").save(pictures / "0.png")
    os.utime(pictures / "0.png", ns=(1, 1))
    (pictures / "1.png").unlink()
    assert "1 pictures embedded, 7 from the cache" in searched(QUERY)
    assert ranked(searched("--like", str(pictures / "0.png")))[0] == (1.0, "0.png")


def test_a_second_model_that_is_none_is_said_before_anything_is_embedded(searched, tmp_path):
    assert "did you mean 'ViT-B-16'" in searched(QUERY, "--teacher", "ViT-B-61:openai", code=2)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_read_is_made_anew(searched, tmp_path):
    searched(QUERY)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(b"no safetensors")
    told = searched(QUERY)
    assert "cannot be used" in told
    assert "9 pictures embedded" in told
    assert "9 from the cache" in searched(QUERY)


def test_a_broken_picture_is_named_and_left_out(pictures, searched):
    (pictures / "cut.png").write_bytes((pictures / "2.png").read_bytes()[:60])
    (pictures / "odd.gif").write_bytes(b"no GIF")
    told = searched(QUERY)
    assert "2 of 11 pictures cannot be read and are left out:\n  cut.png: the PNG cannot be read" in told
    assert "  odd.gif: it is of no format that Pillow reads" in told
    assert "other files, no pictures by their names: 1" in told
    assert len(ranked(told)) == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a query"),
        ((QUERY, "--like", "x.png"), "one of them"),
        ((" ",), "one of them"),
        (("--like", "missing.png"), "missing.png: the file cannot be read: No such file"),
        ((QUERY, "--teacher", "its-own"), "does not say which teacher"),
        ((QUERY, "--teacher", "ViT-B-32"), "names no weights"),
        ((QUERY, "--teacher", "no/such/folder"), "give an export's folder"),
    ],
)
def test_bad_input_names_the_way_out(words, said, searched):
    assert said in searched(*words, code=2)


def test_the_most_pictures_are_named_before_they_are_refused(capsys):
    assert f"how many pictures, 1 to {MOST}; default: 5" in " ".join(search.parser().format_help().split())
    page = (Path(__file__).parents[2] / "docs/howto/search.md").read_text()
    assert f"how many pictures, 1 to {MOST}; 5 where" in page
    with pytest.raises(SystemExit):
        search.parser().parse_args(["model", "folder", "x", "--top", str(MOST + 1)])
    assert f"a number from 1 to {MOST}" in capsys.readouterr().err


def test_a_folder_without_pictures(searched, tmp_path):
    assert "is no folder" in searched(QUERY, code=2, folder=tmp_path / "none")
    assert "is no folder: give a folder with pictures\n" in searched(QUERY, code=2, folder=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no picture" in searched(QUERY, code=2, folder=tmp_path / "empty")


def test_the_page_as_one_file(searched, tmp_path):
    told = searched("<script>alert(1)</script>", "--top", "9", "--html", str(tmp_path / "out.html"))
    text = (tmp_path / "out.html").read_text()
    assert text.count('src="data:image/jpeg;base64,') == 9
    assert not re.search(r"<script|<img src=x|https?://", text)
    assert [path for _, path in ranked(told)] == [
        path.replace("&lt;", "<").replace("&gt;", ">") for path in re.findall(r'class="path">([^\n]+)</div>', text)
    ]


# ---- what a run has made -------------------------------------------------------------------------


@pytest.fixture
def on_s3(models, tiny_shards, s3_root):
    """URLs of a student's export and of prepared data in a bucket."""
    for name in storage.list_files(tiny_shards):
        storage.put(Path(tiny_shards, name), storage.join(s3_root, "prepare", "0", name))

    def export(context):
        shutil.copytree(models[0], context.out, dirs_exist_ok=True)
        return {}

    url = storage.join(s3_root, "export", "0")
    execute(Request("tiny", s3_root), "export", url=url, fields={}, inputs={}, body=export)
    return url, storage.join(s3_root, "prepare", "0")


def test_a_student_and_pictures_in_a_bucket(on_s3, models, tiny_shards, tmp_path, capsys):
    def told(*words, code=0):
        assert search.main([*words, "--cache", str(tmp_path / "cache"), "--top", "3"]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    here = told(str(models[0]), tiny_shards, QUERY)
    there = told(*on_s3, QUERY)
    assert ranked(there) == ranked(here)
    shards = open_shards(Artifact.open(tiny_shards))
    (split, key, caption), *_ = re.findall(r"(train|val|test)/(\S+)  (.+)$", there, re.MULTILINE)
    assert caption == shards.captions(split, shards.keys(split).index(key))[0]
    export, data = on_s3
    files = Artifact.open(export).file_url("open_clip/open_clip_config.json").rpartition("/")[0]
    assert "0 pictures embedded" in told(files, data, QUERY)  # the same model, by its folder in the export
    root = export.rpartition("/export")[0]
    high = told(export, root, QUERY, code=2)
    assert "is no prepared data set: give one (ROOT/prepare/KEY" in high
    assert high.endswith(f"; below it are {data}\n")
    assert (
        f"{root} has no manifest.json and no open_clip_config.json, so no model is there: below it are {export}"
        in told(root, data, QUERY, code=2)
    )
    assert "so it is no data set" in told(export, export, QUERY, code=2)


def test_a_root_of_runs_is_searched_and_said_to_be_one(tiny_shards, pictures, searched):
    """Its pictures are the figures of reports."""
    assert "root of runs" not in searched(QUERY)
    made = Path(shutil.copytree(tiny_shards, pictures / "prepare" / "0"))
    told = searched(QUERY)
    assert f"{pictures} is a root of runs, so it has figures of reports; below it are {made}, with" in told
    assert len(ranked(told)) == 5


def test_a_damaged_picture_of_a_data_set_is_left_out(tiny_shards, models, tmp_path, capsys):
    made = Path(shutil.copytree(tiny_shards, tmp_path / "data"))
    shards = open_shards(Artifact.open(str(made)))
    line = shards.table("test").slice(0, 1).to_pylist()[0]
    with (Path(shards.url) / line["shard"]).open("r+b") as file:
        file.seek(line["image_offset"] + 9)
        file.write(b"damage")
    assert search.main([str(models[0]), str(made), QUERY, "--cache", str(tmp_path / "cache")]) == 0
    assert f"test/{line['key']}: its bytes in {line['shard']} are damaged" in capsys.readouterr().out


# ---- the server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port(models, made, tmp_path_factory):
    """Of a server with student and teacher."""
    cache = str(tmp_path_factory.mktemp("cache"))
    args = search.parser().parse_args(
        [str(models[0]), str(made), "--teacher", str(models[1]), "--serve=0", "--cache", cache]
    )
    with serve(search._sides(args), args.host, args.serve, 3) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, response.headers


def asked(port, query):
    status, body, _ = get(port, f"/search.json?{query}")
    return status, json.loads(body)


def test_both_sides_answer_and_what_they_agree_on(port):
    status, told = asked(port, "q=a+red+mug&top=4")
    assert status == 200
    assert [side["role"] for side in told["sides"]] == ["student", "teacher"]
    numbers = [{found["number"] for found in side["found"]} for side in told["sides"]]
    assert [len(found) for found in numbers] == [4, 4]
    assert set(told["both"]) == numbers[0] & numbers[1]
    assert all(sorted(s, reverse=True) == s for s in ([f["score"] for f in side["found"]] for side in told["sides"]))
    page = get(port, "/?q=a+red+mug&top=4")[1].decode()
    assert page.count('<li class="both">') == 2 * len(told["both"])
    assert f"{len(told['both'])} of 4 pictures are among the nearest of both" in page


def test_a_picture_is_nearest_to_itself(port):
    _, told = asked(port, "like=3")
    assert [len(side["found"]) for side in told["sides"]] == [3, 3]
    assert [side["found"][0]["number"] for side in told["sides"]] == [3, 3]
    assert told["sides"][0]["found"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_words_of_others_are_shown_and_not_obeyed(port):
    text = get(port, "/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&top=100")[1].decode()
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;img src=x onerror" in text
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "default-src 'none'" in get(port, "/")[2]["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/thumbnail/../../../../etc/passwd",
        "/thumbnail/..%2f..%2fetc%2fpasswd",
        "/thumbnail//etc/passwd",
        "/thumbnail/notes.txt",
        "/thumbnail/9",
        "/thumbnail/-1",
        "/notes.txt",
        "/../notes.txt",
    ],
)
def test_only_pictures_of_the_folder_are_served(port, path):
    status, body, _ = get(port, path)
    assert status == 404
    assert b"root:" not in body


def test_a_thumbnail_is_a_picture(port):
    status, body, headers = get(port, "/thumbnail/0")
    assert (status, headers["Content-Type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")


@pytest.mark.parametrize(
    "query", ["q=a&top=0", "q=a&top=x", "q=a&top=101", "like=9", "like=-1", "a=1&" * 11, f"q={'a' * 1001}"]
)
def test_a_query_out_of_bounds_is_refused_with_them(port, query):
    status, told = asked(port, query)
    assert status == 400
    assert told["error"]
    assert get(port, f"/?{query}")[0] == 400


def test_another_site_cannot_ask_by_its_own_name(port):
    assert get(port, "/", Host=f"evil.example:{port}")[0] == 403
    assert get(port, "/", Host=f"localhost:{port}")[0] == 200


def test_the_page_in_a_browser_shows_the_nearest_first(port, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on PATH")
    _, told = asked(port, "q=a+red+mug")
    url = f"http://127.0.0.1:{port}/?q=a+red+mug"
    alone = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}")
    done = subprocess.run(
        [chromium, *alone, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    )
    sides = re.findall(r'data-side="(\w+)">(.*?)</section>', done.stdout, re.DOTALL)
    first = {role: int(re.search(r'src="/thumbnail/(\d+)"', text)[1]) for role, text in sides}
    assert first == {side["role"]: side["found"][0]["number"] for side in told["sides"]}
