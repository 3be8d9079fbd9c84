"""Lines of Python that use an exported student, to be pasted as they stand; what they read of its folder.

One place for the card (run beside the folders), the report and the end of a local run (with the folder's whole path).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd_core.commands import PYTHON

OPEN_CLIP, ONNX = "open_clip", "onnx"  # folders of an export
CONFIG, TEXT_FOLDER = "open_clip_config.json", "text"  # in the first one
HERE = "student"  # where an export on S3 is copied to


@dataclass(frozen=True)
class StudentUse:
    """An exported student. folder, card: URLs. text_cfg: of its open_clip config. reason: why open_clip cannot have it.

    copy: a command for the shell that brings it onto this machine; "" where it is there. search: one that searches the
    run's pictures with it; "" where the caller knows no pictures.
    """

    folder: str
    card: str
    text_cfg: Mapping[str, Any]
    reason: str = ""
    copy: str = ""
    search: str = ""

    @property
    def here(self) -> str:
        """The folder that the lines read."""
        return HERE if self.copy else self.folder

    def python(self) -> str:
        """Lines that embed a picture and two captions and print their cosines; "" where open_clip cannot have it."""
        load = load_lines(self.text_cfg, f"{self.here}/{OPEN_CLIP}")
        return "" if self.reason else COSINES.format(load=load, picture=_PICTURE)

    def onnx(self) -> str:
        """Lines that embed a picture without torch and open_clip."""
        return EMBEDDING.format(folder=_quoted(f"{self.here}/{ONNX}"), picture=_PICTURE)


_PLAIN = """\
model, _, preprocess = open_clip.create_model_and_transforms({name})
"""
# open_clip resolves the config of a Hugging Face text tower against the working directory, so it is told the folder.
_WITH_TEXT_FOLDER = """\
text_cfg = json.load(open({config}))["model_cfg"]["text_cfg"] | {{"hf_model_name": {text}}}
model, _, preprocess = open_clip.create_model_and_transforms({name}, text_cfg=text_cfg)
"""
_PICTURE = """\
picture = Image.new("RGB", (64, 64), "red")  # or one of yours: Image.open("cup.jpg").convert("RGB")
"""
COSINES = """\
{load}\
from PIL import Image
{picture}image = model.eval().encode_image(preprocess(picture)[None], normalize=True)
print(image @ model.encode_text(tokenizer(["something red", "something blue"]), normalize=True).T)
"""
EMBEDDING = """\
import json, runpy
import onnxruntime
from PIL import Image
folder = {folder}
towers = json.load(open(folder + "/towers.json"))
pixels = runpy.run_path(folder + "/preprocess.py")["pixels"]
{picture}image = onnxruntime.InferenceSession(folder + "/image.onnx")
print(image.run(None, {{"images": pixels(picture, towers)}})[0])
"""


def load_lines(text_cfg: Mapping[str, Any], folder: str) -> str:
    """Python that opens model, preprocess and tokenizer of a folder in open_clip."""
    inside = "hf_model_name" in text_cfg
    model = (_WITH_TEXT_FOLDER if inside else _PLAIN).format(
        name=_quoted(f"local-dir:{folder}"),
        config=_quoted(f"{folder}/{CONFIG}"),
        text=_quoted(f"{folder}/{TEXT_FOLDER}"),
    )
    tokenizer = f"tokenizer = open_clip.get_tokenizer({_quoted(f'local-dir:{folder}')})\n"
    return f"import {'json, ' if inside else ''}open_clip\n{model}{tokenizer}"


def _quoted(text: str) -> str:
    """A string of Python."""
    return json.dumps(text, ensure_ascii=False)


def copy_command(url: str) -> str:
    """A command that copies a folder on S3 to HERE, with the client and the settings that the stages use."""
    code = (
        "import pathlib, sys; from cmapkd_core import storage; "
        "[(pathlib.Path(sys.argv[2], f).parent.mkdir(parents=True, exist_ok=True), "
        "storage.fetch(f'{sys.argv[1]}/{f}', pathlib.Path(sys.argv[2], f))) for f in storage.list_files(sys.argv[1])]"
    )
    return shlex.join([PYTHON, "-c", code, url, HERE])
