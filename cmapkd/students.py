"""A trained student for use: pictures and texts to embeddings, on open_clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from cmapkd.api import MODEL, PLACE, Run
from cmapkd.arguments import require
from cmapkd.opened_model import open_backbone
from cmapkd_core.config import DataConfig
from cmapkd_core.data.augment import View, eval_view
from cmapkd_core.data.images import decode
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone

Picture = Image.Image | str | Path
PICTURE, A_PICTURE = (Image.Image, *PLACE), "a picture of PIL or the path of a file"
T = TypeVar("T")
BATCH = 32  # inputs that a tower gets at once


@dataclass(frozen=True)
class Student:
    """A model in evaluation mode, whose embeddings are those that it was measured by.

    Attributes:
        url: where it came from.
        model: the open_clip model itself.
        tokenizer: n texts -> token ids, long [n, N].
        view: how it wants its pictures.
        backbone: the same model with what training and evaluation need of it.
    """

    url: str
    model: nn.Module = field(repr=False)
    tokenizer: Callable[[list[str]], Tensor] = field(repr=False)
    view: View
    backbone: Backbone = field(repr=False)

    def preprocess(self, picture: Picture) -> Tensor:
        """A picture of PIL, or the path of a file -> float [3, H, H].

        Of a file it is upright as its EXIF says; what is transparent lies on white, as it did in training.

        Raises:
            InputError: no such file, or (BadImageError) one that is no picture.
        """
        return eval_view(as_rgb(picture), self.view)

    @torch.inference_mode()
    def encode_image(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """B pictures -> unit embeddings, float [B, E] on the CPU; a single picture is one row.

        Raises:
            InputError: as of `preprocess`.
        """
        require((*PICTURE, Iterable), f"{A_PICTURE}, or a list of them", pictures=pictures)
        several = [pictures] if isinstance(pictures, Picture) else [*pictures]
        parts = (torch.stack([self.preprocess(one) for one in part]) for part in batches(several))
        return self._joined([self.backbone.encode_image(part.to(self._device)) for part in parts])

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """B texts -> unit embeddings, float [B, E] on the CPU; a single text is one row.

        Raises:
            InputError: what is no text.
        """
        require(Iterable, "a text or a list of them", texts=texts)
        several = [texts] if isinstance(texts, str) else [*texts]
        require(str, "a text", **{f"texts[{number}]": one for number, one in enumerate(several)})
        parts = (self.tokenizer(part) for part in batches(several))
        return self._joined([self.backbone.encode_text(part.to(self._device)) for part in parts])

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Parts [b, E] as one [B, E]; of no input none."""
        return torch.cat([torch.empty(0, self.backbone.spec.embed_dim), *(part.float().cpu() for part in parts)])


def load_student(model: str | Path | Run, device: str = "cpu") -> Student:
    """A student, ready to embed pictures and texts.

    Args:
        model: a Run or its `student`; a path or s3:// URL of an artifact of stage export or of one that trains
            (teacher, warmup, joint); a folder with an open_clip_config.json, or that has one in `open_clip/`; or a
            model by name, such as ViT-B-32:openai.
        device: of torch, such as `cuda`.

    Raises:
        InputError: there is no model, or no such device.
    """
    require((*PLACE, Run), f"a Run, or {MODEL}", model=model)
    _require_device(device)
    url = model.student if isinstance(model, Run) else str(model)
    backbone = open_backbone(url).to(device).eval()
    return Student(url, backbone.model, backbone.tokenize, View.of(backbone.identity.plain()), backbone)


def _require_device(device: str) -> None:
    """Raises InputError for a device that torch does not have here."""
    right = "'cpu', or 'cuda' where torch sees a GPU"
    require((str, torch.device), right, device=device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={str(device)!r}: {str(error).splitlines()[0]}: give {right}") from None


def _read(path: Path) -> bytes:
    """Raises InputError for a path that is no file, or none that may be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"picture {path} cannot be read: {error.strerror or error}; check the path") from None


def as_rgb(picture: Picture) -> Image.Image:
    """A picture in RGB as in training: a file as it was read there; another of PIL on white where it is transparent.

    Raises:
        InputError: no such file, or (BadImageError) one that is no picture.
    """
    require(PICTURE, A_PICTURE, picture=picture)
    if not isinstance(picture, Image.Image):
        return decode(_read(Path(picture)), DataConfig().max_pixels)
    if picture.mode == "RGB":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")


def batches(several: Sequence[T]) -> list[list[T]]:
    """In parts of BATCH."""
    return [list(several[start : start + BATCH]) for start in range(0, len(several), BATCH)]
