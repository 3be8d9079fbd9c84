import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from cmapkd_core.data.augment import View, crop_box, eval_view, train_views

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


@pytest.mark.parametrize("size", [(64, 64), (72, 50), (50, 171), (300, 225)])
def test_evaluation_matches_what_open_clip_does(size: tuple[int, int]) -> None:
    image = smooth(*size)
    theirs = transforms.Compose(
        [
            transforms.Resize(48, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(48),
            transforms.ToTensor(),
            transforms.Normalize(*CLIP),
        ]
    )(image)
    ours = eval_view(image, View(48, *CLIP))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2.5 / 255 / 0.26


def test_means_and_deviations_are_applied_by_channel() -> None:
    image = Image.new("RGB", (20, 20), (255, 0, 51))
    out = eval_view(image, View(10, (0.5, 0.25, 0.2), (0.5, 0.5, 0.1)))
    assert torch.allclose(out[:, 4, 4], torch.tensor([1.0, -0.5, 0.0]), atol=1e-6)
