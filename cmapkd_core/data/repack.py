"""Training pictures made smaller while they are prepared, so that every epoch decodes fewer pixels."""

from __future__ import annotations

import numpy as np
import simplejpeg
import torch

from cmapkd_core.data.augment import resampled

QUALITY, SUBSAMPLING = 85, "420"  # of libjpeg's scale; the chroma at half the size, as cameras and the web have it


def repacked(image: np.ndarray, side: int) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of the picture with its shorter side at most `side` pixels, and its width and height.

    Reduced by the kernel of training's crops (bicubic, antialiased), never enlarged.

    Args:
        image: uint8 [height, width, 3 or more], of which the first three are the colours.
    """
    image = np.array(image[..., :3], order="C")
    height, width = image.shape[:2]
    share = min(side / min(height, width), 1.0)
    size = round(height * share), round(width * share)
    if size != (height, width):
        image = resampled(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
    data: bytes = simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling=SUBSAMPLING)
    return data, (size[1], size[0])
