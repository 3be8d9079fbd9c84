"""Pictures of noise and with a photograph's spectrum, and files of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (53, 71, 3), dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """A photograph's spectrum and colours, with edges."""
    draw = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    waves = [np.fft.ifft2(np.fft.fft2(draw.normal(size=(height, width))) / frequency**1.2).real for _ in range(3)]
    picture = np.stack([(wave - wave.mean()) / wave.std() * 50 + 128 for wave in waves], axis=-1)
    picture[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 30)
    return picture.clip(0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif
