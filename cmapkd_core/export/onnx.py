"""Both towers of the student as ONNX graphs, with their tokenizer and what a program needs to feed them.

    image.onnx    images float32 [batch,3,H,H], normalised -> image_embedding [batch,E], unit norm
    text.onnx     tokens int64 [batch,N] -> text_embedding [batch,E], unit norm
    towers.json   what the model is beside its tensors (models/identity.py), the padding id, scale and logit_bias:
                  similarities are scale * image @ text.T + logit_bias (0 where the model has none)
    preprocess.py a picture as towers.json says, with Pillow and numpy alone

The batch is free, H and N are the student's own.
"""

from __future__ import annotations

import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer

from cmapkd_core.export import preprocess
from cmapkd_core.export.huggingface import write_clip_tokenizer
from cmapkd_core.export.parity import Inexpressible, Towers
from cmapkd_core.models.backbones import Backbone

IMAGE, TEXT, SETTINGS, PREPROCESS = "image.onnx", "text.onnx", "towers.json", "preprocess.py"
# A protobuf message ends at 2 GB; larger weights lie in a file beside the graph.
_ONE_FILE = 1_800_000_000

_USAGE = """\
import json, runpy, numpy as np, onnxruntime
from transformers import AutoTokenizer
towers, pixels = json.load(open("onnx/towers.json")), runpy.run_path("onnx/preprocess.py")["pixels"]
image = onnxruntime.InferenceSession("onnx/image.onnx").run(None, {"images": pixels(picture, towers)})[0]
length = towers["context_length"]
ids = AutoTokenizer.from_pretrained("onnx")(["a caption"], truncation=True, max_length=length)["input_ids"]
tokens = np.array([row + [towers["pad_id"]] * (length - len(row)) for row in ids])
text = onnxruntime.InferenceSession("onnx/text.onnx").run(None, {"tokens": tokens})[0]
"""


class _Image(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.visual = backbone.model.visual

    def forward(self, images: Tensor) -> Tensor:
        """[B,3,H,H] -> unit norm [B,E]."""
        return F.normalize(self.visual(images), dim=-1)


class _Text(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.tower = backbone.model.text if isinstance(backbone.model, CustomTextCLIP) else backbone.model

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N] -> unit norm [B,E]."""
        # The plain CLIP class is its own text tower, and its forward is that of both.
        encode = getattr(self.tower, "encode_text", self.tower)
        return F.normalize(encode(tokens), dim=-1)


def write(backbone: Backbone, folder: Path) -> None:
    """Both graphs, the tokenizer's files, towers.json and preprocess.py.

    Raises:
        Inexpressible: PyTorch's exporter cannot translate a tower; nothing is written then.
    """
    folder.mkdir(parents=True)
    size = backbone.spec.image_size
    # Two inputs: a batch of one would be taken for a constant.
    examples = torch.zeros(2, 3, size, size), backbone.tokenize(["a", "b"])
    for tower, example, name, into in zip(
        (_Image(backbone), _Text(backbone)), examples, ("images", "tokens"), (IMAGE, TEXT), strict=True
    ):
        try:
            _translate(tower.eval(), example, name, folder / into)
        except Exception as error:  # the exporter's stages raise types of their own, some of them private
            shutil.rmtree(folder)
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise Inexpressible(
                f"PyTorch {torch.__version__} cannot translate the tower of {into}: {reason}"
            ) from error
    write_tokenizer(backbone, folder)
    shutil.copyfile(preprocess.__file__, folder / PREPROCESS)
    (folder / SETTINGS).write_text(json.dumps(_settings(backbone), indent=2) + "\n", encoding="utf-8")


def _translate(tower: nn.Module, example: Tensor, name: str, path: Path) -> None:
    """Write the graph of a tower for inputs like `example`, [2,3,H,H] or [2,N], with a free batch."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())
    torch.onnx.export(
        tower,
        (example,),
        path,
        input_names=[name],
        output_names=[f"{path.stem}_embedding"],
        dynamic_shapes={name: {0: torch.export.Dim("batch", min=1)}},
        external_data=weights > _ONE_FILE,
        dynamo=True,
        verbose=False,
    )


def write_tokenizer(backbone: Backbone, folder: Path) -> None:
    """Files for `AutoTokenizer`: the text tower's own, or open_clip's vocabulary."""
    if isinstance(backbone.tokenize, SimpleTokenizer):
        write_clip_tokenizer(backbone.tokenize, backbone.spec.context_length, folder)
    for name, data in backbone.files.items():
        if name != "config.json":
            (folder / name).write_bytes(data)


def _settings(backbone: Backbone) -> dict[str, object]:
    tokenize, bias = backbone.tokenize, backbone.model.logit_bias
    pad = 0 if isinstance(tokenize, SimpleTokenizer) else tokenize.tokenizer.pad_token_id  # type: ignore[attr-defined]
    return {
        **backbone.identity.plain(),
        "pad_id": pad,
        "scale": backbone.scale().item(),
        "logit_bias": 0.0 if bias is None else bias.item(),
        "exporter": f"torch {torch.__version__}",
    }


def load(folder: Path) -> Towers:
    """The folder in ONNX Runtime, on the CPU."""
    towers = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    image, text = (
        onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
        for name in (IMAGE, TEXT)
    )
    tokenizer, length = AutoTokenizer.from_pretrained(folder), towers["context_length"]

    def tokenize(captions: list[str]) -> Tensor:
        rows = tokenizer(captions, truncation=True, max_length=length)["input_ids"]
        return torch.tensor([row + [towers["pad_id"]] * (length - len(row)) for row in rows])

    prepare = runpy.run_path(str(folder / PREPROCESS))["pixels"]
    return Towers(
        partial(_run, image, "images"),
        partial(_run, text, "tokens"),
        tokenize,
        lambda picture: torch.from_numpy(prepare(picture, towers)[0]),
    )


def _run(session: onnxruntime.InferenceSession, name: str, inputs: Tensor) -> Tensor:
    """[B,..] -> [B,E]."""
    (embedding,) = session.run(None, {name: np.ascontiguousarray(inputs.numpy())})
    return torch.from_numpy(embedding)


def usage(backbone: Backbone) -> str:
    """Python that embeds a picture and a caption, run beside the folder."""
    return _USAGE
