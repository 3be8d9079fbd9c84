from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision import transforms

from cmapkd_core.config import INTERPOLATIONS, RESIZE_MODES
from cmapkd_core.data.augment import View, crop_box, eval_pixels, eval_view, in_words, train_views
from cmapkd_core.errors import BadImageError

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def smooth(width: int, height: int) -> Image.Image:
    """A picture without fine detail, different in every place."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, (x * y)], axis=-1) * 255).astype(np.uint8))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_teacher_and_student_see_the_same_pixels() -> None:
    views = [View(32, *PLAIN), View(128, *PLAIN)]
    for seed in range(20):
        small, large = train_views(smooth(90, 70), views, (0.2, 1.0), generator(seed))
        shrunk = torch.nn.functional.avg_pool2d(large, 4)
        assert small.shape == (3, 32, 32)
        assert large.shape == (3, 128, 128)
        assert (shrunk - small).abs().max() < 0.02


def test_different_crops_differ_by_far_more_than_that() -> None:
    view = [View(32, *PLAIN)]
    (a,), (b,) = (train_views(smooth(90, 70), view, (0.2, 1.0), generator(seed)) for seed in (0, 1))
    assert (a - b).abs().max() > 0.1


def test_a_generator_decides_everything() -> None:
    views = [View(24, *CLIP)]
    (a,), (b,) = (train_views(smooth(60, 60), views, (0.5, 1.0), generator(7)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(64, 64), (500, 375), (40, 400), (9, 8)])
def test_crops_lie_inside(size: tuple[int, int]) -> None:
    width, height = size
    source = generator(0)
    for _ in range(200):
        left, top, right, bottom = crop_box(width, height, (0.3, 0.9), source)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(("size", "scale"), [((500, 375), (0.3, 0.9)), ((64, 64), (0.9, 1.0)), ((30, 90), (0.5, 1.0))])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    source, count = generator(1), 3000
    ours = torch.tensor([crop_box(*size, scale, source) for _ in range(count)], dtype=torch.float32)
    torch.manual_seed(0)
    blank = torch.empty(3, size[1], size[0])
    crop = transforms.RandomResizedCrop.get_params
    theirs = torch.tensor([crop(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(count)], dtype=torch.float32)
    top, left, height, width = theirs.unbind(1)
    theirs = torch.stack([left, top, left + width, top + height], dim=1)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.01 * max(size)
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.01 * max(size)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(64, 64), (72, 50), (50, 171), (9, 8)])
def test_evaluation_is_open_clips_own(size: tuple[int, int], interpolation: str, mode: str) -> None:
    """Bit for bit before the normalisation; noise shows every difference of resampling and of rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, plain = Image.fromarray(noise), View(48, *PLAIN, mode, interpolation, 127)
    options = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 127}
    theirs = image_transform(48, False, *PLAIN, **options)(image)
    assert torch.equal(eval_pixels(image, plain), (theirs * 255).round().to(torch.uint8))
    normalised = image_transform(48, False, *CLIP, **options)(image)
    assert (eval_view(image, replace(plain, mean=CLIP[0], std=CLIP[1])) - normalised).abs().max() < 1e-5


def test_modes_keep_what_they_say() -> None:
    """A picture whose left third is red and the rest blue, three times as wide as high."""
    image = Image.new("RGB", (90, 30), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 30, 30))
    middle, whole, squashed = (
        eval_pixels(image, View(30, *PLAIN, mode, "bilinear", 9)) for mode in ("shortest", "longest", "squash")
    )
    assert middle[0].max() == 0
    assert (whole[:, 0, 0].tolist(), whole[:, 15, 1].tolist(), whole[:, 15, 29].tolist()) == (
        [9, 9, 9],
        [255, 0, 0],
        [0, 0, 255],
    )
    assert (squashed[:, 0, 1].tolist(), squashed[:, 29, 29].tolist()) == ([255, 0, 0], [0, 0, 255])


def test_every_way_is_one_of_open_clips_and_has_its_words() -> None:
    for mode in RESIZE_MODES:
        for interpolation in INTERPOLATIONS:
            said = in_words(View(30, *PLAIN, mode, interpolation, 9))
            assert said.startswith(("shortest side to 30 px", "longest side to 30 px", "squashed to 30 x 30 px"))
            assert said.endswith("bilinear" if interpolation == "bilinear" else "bicubic")
    with pytest.raises(AssertionError):  # open_clip's own word on another one
        image_transform(30, False, *PLAIN, resize_mode="other")


def test_a_picture_too_thin_to_be_shown_whole_is_said() -> None:
    with pytest.raises(BadImageError, match="8x5000 pixels: too thin to be shown whole in 48 px"):
        eval_pixels(Image.new("RGB", (8, 5000)), View(48, *PLAIN, "longest"))
    assert eval_pixels(Image.new("RGB", (8, 700)), View(48, *PLAIN, "longest")).shape == (3, 48, 48)


@pytest.mark.parametrize("size", [(72, 50), (300, 225)])
def test_crops_are_resampled_as_each_model_wants(size: tuple[int, int]) -> None:
    views = [View(48, *PLAIN), View(48, *PLAIN, interpolation="bilinear")]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    left, top, right, bottom = crop_box(*size, (0.9, 1.0), generator(3))
    rendered = train_views(image, views, (0.9, 1.0), generator(3))
    for ours, how in zip(rendered, (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR), strict=True):
        theirs = np.asarray(image.crop((left, top, right, bottom)).resize((48, 48), how)).transpose(2, 0, 1)
        assert (255 * ours - torch.from_numpy(theirs.copy())).abs().max() < 1.01
    assert (rendered[0] - rendered[1]).abs().max() > 0.03


def test_means_and_deviations_are_applied_by_channel() -> None:
    image = Image.new("RGB", (20, 20), (255, 0, 51))
    out = eval_view(image, View(10, (0.5, 0.25, 0.2), (0.5, 0.5, 0.1)))
    assert torch.allclose(out[:, 4, 4], torch.tensor([1.0, -0.5, 0.0]), atol=1e-6)
