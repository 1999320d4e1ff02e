"""Metrics against the fastmri package and against their formulas."""

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from operators.fourier import ifftc
from recon import metrics

UNSCALED = [metrics.psnr, metrics.nmse, metrics.ssim]
SCALED = [metrics.psnr_scaled, metrics.nmse_scaled, metrics.ssim_scaled]


def volumes(*, slices: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth positive volume and a disturbed copy of it."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 37), torch.linspace(-1, 1, 32), indexing="ij")
    disc = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1).to(torch.float64)
    reference = torch.stack([(k + 1) * disc * (1.2 + torch.sin(5 * x + k) * torch.cos(4 * y)) for k in range(slices)])
    return reference, (reference + 0.1 * torch.randn(reference.shape, generator=generator, dtype=torch.float64)).abs()


@pytest.mark.parametrize("metric", UNSCALED)
def test_fastmri_definitions(metric: Callable[[Tensor, Tensor], float]) -> None:
    evaluate = pytest.importorskip("fastmri.evaluate")
    reference, image = volumes()
    expected = float(getattr(evaluate, metric.__name__)(reference.numpy(), image.numpy()).item())
    # Both in float64; windows are summed in a different order.
    assert metric(reference, image) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", UNSCALED)
def test_fastmri_definitions_on_a_measured_brain(metric: Callable[[Tensor, Tensor], float], data_dir: Path) -> None:
    evaluate = pytest.importorskip("fastmri.evaluate")
    with h5py.File(data_dir / "mri" / "brain_8ch.h5") as file:
        kspace = torch.from_numpy(file["kspace"][:]).to(torch.complex128)
    reference = ifftc(kspace, (-2, -1)).abs().square().sum(1).sqrt()
    keep = torch.arange(kspace.shape[-1]) % 2 == 0
    image = ifftc(kspace * keep, (-2, -1)).abs().square().sum(1).sqrt()
    expected = float(getattr(evaluate, metric.__name__)(reference.numpy(), image.numpy()).item())
    assert metric(reference, image) == pytest.approx(expected, rel=1e-6)


def test_the_peak_is_that_of_the_volume() -> None:
    reference, image = volumes()
    by_slice = [metrics.psnr(r, m) for r, m in zip(reference, image, strict=True)]
    expected = 10 * math.log10(float(reference.max() ** 2 / (reference - image).square().mean()))
    assert metrics.psnr(reference, image) == pytest.approx(expected, rel=1e-12)
    assert abs(metrics.psnr(reference, image) - sum(by_slice) / 3) > 0.1


def test_scaled_metrics_ignore_scale_and_background() -> None:
    reference, image = volumes()
    inside = metrics.object_mask(reference)
    outside = torch.nn.functional.max_pool2d(inside.double(), 7, stride=1, padding=3) == 0  # beyond every SSIM window
    other = 3.7 * image + 5.0 * outside
    assert bool(outside.any())
    for metric in SCALED:
        assert metric(reference, other, inside) == pytest.approx(metric(reference, image, inside), rel=1e-9)
    assert metrics.fit_scale(reference, 4 * reference, inside) == pytest.approx(0.25, rel=1e-12)


def test_scaled_metrics_are_their_formulas() -> None:
    reference, image = volumes()
    inside = metrics.object_mask(reference)
    r, m = reference[inside], image[inside]
    s = (m * r).sum() / (m * m).sum()
    errors = [(r - t * m).square().sum() for t in (s, 1.001 * s, 0.999 * s)]
    assert errors[0] < min(errors[1:])  # the least-squares factor
    psnr = 10 * math.log10(float(r.max() ** 2 / (r - s * m).square().mean()))
    assert metrics.psnr_scaled(reference, image, inside) == pytest.approx(psnr, rel=1e-12)
    assert metrics.nmse_scaled(reference, image, inside) == pytest.approx(float(errors[0] / (r @ r)), rel=1e-12)


def test_ssim_scaled_over_the_whole_image_is_the_fastmri_definition() -> None:
    reference, image = volumes()
    everywhere = torch.ones_like(reference, dtype=torch.bool)
    image = image * metrics.fit_scale(reference, image, everywhere)
    # The fitted factor of an image that is already fitted is 1 to rounding.
    assert metrics.ssim_scaled(reference, image, everywhere) == pytest.approx(metrics.ssim(reference, image), rel=1e-12)


def test_perfect_image() -> None:
    reference, _ = volumes()
    inside = metrics.object_mask(reference)
    assert metrics.psnr(reference, reference) == math.inf
    assert metrics.nmse(reference, reference) == 0
    assert metrics.ssim(reference, reference) == pytest.approx(1, abs=1e-12)
    assert metrics.ssim_scaled(reference, 2 * reference, inside) == pytest.approx(1, abs=1e-12)


def test_object_mask_fills_the_object_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(96.0) - 48, torch.arange(80.0) - 40, indexing="ij")
    head = (x / 28) ** 2 + (y / 36) ** 2 < 1
    ventricle = (x / 8) ** 2 + (y / 10) ** 2 < 1
    speck = (x + 36) ** 2 + (y + 44) ** 2 < 4
    noise = 0.03 * torch.randn(2, 96, 80, generator=generator)
    reference = ((head & ~ventricle) | speck).float() + noise.abs()
    found = metrics.object_mask(reference)
    assert found.shape == reference.shape
    assert found.dtype == torch.bool
    assert bool(found[:, head].all())  # holes are filled
    assert not bool(found[:, speck].any())  # the largest piece only
    # A Gaussian of one pixel falls below a tenth 1.3 pixels outside the rim.
    assert not bool(found[:, (x / 31) ** 2 + (y / 39) ** 2 > 1].any())
    assert torch.equal(metrics.object_mask(7 * reference[0]), metrics.object_mask(reference[0]))


@pytest.mark.parametrize("metric", UNSCALED)
def test_bad_images_are_refused(metric: Callable[[Tensor, Tensor], float]) -> None:
    reference, image = volumes()
    with pytest.raises(ValueError, match=r"one shape .* \(3, 37, 32\) and image \(37, 32\)"):
        metric(reference, image[0])
    with pytest.raises(ValueError, match="complex"):
        metric(reference, image.to(torch.complex128))
    with pytest.raises(ValueError, match="zero everywhere"):
        metric(0 * reference, image)
    with pytest.raises(ValueError, match="NaN"):
        metric(reference, image * torch.nan)


@pytest.mark.parametrize("metric", [*SCALED, metrics.fit_scale])
def test_bad_masks_are_refused(metric: Callable[[Tensor, Tensor, Tensor], float]) -> None:
    reference, image = volumes()
    inside = metrics.object_mask(reference)
    with pytest.raises(ValueError, match="at least one pixel"):
        metric(reference, image, inside & ~inside)
    with pytest.raises(ValueError, match="expected bool"):
        metric(reference, image, inside.double())
    with pytest.raises(ValueError, match=r"of shape \(3, 37, 32\)"):
        metric(reference, image, inside[0])
    with pytest.raises(ValueError, match="no scale factor"):
        metric(reference, 0 * image, inside)


def test_other_refusals() -> None:
    small = torch.ones(6, 9)
    with pytest.raises(ValueError, match="at least 7x7"):
        metrics.ssim(small, small)
    with pytest.raises(ValueError, match="not positive"):
        metrics.object_mask(-torch.ones(20, 20))
    with pytest.raises(ValueError, match="lower the threshold"):
        metrics.object_mask(torch.ones(20, 20), threshold=2.0)
    with pytest.raises(ValueError, match=r"got shape \(2, 1, 20, 20\)"):
        metrics.object_mask(torch.ones(2, 1, 20, 20))
    corner = torch.zeros(20, 20, dtype=torch.bool)
    corner[0, 0] = True
    with pytest.raises(ValueError, match="no 7x7 window"):
        metrics.ssim_scaled(torch.ones(20, 20), torch.ones(20, 20), corner)
