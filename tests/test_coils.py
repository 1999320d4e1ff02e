"""Whitening, coil compression and the readout, on noise known exactly and on measured data."""

from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from operators.espirit import espirit
from operators.fourier import fftc, ifftc
from operators.masks import MASKS, calibration_region
from operators.mri import sense
from recon.coils import (
    apply_coil_matrix,
    as_measured,
    geometric_compression,
    noise_factor,
    remove_readout_oversampling,
    svd_compression,
    virtual_coils,
    whitener,
)
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.noise_level import noise_covariance

BRAINS = ["brain_8ch.h5", "brain_mprage_4ch.h5"]
READOUT = -2


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    """Unit variance per real component."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, generator=generator) * 2**0.5


def covariance(coils: int, seed: int = 0) -> Tensor:
    mixing = randn(coils, coils, seed=seed) + 2 * torch.eye(coils)
    return mixing @ mixing.mH


def identity(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.complex128)


def kspace_of(data_dir: Path, name: str) -> Tensor:
    """(coil, ky, kx), the 99th percentile of the image 1."""
    with h5py.File(data_dir / "mri" / name) as file:
        kspace = torch.as_tensor(file["kspace"][0])
    return kspace / ifftc(kspace, (-2, -1)).norm(dim=0).quantile(0.99)


def full(kspace: Tensor) -> Tensor:
    return torch.ones(kspace.shape[-2:], dtype=torch.bool)


def calibration_of(kspace: Tensor, mask: Tensor) -> Tensor:
    """The fully sampled centre, 24 samples at most."""
    for axis, (block, n) in enumerate(zip(calibration_region(mask), mask.shape, strict=True), start=-2):
        start, stop = max(block.start, n // 2 - 12), min(block.stop, n // 2 + 12)
        kspace = kspace.narrow(axis, start, stop - start)
    return kspace


def least_squares(mask: Tensor, maps: Tensor, kspace: Tensor, iterations: int = 30) -> Tensor:
    A = sense(mask, maps)
    start = torch.zeros(A.domain.shape, dtype=kspace.dtype)
    return Gaussian(A, kspace * mask).project(start, iterations=iterations, tolerance=1e-7)[0]


def psnr(x: Tensor, reference: Tensor) -> float:
    return float(20 * torch.log10(reference.abs().max() / (x - reference).abs().square().mean().sqrt()))


# Whitening


def test_whitener_makes_the_covariance_the_identity() -> None:
    sigma = covariance(6)
    W, L = whitener(sigma), noise_factor(sigma)
    # Rounding of float64 at a condition number of some hundreds.
    assert torch.allclose(W @ sigma @ W.mH, identity(6), atol=1e-11)
    assert torch.allclose(L @ L.mH, sigma, atol=1e-11)
    assert torch.allclose(W @ L, identity(6), atol=1e-11)


def test_whitened_noise_is_1_per_real_component() -> None:
    sigma = covariance(4)
    noise = apply_coil_matrix(noise_factor(sigma), randn(4, 200, 500))
    white = apply_coil_matrix(whitener(sigma), noise).flatten(1)
    # E|n|^2 = 2, from 1e5 samples: 6 standard errors of 1 / sqrt(1e5).
    assert torch.allclose(torch.cov(white), 2 * identity(4), atol=2 * 0.02)
    assert torch.allclose(white.real.square().mean(1), torch.ones(4, dtype=torch.float64), atol=0.03)


def test_covariance_of_any_units_is_whitened() -> None:
    gains = torch.tensor([1e-9, 1.0, 1e6, 1e3], dtype=torch.complex128)
    sigma = covariance(4) * torch.outer(gains, gains)
    W = whitener(sigma)
    assert torch.allclose(W @ sigma @ W.mH, identity(4), atol=1e-9)  # products of 1e-9 and 1e6 cancel


def test_dependent_coils_are_refused() -> None:
    mixing = randn(4, 3)  # four coils from three
    with pytest.raises(InputError, match="1 of 4 coils are linear combinations"):
        whitener(mixing @ mixing.mH)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), "positive diagonal"),
        (torch.ones(3, 2, dtype=torch.complex64), r"expected \(coil, coil\)"),
        (torch.tensor([[1, 0.5], [0, 1]], dtype=torch.complex64), "Hermitian"),
        (torch.full((2, 2), torch.nan, dtype=torch.complex64), "finite"),
    ],
)
def test_bad_covariance_is_refused(bad: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        whitener(bad)


def test_whitening_keeps_the_image_of_consistent_data() -> None:
    """y = S x without noise: the weights of the noise do not matter, the image is the same in magnitude and phase."""
    coils, shape = 5, (18, 16)
    maps = randn(1, coils, *shape)
    maps = maps / maps.norm(dim=1, keepdim=True)
    x = randn(1, *shape, seed=1)
    mask = MASKS["random"](shape, 2, calibration=4, seed=0)
    kspace = sense(mask, maps)(x)
    sigma = covariance(coils)
    W, L = whitener(sigma), noise_factor(sigma)
    arbitrary = randn(1, 1, *shape, seed=2)  # what an estimate of maps from whitened data leaves open
    calibration = fftc(maps[0] * x, (-2, -1))
    reference = as_measured(maps, identity(coils), calibration)
    whitened = as_measured(apply_coil_matrix(W, maps) * arbitrary, L, calibration)
    assert torch.allclose(apply_coil_matrix(L, whitened), reference, atol=1e-10)  # float64 rounding
    expected = least_squares(mask, reference, kspace, 300)
    result = least_squares(mask, whitened, apply_coil_matrix(W, kspace), 300)
    assert (result - expected).norm() < 1e-5 * expected.norm()  # conjugate gradients stop at 1e-7, condition some tens


@pytest.mark.parametrize("name", BRAINS)
@pytest.mark.parametrize("acceleration", [1, 2])
def test_whitening_keeps_the_measured_image(data_dir: Path, name: str, acceleration: int) -> None:
    """Maps estimated on whitened data give the same image, magnitude and phase, up to the weights of the noise.

    The whitened least squares have least variance (Gauss-Markov), so any change by weights is below the noise.
    """
    kspace = kspace_of(data_dir, name)
    shape = tuple(kspace.shape[-2:])
    mask = full(kspace) if acceleration == 1 else MASKS["equispaced"](shape, acceleration, seed=0)
    calibration = calibration_of(kspace * mask, mask)
    sigma = noise_covariance(kspace * mask, mask, readout_axis=READOUT).covariance
    W, L = whitener(sigma), noise_factor(sigma)

    maps = espirit(calibration, shape).maps
    maps_white = as_measured(espirit(apply_coil_matrix(W, calibration), shape).maps, L, calibration)
    x = least_squares(mask, maps, kspace)
    x_white = least_squares(mask, maps_white, apply_coil_matrix(W, kspace * mask))
    noise = least_squares(mask, maps_white, randn(len(kspace), *shape, dtype=torch.complex64))

    both = (maps[0].abs().sum(0) > 0) & (maps_white[0].abs().sum(0) > 0)  # their crops differ by some edge pixels
    assert both.sum() > 0.3 * both.numel()
    x, x_white, noise = x[both], x_white[both], noise[both]
    assert (x_white - x).norm() < 0.6 * noise.norm()  # 0.31 to 0.45
    if acceleration == 1:  # where noise is not amplified
        assert psnr(x_white.abs(), x.abs()) > 45  # 48.7 and 56.7
        assert psnr(x_white, x) > 45  # 45.4 and 53.6


# Compression


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_compressed_noise_stays_white(dtype: torch.dtype) -> None:
    kspace = randn(2, 6, 24, 20, dtype=dtype) * torch.arange(1, 7)[:, None, None]
    mask = MASKS["random"]((24, 20), 2, seed=0)
    V = svd_compression(kspace * mask, 4)
    G = geometric_compression(kspace * mask, mask, 4, readout_axis=READOUT)
    tolerance = 50 * torch.finfo(dtype).eps  # products of orthonormal rows of 6 coils
    assert V.shape == (4, 6)
    assert G.shape == (24, 4, 6)
    assert V.dtype == G.dtype == dtype
    unit = identity(4).to(dtype)
    assert torch.allclose(V @ V.mH, unit, atol=tolerance)
    assert torch.allclose(G @ G.mH, unit.expand(24, 4, 4), atol=tolerance)


def test_svd_compression_holds_the_rank_exactly() -> None:
    mixing = randn(6, 3)
    kspace = torch.einsum("ck,kyx->cyx", mixing, randn(3, 20, 16, seed=1))
    V = svd_compression(kspace, 3)
    assert torch.allclose(apply_coil_matrix(V.mH, apply_coil_matrix(V, kspace)), kspace, atol=1e-10)
    lost = kspace - apply_coil_matrix(svd_compression(kspace, 2).mH @ svd_compression(kspace, 2), kspace)
    assert lost.norm() > 0.01 * kspace.norm()
    energy = apply_coil_matrix(V, kspace).norm(dim=(-2, -1))
    assert (energy.diff() <= 0).all()


def test_geometric_compression_keeps_more_than_svd(data_dir: Path) -> None:
    kspace = kspace_of(data_dir, "brain_8ch.h5")
    mask = full(kspace)
    white = apply_coil_matrix(whitener(noise_covariance(kspace, mask, readout_axis=READOUT).covariance), kspace)
    V, G = svd_compression(white, 4), geometric_compression(white, mask, 4, readout_axis=READOUT)
    hybrid = ifftc(white, (READOUT,))
    noise = 2 * 4 * mask.numel()  # of the four coils left out
    total = white.norm() ** 2 - 2 * noise
    lost_svd = (white.norm() ** 2 - apply_coil_matrix(V, white).norm() ** 2 - noise) / total
    lost_geometric = (hybrid.norm() ** 2 - apply_coil_matrix(G, hybrid, axis=READOUT).norm() ** 2 - noise) / total
    assert lost_svd > 0.015  # 0.0221
    assert lost_geometric.abs() < 1e-3  # -0.00004
    # Alignment: from one position to the next the virtual coils turn by little wherever there is signal.
    turn = torch.linalg.matrix_norm(G[1:] @ G[:-1].mH - torch.eye(4), ord=2)[40:190]
    assert turn.max() < 0.1  # bases of separate decompositions turn by 1 to 2


def test_geometric_compression_keeps_the_image(data_dir: Path) -> None:
    kspace = kspace_of(data_dir, "brain_8ch.h5")
    mask = full(kspace)
    shape = tuple(mask.shape)
    sigma = noise_covariance(kspace, mask, readout_axis=READOUT).covariance
    W, L = whitener(sigma), noise_factor(sigma)
    white = apply_coil_matrix(W, kspace)
    calibration = calibration_of(kspace, mask)

    maps = as_measured(espirit(calibration_of(white, mask), shape).maps, L, calibration)
    x = least_squares(mask, maps, white)
    G = geometric_compression(white, mask, 5, readout_axis=READOUT)
    few = fftc(apply_coil_matrix(G, ifftc(white, (READOUT,)), axis=READOUT), (READOUT,))
    factor = L @ G.mH
    maps_few = as_measured(espirit(calibration_of(few, mask), shape).maps, factor, calibration, axis=READOUT)
    x_few = least_squares(mask, maps_few, few)
    both = (maps[0].abs().sum(0) > 0) & (maps_few[0].abs().sum(0) > 0) & (x.abs() > 0.1 * x.abs().max())
    assert psnr(x_few.abs()[both], x.abs()[both]) > 45


def test_number_of_virtual_coils(data_dir: Path) -> None:
    kspace = kspace_of(data_dir, "brain_8ch.h5")
    mask = MASKS["random"](tuple(kspace.shape[-2:]), 4, seed=0)
    kspace = kspace * mask
    white = apply_coil_matrix(whitener(noise_covariance(kspace, mask, readout_axis=READOUT).covariance), kspace)
    assert virtual_coils(white, mask, energy=0.9) < virtual_coils(white, mask, energy=0.999) <= 8
    assert virtual_coils(white, mask, energy=0.999, readout_axis=READOUT) < virtual_coils(white, mask, energy=0.999)
    noise = randn(8, *mask.shape) * mask
    signal = torch.einsum("ck,kyx->cyx", randn(8, 2, seed=1), 10 * randn(2, *mask.shape, seed=2)) * mask
    assert virtual_coils(signal + noise, mask, energy=0.999) == 2  # noise is 0.4 % of the energy, and does not count


def test_asking_more_coils_than_there_are_is_refused() -> None:
    kspace = randn(4, 8, 8)
    for ask in (5, 0):
        with pytest.raises(InputError, match=f"expected 1 to 4 virtual coils .* got {ask}"):
            svd_compression(kspace, ask)
        with pytest.raises(InputError, match=f"expected 1 to 4 virtual coils .* got {ask}"):
            geometric_compression(kspace, full(kspace), ask, readout_axis=READOUT)


def test_geometric_compression_needs_whole_readouts() -> None:
    kspace = randn(4, 16, 16)
    with pytest.raises(InputError, match="whole readout lines"):
        geometric_compression(kspace, MASKS["random"]((16, 16), 2, axis=READOUT), 2, readout_axis=READOUT)
    with pytest.raises(InputError, match="odd number"):
        geometric_compression(kspace, full(kspace), 2, readout_axis=READOUT, window=4)


def test_bad_energy_and_zero_data_are_refused() -> None:
    kspace = randn(4, 8, 8)
    with pytest.raises(InputError, match="between 0 and 1"):
        virtual_coils(kspace, full(kspace), energy=1.0)
    with pytest.raises(InputError, match="zeros only"):
        virtual_coils(torch.zeros_like(kspace), full(kspace))


@pytest.mark.parametrize("coil_axis", [-3, -4])
def test_coil_matrix_is_a_loop_over_samples(coil_axis: int) -> None:
    data = randn(3, 4, 5, 6).movedim(1, coil_axis)
    matrix, matrices = randn(2, 4, seed=1), randn(6, 2, 4, seed=2)
    moved = data.movedim(coil_axis, 0)
    expected = torch.stack([sum(row[c] * moved[c] for c in range(4)) for row in matrix]).movedim(0, coil_axis)
    assert torch.allclose(apply_coil_matrix(matrix, data, coil_axis=coil_axis), expected)
    along = apply_coil_matrix(matrices, data, coil_axis=coil_axis, axis=-1)
    for n in range(6):
        one = apply_coil_matrix(matrices[n], data[..., n : n + 1], coil_axis=coil_axis)
        assert torch.allclose(along[..., n : n + 1], one)


def test_coil_matrix_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a matrix \(new coil, 4\).* got \(3, 5\)"):
        apply_coil_matrix(randn(3, 5), randn(4, 8, 8))
    with pytest.raises(InputError, match=r"expected a matrix \(8, new coil, 4\)"):
        apply_coil_matrix(randn(7, 3, 4), randn(4, 8, 6), axis=-2)


# Readout


@pytest.mark.parametrize(("n", "size"), [(32, 16), (33, 16), (32, 15), (33, 17), (16, 16)])
def test_removing_oversampling_crops_the_image(n: int, size: int) -> None:
    """DC stays at index size // 2 and image values stay, whatever the parity."""
    image = randn(2, 3, n, 12)
    kspace = remove_readout_oversampling(fftc(image, (-2, -1)), readout_axis=-2, size=size)
    start = n // 2 - size // 2
    assert torch.allclose(ifftc(kspace, (-2, -1)), image[..., start : start + size, :], atol=1e-12)


def test_removing_oversampling_keeps_noise_white() -> None:
    """The map of noise is a part of a unitary matrix: its rows are orthonormal."""
    basis = torch.eye(24, dtype=torch.complex128)[..., None]  # (sample, readout, 1)
    rows = remove_readout_oversampling(basis, readout_axis=-2, size=12)[..., 0].mT
    assert torch.allclose(rows @ rows.mH, identity(12), atol=1e-12)


@pytest.mark.parametrize("size", [0, 17])
def test_a_readout_longer_than_measured_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"expected 1 to 16 .* got {size}"):
        remove_readout_oversampling(randn(4, 16, 8), readout_axis=-2, size=size)
