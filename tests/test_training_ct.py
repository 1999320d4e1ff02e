"""CT training images: their units and variety; priors of real images, trained, saved, loaded and wrapped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import priors
from priors.denoising import denoising_error, draw_noise
from priors.networks import UNet
from recon.errors import InputError
from recon.train import train
from recon.training_ct import WATER, HeadImages
from recon.training_discs import PLASTIC, DiscImages, polygon
from recon.training_images import Volume
from recon.training_volumes import label_volume

SHAPE = (96, 96)


def head() -> Volume:
    """Shells of FreeSurfer's labels in voxels of 4 mm: skin, soft tissue, skull, fluid, cortex, white matter."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (44, 52, 40)), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    values = np.zeros(radius.shape, np.int64)
    for border, label in ((0.95, 511), (0.9, 507), (0.84, 515), (0.76, 24), (0.7, 3), (0.6, 2)):
        values[radius < border] = label
    values[(values == 2) & (x > 0)] = 41
    values[(values == 3) & (x > 0)] = 42
    return label_volume(values, (4.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def heads() -> HeadImages:
    return HeadImages([head()], shape=SHAPE, seed=3)


@pytest.fixture(scope="module", params=["head-ct", "discs-ct"])
def images(request, heads: HeadImages) -> HeadImages | DiscImages:
    return heads if request.param == "head-ct" else DiscImages(shape=SHAPE, seed=3)


def test_an_image_depends_on_seed_and_index_alone(images: HeadImages | DiscImages) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [images[i] for i in (4, 1)]
    assert all(image.shape == SHAPE and image.dtype == torch.float32 for image in first)
    assert torch.equal(images[4], first[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(images[1], images[4])
    other = HeadImages([head()], shape=SHAPE, seed=4) if isinstance(images, HeadImages) else DiscImages(shape=SHAPE)
    assert not torch.equal(other[1], images[1])


def test_heads_have_the_attenuation_of_their_tissues(heads: HeadImages) -> None:
    """In 1/mm at 62 keV: bone 0.025 to 0.07, soft tissue 0.0195 to 0.022, fat 0.0175 to 0.019, air 0."""
    stack = WATER * torch.stack([heads[i] for i in range(12)])
    assert stack.isfinite().all()
    assert stack.min() >= 0
    assert 0.035 < stack.max() < 0.08  # compact bone of 900 HU or more, never that of a metal
    assert (stack < 0.0005).float().mean() > 0.05  # air around the head
    soft = stack[(stack > 0.0175) & (stack < 0.0225)]
    assert soft.numel() > 0.1 * stack.numel()
    assert 0.0195 < soft.median() < 0.0218  # brain: 28 to 38 HU, on a scale of 0.95 to 1.05


def test_discs_are_of_one_material_with_holes() -> None:
    images = [DiscImages(shape=SHAPE, seed=3)[i] for i in range(24)]
    covered = torch.stack([(image > 0.3).float().mean() for image in images])
    assert covered.min() < 0.8  # discs that end within the image, or large holes
    assert covered.max() > 0.97
    assert (covered > 0.1).sum() > 18
    for image, part in zip(images, covered, strict=True):
        assert image.isfinite().all()
        assert image.min() > -0.05  # scatter and drift leave a little in air, of either sign
        assert image.max() < 1.6 * 1.45  # what fills the holes of some discs
        assert image.max() > 0.6 or part < 0.1  # the material
    levels = torch.stack([image.median() for image in images])
    assert levels.std() > 0.1  # factors of 0.7 to 1.4


def test_borders_are_as_wide_as_pixels() -> None:
    """A polygon's signed distance: exact for a square of side 2 at 45 degrees, from inside and from its corner."""
    corners = np.array([[np.sqrt(2), 0], [0, np.sqrt(2)], [-np.sqrt(2), 0], [0, -np.sqrt(2)]])
    y, x = torch.tensor([0.0, 0.3, 3.0, 1.0]), torch.tensor([0.0, 0.3, 0.0, 1.0])
    expected = torch.tensor([-1.0, 0.3 * 2**0.5 - 1, 3 - 2**0.5, 2**0.5 - 1])
    torch.testing.assert_close(polygon(y, x, corners), expected, rtol=0, atol=1e-6)  # float32 rounding


def test_heads_need_label_maps() -> None:
    image = Volume(np.ones((4, 4, 4), np.float16), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="1 other volumes of 2"):
        HeadImages([head(), image])
    with pytest.raises(InputError, match="rendered from FreeSurfer label maps"):
        HeadImages([])


def test_synthetic_images_need_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out folder"):
        train(tmp_path, out=tmp_path / "out", images="discs-ct", steps=1)
    with pytest.raises(InputError, match="give the folder"):
        train(None, out=tmp_path / "out", images="head-ct", steps=1)
    with pytest.raises(InputError, match="unknown images 'discs'; expected one of mri, head-ct, discs-ct"):
        train(None, out=tmp_path / "out", images="discs", steps=1)


def test_a_prior_of_real_images_is_trained_and_loaded(tmp_path: Path) -> None:
    """It starts from one of complex images, whose noise levels it keeps; one of complex images cannot start from it."""
    network = UNet(widths=(4, 8), blocks=(1, 1), features=8)
    start = priors.EDM(network, sigma_min=0.01, sigma_max=5, sigma_data=0.4)
    priors.save(start, tmp_path / "start", card={"recipe": {}})
    described = train(None, out=tmp_path, images="discs-ct", steps=2, name="discs", start=tmp_path / "start.json")
    card = json.loads(described.read_text())
    assert not card["is_complex"]
    assert card["noise"] == {"sigma_min": 0.01, "sigma_max": 5, "sigma_data": 0.4}
    assert card["scale_per_mm"] == PLASTIC
    assert card["recipe"]["images"] == "discs-ct"
    assert card["recipe"]["start"]["name"] == "start"
    assert "0.035/mm" in card["intensity"]
    denoiser = priors.load(described)
    x = torch.rand(2, 20, 31)
    assert denoiser(x, 0.1).shape == x.shape
    with pytest.raises(InputError, match="expected a prior of complex 2-D images, got one of real 2-D images"):
        train(tmp_path, out=tmp_path / "out", start=described, steps=1)


def test_wrappers_hold_for_real_images() -> None:
    """Scale, pieces and bfloat16 around a real U-Net; complex images by real_imag, and only by it."""
    torch.manual_seed(0)
    network = UNet(is_complex=False, widths=(8, 16), blocks=(1, 1), features=8)
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # it starts at zero, with which nothing could be seen
    denoiser = priors.EDM(network, sigma_min=0.002, sigma_max=10, sigma_data=0.5).requires_grad_(False)
    x, sigma = torch.rand(3, 24, 28), torch.tensor([0.1, 0.2, 0.3])
    expected = denoiser(x, sigma)
    assert expected.dtype == torch.float32
    close = {"rtol": 1e-5, "atol": 1e-5}  # float32 rounding, in another order
    torch.testing.assert_close(priors.chunked(denoiser, 24 * 28)(x, sigma), expected, **close)
    torch.testing.assert_close(priors.affine(denoiser, 2.0)(x / 2, sigma / 2), expected / 2, **close)
    low = priors.bf16(denoiser)(x, sigma)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0, atol=0.02)  # 8 bits of a network's output of order 1 times sigma
    both = priors.real_imag(denoiser)(torch.complex(x, x.flip(0)), 0.1)
    torch.testing.assert_close(both.imag, denoiser(x.flip(0), 0.1), **close)
    with pytest.raises(ValueError, match="expects real images, got complex"):
        denoiser(torch.complex(x, x), 0.1)


def smoothed(x: Tensor, width: float) -> Tensor:
    """Gaussian smoothing of (y, x) images, its width in pixels."""
    reach = int(4 * width) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(x[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


def best_smoothing(images: list[Tensor], sigma: float) -> float:
    """The least error of Gaussian smoothing over its widths, which are chosen on these very images."""
    errors = []
    for width in (0.4, 0.6, 0.8, 1.1, 1.5, 2.0, 3.0):
        noisy = [x + sigma * draw_noise(x, torch.Generator().manual_seed(i)) for i, x in enumerate(images)]
        found = [smoothed(n, width) - x for n, x in zip(noisy, images, strict=True)]
        errors.append(torch.stack(found).square().mean().sqrt().item())
    return min(errors)


@pytest.mark.parametrize("name", ["discs-ct", "head-ct"])
def test_embedded_priors_denoise_images_that_they_have_not_seen(name: str, heads: HeadImages) -> None:
    """Half of the error of the best Gaussian smoothing or less, at low and at high noise.

    The heads are of another maker than those of training: shells, whose voxels of 4 mm show.
    """
    denoiser = priors.load(name)
    assert (denoiser.is_complex, denoiser.ndim) == (False, 2)
    assert denoiser.card["scale_per_mm"] == (WATER if name == "head-ct" else PLASTIC)
    source = heads if name == "head-ct" else DiscImages(shape=SHAPE, seed=1000)
    held_back = [source[i] for i in range(6)]
    for sigma, error in denoising_error(denoiser, held_back, sigmas=(0.1, 0.5)).items():
        assert error < 0.5 * sigma
        assert error < best_smoothing(held_back, sigma)
