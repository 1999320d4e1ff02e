"""The noise that is found against noise put in, and on measured data against the air of the fully sampled image."""

from pathlib import Path

import h5py
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from operators.fourier import fftc, ifftc
from operators.masks import MASKS
from recon.coils import whitener
from recon.errors import InputError
from recon.noise_level import noise_covariance, robust_covariance

SHAPE = (160, 128)
COILS = 4
READOUT = -2
LINES = [("random", 4), ("equispaced", 4), ("gaussian1d", 8), ("random", 8)]
SCATTER = [("poisson", 4), ("poisson", 8), ("gaussian2d", 8)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Unit variance per real component."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator) * 2**0.5


def truth(coils: int = COILS, level: float = 0.01) -> Tensor:
    """Noise of unequal, correlated coils; `level` is the mean standard deviation per real component."""
    mixing = torch.diag(torch.linspace(0.8, 1.2, coils)).to(torch.complex128) + 0.2 * randn(coils, coils, seed=7)
    sigma = mixing @ mixing.mH
    return sigma * (level / deviation(sigma)) ** 2


def deviation(covariance: Tensor) -> float:
    """Mean standard deviation over coils."""
    return float(covariance.diagonal().real.sqrt().mean())


def noise_of(covariance: Tensor, *shape: int, seed: int = 1) -> Tensor:
    return torch.einsum("ck,k...->c...", torch.linalg.cholesky(covariance), randn(len(covariance), *shape, seed=seed))


def signal(shape: tuple[int, int] = SHAPE, extent: float = 0.75) -> Tensor:
    """K-space (coil, ky, kx) of discs in a head of magnitude 1 that reaches over `extent` of the field of view.

    Rasterised three times finer than the grid, so that k-space is not cut off as a pixel image's is.
    """
    y, x = (torch.linspace(-1, 1, 3 * n, dtype=torch.float64) / extent for n in shape)
    y, x = y[:, None], x[None]
    inside = (y**2 + x**2 < 1).double()
    inside -= 0.5 * ((y / 0.9) ** 2 + (x / 0.85) ** 2 < 1)
    for centre_y, centre_x, radius in [(0.3, 0.2, 0.15), (-0.3, -0.2, 0.2), (-0.1, 0.4, 0.1), (0.5, -0.3, 0.08)]:
        inside += 0.3 * ((y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2)
    angles = 2 * torch.pi * torch.arange(COILS, dtype=torch.float64)[:, None, None] / COILS
    maps = torch.exp(-((y * extent - angles.sin()) ** 2 + (x * extent - angles.cos()) ** 2) / 2 + 1j * angles * y)
    kspace = fftc(maps * inside, (-2, -1)) / 3
    for axis, n in zip((-2, -1), shape, strict=True):
        kspace = kspace.narrow(axis, 3 * n // 2 - n // 2, n)
    return kspace


def full(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def worst_ratio(estimate: Tensor, sigma: Tensor) -> float:
    """How far any combination of coils is from its true variance: 1 if exact."""
    W = whitener(sigma)
    values = torch.linalg.eigvalsh(W @ estimate @ W.mH)
    return float(torch.maximum(values, 1 / values).max())


# Noise scans


def test_noise_scan() -> None:
    sigma = truth()
    scan = noise_of(sigma, 20000)
    found = noise_covariance(signal(), full(), noise=scan)
    # Eigenvalues of a sample covariance lie within (1 +- sqrt(4 / 20000))^2 = 1 +- 0.028.
    assert worst_ratio(found.covariance, sigma) < 1.05
    assert "noise scan of 20000 samples" in found.source


def test_noise_scan_of_one_coil() -> None:
    found = noise_covariance(randn(1, 1, *SHAPE), full(), noise=3 * randn(1, 20000))
    assert found.covariance.shape == (1, 1)
    assert float(found.covariance.real) == pytest.approx(9, rel=0.05)  # 0.01 is one standard error


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (randn(3, 1000), r"expected complex \(4 coils, samples\).*\(3, 1000\)"),
        (randn(4, 1000).real, "expected complex"),
        (randn(4, 40), "expected at least 80 samples for 4 coils, got 40"),
        (randn(4, 1000) * torch.tensor([1, 1, 0, 1])[:, None], r"coils \[2\] hold zeros only"),
        (randn(4, 1000) * torch.nan, "finite"),
    ],
)
def test_bad_noise_scan_is_refused(scan: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        noise_covariance(signal(), full(), noise=scan)


# Robustness


@pytest.mark.parametrize("coils", [1, 4, 16])
def test_robust_covariance_of_pure_noise(coils: int) -> None:
    sigma = truth(coils)
    found = robust_covariance(noise_of(sigma, 400 * coils))
    assert deviation(found) == pytest.approx(deviation(sigma), rel=0.1 if coils == 1 else 0.03)  # 2.5 and 4 sd


def test_robust_covariance_bears_a_third_of_signal() -> None:
    sigma = truth()
    samples = noise_of(sigma, 6000)
    samples[:, ::3] += 10 * randn(COILS, 2000, seed=3)
    found = robust_covariance(samples)
    # A third far out moves the median to the 75 % quantile of the noise: 11.4 / 7.3 of chi^2 with 8 degrees, 1.18.
    assert deviation(found) == pytest.approx(deviation(sigma), rel=0.25)
    assert deviation(torch.cov(samples) / 2) > 100 * deviation(sigma)


# Air along the readout


@pytest.mark.parametrize(("kind", "acceleration"), [("full", 1), *LINES])
@pytest.mark.parametrize("level", [0.003, 0.03])
def test_known_noise_is_found_in_the_air(kind: str, acceleration: int, level: float) -> None:
    sigma = truth(level=level)
    mask = full() if kind == "full" else MASKS[kind](SHAPE, acceleration, seed=0)
    found = noise_covariance((signal() + noise_of(sigma, *SHAPE)) * mask, mask, readout_axis=READOUT)
    assert found.source == "noise from the background along the readout"
    # About 40 positions in 8 to 64 outer lines: the mean level of four coils has a standard error of 1 to 2 %. Ripples
    # of the edges add up to 4 % at the lower level with the fewest lines.
    assert deviation(found.covariance) == pytest.approx(level, rel=0.06)
    assert worst_ratio(found.covariance, sigma) < 1.6


def test_gain_of_a_coil_scales_its_noise() -> None:
    kspace = signal() + noise_of(truth(), *SHAPE)
    gains = torch.tensor([1e-3, 1.0, 40.0, 1e4], dtype=torch.float64)
    one = noise_covariance(kspace, full(), readout_axis=READOUT).covariance
    other = noise_covariance(gains[:, None, None] * kspace, full(), readout_axis=READOUT).covariance
    assert torch.allclose(other, one * torch.outer(gains, gains), rtol=1e-6, atol=0)


def test_slices_are_pooled() -> None:
    sigma = truth()
    mask = MASKS["random"](SHAPE, 8, seed=0)
    noise = noise_of(sigma, 6, *SHAPE).movedim(1, 0)
    found = noise_covariance((signal() + noise) * mask, mask, readout_axis=READOUT)
    assert worst_ratio(found.covariance, sigma) < 1.25  # of the order of 1.5 for one slice


def test_asymmetric_echo() -> None:
    """A quarter of each readout was not acquired: the noise of the samples is that of the others."""
    sigma = truth()
    mask = full()
    mask[: SHAPE[0] // 4] = False
    found = noise_covariance((signal() + noise_of(sigma, *SHAPE)) * mask, mask, readout_axis=READOUT)
    assert "background" in found.source
    assert deviation(found.covariance) == pytest.approx(0.01, rel=0.05)


def test_readout_is_found_where_it_is_not_told() -> None:
    sigma = truth()
    kspace = signal() + noise_of(sigma, *SHAPE)
    mask = MASKS["equispaced"](SHAPE, 4, seed=1)
    found = noise_covariance(kspace * mask, mask)
    assert torch.equal(found.covariance, noise_covariance(kspace * mask, mask, readout_axis=READOUT).covariance)


def test_volume_with_scattered_phase_encodes() -> None:
    """Poisson in (kz, ky) leaves the lines along kx whole."""
    sigma = truth()
    shape = (16, *SHAPE)
    mask = MASKS["poisson"](shape[:2], 4, calibration=8, seed=0)[..., None].expand(*shape).contiguous()
    kspace = signal().unsqueeze(1) * torch.hann_window(16).reshape(1, 16, 1, 1) + noise_of(sigma, *shape)
    found = noise_covariance(kspace * mask, mask, readout_axis=-1)
    assert "background" in found.source
    assert worst_ratio(found.covariance, sigma) < 1.15


@pytest.mark.parametrize("readout_axis", [READOUT, None])
@pytest.mark.parametrize("kind", ["random", "poisson", "asymmetric echo"])
def test_what_was_not_sampled_is_not_looked_at(kind: str, readout_axis: int | None) -> None:
    mask = MASKS[kind](SHAPE, 4, seed=0) if kind in MASKS else full()
    if kind == "asymmetric echo":
        mask[:40] = False
    kspace = signal() + noise_of(truth(), *SHAPE)
    one = noise_covariance(kspace * mask, mask, readout_axis=readout_axis).covariance
    other = noise_covariance(kspace.where(mask, torch.nan), mask, readout_axis=readout_axis).covariance
    assert torch.equal(one, other)


# No air, or readouts that are not whole


@pytest.mark.parametrize(("kind", "acceleration"), [("full", 1), *LINES, *SCATTER])
def test_upper_bound_without_air(kind: str, acceleration: int) -> None:
    """The object fills and overlaps the field of view."""
    sigma = truth()
    mask = full() if kind == "full" else MASKS[kind](SHAPE, acceleration, seed=0)
    kspace = signal(extent=1.6) + noise_of(sigma, *SHAPE)
    found = noise_covariance(kspace * mask, mask, readout_axis=READOUT)
    assert "upper bound" in found.source
    # Signal is still there where samples are outermost: measured factors 1.0 to 1.1 (lines) and 1.5 (scattered, within
    # the inscribed ellipse).
    assert 0.93 < deviation(found.covariance) / 0.01 < 2


# Measured data


def brain(data_dir: Path, name: str) -> tuple[Tensor, Tensor]:
    """K-space (coil, ky, kx) and the level of noise per coil in the corners of its fully sampled image."""
    if name.endswith(".mat"):
        kspace = fftc(torch.as_tensor(loadmat(data_dir / "mri" / name)["DATA"]).movedim(-1, 0), (-2, -1))
    else:
        with h5py.File(data_dir / "mri" / name) as file:
            kspace = torch.as_tensor(file["kspace"][0])
    image = ifftc(kspace, (-2, -1))
    corners = [image[:, y, x].flatten(1) for y in (slice(20), slice(-20, None)) for x in (slice(20), slice(-20, None))]
    level = (torch.cat(corners, 1).abs().square().median(1).values / (2 * torch.log(torch.tensor(2.0)))).sqrt()
    return kspace, level


@pytest.mark.parametrize("name", ["brain_8ch.h5", "brain_mprage_4ch.h5"])
def test_measured_noise_is_that_of_the_air(data_dir: Path, name: str) -> None:
    kspace, level = brain(data_dir, name)
    found = noise_covariance(kspace, full(tuple(kspace.shape[-2:])), readout_axis=READOUT)
    ratio = found.covariance.diagonal().real.sqrt() / level
    assert (ratio - 1).abs().max() < 0.1  # noise is white to that much: k-space lines of these scans differ by 10 %
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)  # 1.03 and 0.97


@pytest.mark.parametrize("name", ["brain_8ch.h5", "brain_mprage_4ch.h5"])
@pytest.mark.parametrize(("kind", "acceleration"), LINES)
def test_measured_noise_does_not_depend_on_the_mask(data_dir: Path, name: str, kind: str, acceleration: int) -> None:
    kspace, _ = brain(data_dir, name)
    shape = tuple(kspace.shape[-2:])
    expected = deviation(noise_covariance(kspace, full(shape), readout_axis=READOUT).covariance)
    for seed in range(3):
        mask = MASKS[kind](shape, acceleration, seed=seed)
        found = noise_covariance(kspace * mask, mask, readout_axis=READOUT)
        assert deviation(found.covariance) == pytest.approx(expected, rel=0.1)  # at most 7 % over ten masks of each


@pytest.mark.parametrize("name", ["brain_8ch.h5", "brain_mprage_4ch.h5"])
@pytest.mark.parametrize(("kind", "acceleration"), SCATTER)
def test_measured_upper_bound(data_dir: Path, name: str, kind: str, acceleration: int) -> None:
    kspace, level = brain(data_dir, name)
    mask = MASKS[kind](tuple(kspace.shape[-2:]), acceleration, seed=0)
    found = noise_covariance(kspace * mask, mask, readout_axis=READOUT)
    assert "upper bound" in found.source
    assert 1 < deviation(found.covariance) / float(level.mean()) < 2.7  # 1.2 and 2.5: the skin is bright and sharp


def test_phantom_of_very_high_signal_to_noise(data_dir: Path) -> None:
    """Ripples and ghosts of the phantom reach its air, a two thousandth of the phantom."""
    kspace, level = brain(data_dir, "ugmpi_4h_Ph.mat")
    shape = tuple(kspace.shape[-2:])
    for mask in (full(shape), MASKS["random"](shape, 4, seed=0), MASKS["equispaced"](shape, 4, seed=0)):
        found = noise_covariance(kspace * mask, mask, readout_axis=READOUT)
        assert "background" in found.source
        # Two of four coils have artefacts in the corners that the reference is taken from.
        assert 0.5 < deviation(found.covariance) / float(level.mean()) < 1.05


# Errors


def test_zero_data_is_refused() -> None:
    with pytest.raises(InputError, match="k-space: expected data, got zeros only"):
        noise_covariance(torch.zeros(COILS, *SHAPE, dtype=torch.complex64), full())
    kspace = signal()
    kspace[1] = 0
    with pytest.raises(InputError, match=r"k-space: coils \[1\] hold zeros only"):
        noise_covariance(kspace, full())


def test_too_few_samples_are_refused() -> None:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[76:84, 60:68] = True
    with pytest.raises(
        ValueError, match="too few samples to estimate the noise of 4 coils: expected 80 or more, got 64"
    ):
        noise_covariance(signal() * mask, mask)


def test_data_that_do_not_fit_are_refused() -> None:
    kspace = signal()
    with pytest.raises(InputError, match="as the mask, got"):
        noise_covariance(kspace, full((SHAPE[0], SHAPE[1] - 1)))
    with pytest.raises(InputError, match="as the mask, got"):
        noise_covariance(kspace.real, full())
    with pytest.raises(InputError, match="mask: expected bool"):
        noise_covariance(kspace, full().float())
    with pytest.raises(InputError, match="at least one sample"):
        noise_covariance(kspace, ~full())
    with pytest.raises(InputError, match="readout_axis: expected -2 to -1"):
        noise_covariance(kspace, full(), readout_axis=0)
    kspace[0, 3, 3] = torch.nan
    with pytest.raises(InputError, match="finite"):
        noise_covariance(kspace, full())
