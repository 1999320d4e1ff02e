"""From a scan to its likelihood: preparation against images known in advance."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from operators.fourier import fftc, ifftc
from operators.masks import MASKS, calibration_region
from recon.errors import InputError
from recon.methods.classical import cg_sense
from recon.methods.zero_filled import root_sum_of_squares, zero_filled
from recon.mri import (
    MRIScan,
    PreparedMRI,
    centre,
    intensity_scale,
    likelihood,
    noise_of,
    prepare,
    undersample,
)
from recon.noise_level import NoiseEstimate
from recon.phantom import head


def image(prepared: PreparedMRI) -> Tensor:
    """(set, y, x) zero-filled, in the units of the data."""
    return prepared.image(zero_filled(likelihood(prepared)))[0]


def coil_images(scan: MRIScan) -> Tensor:
    return ifftc(torch.as_tensor(scan.kspace[:])[0], (-2, -1))


def white(coils: int, level: float = 0.01) -> NoiseEstimate:
    return NoiseEstimate(level**2 * torch.eye(coils, dtype=torch.complex64), "known")


def psnr(x: Tensor, reference: Tensor) -> float:
    return float(20 * torch.log10(reference.abs().max() / (x - reference).abs().square().mean().sqrt()))


# The image


@pytest.mark.parametrize("shape", [(64, 64), (57, 70)])
def test_full_data_without_noise_give_the_image_back(shape: tuple[int, int]) -> None:
    """Inside the maps S^H S x is the root sum of squares of the coils as measured, scale undone."""
    scan = head(shape, coils=4, noise=0)
    prepared = prepare(scan)
    x = image(prepared)[0].abs()
    expected = torch.linalg.vector_norm(coil_images(scan), dim=0)
    inside = prepared.sens_maps[0, 0].abs().sum(0) > 0
    assert inside.float().mean() > 0.4  # the head fills half of the field of view
    assert psnr(x[inside], expected[inside]) > 45  # errors of the maps at the skull; 55 to 57


def test_one_coil_is_its_own_image() -> None:
    scan = head((48, 40), coils=1)
    prepared = prepare(scan)
    expected = coil_images(scan)[0]
    assert (image(prepared)[0] - expected).norm() < 1e-5 * expected.norm()  # magnitude and phase; float32 rounding
    rss = prepared.image(root_sum_of_squares(prepared))[0, 0]
    assert (rss - expected.abs()).norm() < 1e-5 * expected.norm()


def test_the_root_sum_of_squares_is_that_of_the_coils_as_measured() -> None:
    scan = head((48, 40), coils=5)
    prepared = prepare(scan, coils=3)
    expected = torch.linalg.vector_norm(coil_images(scan), dim=0)
    assert (prepared.image(root_sum_of_squares(prepared))[0, 0] - expected).norm() < 1e-5 * expected.norm()


def test_noise_is_1_in_what_is_prepared() -> None:
    """Correlated noise of uneven gains, known in advance."""
    coils = 4
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(coils, coils, dtype=torch.complex64, generator=generator) + torch.diag(
        torch.tensor([1.0, 2.0, 3.0, 9.0])
    )
    covariance = mixing @ mixing.mH
    scan = head((64, 64), coils=coils, noise=0)
    noise = 2**0.5 * torch.randn(scan.kspace.shape, dtype=torch.complex64, generator=generator)
    noise = torch.einsum("ij,bjyx->biyx", torch.linalg.cholesky(covariance), noise)
    known = NoiseEstimate(covariance, "known")
    noisy, silent = (prepare(replace(scan, kspace=100 * scan.kspace + n), noise=known) for n in (noise, 0 * noise))
    left = torch.view_as_real(noisy.kspace - silent.kspace)
    assert left.std() == pytest.approx(1, rel=0.02)  # 32768 numbers: 5 standard errors of 0.4 %
    between = torch.corrcoef((noisy.kspace - silent.kspace)[0].flatten(1)).abs() - torch.eye(coils)
    assert between.max() < 0.1  # 4096 numbers: 6 standard errors of 1.6 %


def test_the_model_explains_the_data_to_the_noise() -> None:
    """Residual of the image of full data: (coils - 1) / coils of the energy of the noise is left."""
    scan = head((96, 96), coils=6)
    prepared = prepare(scan, noise=white(6))
    residual = likelihood(prepared).nll(zero_filled(likelihood(prepared))).sum()
    per_sample = float(residual) / (prepared.kspace.numel() * 5 / 6)
    assert 0.97 < per_sample < 1.3  # 1 for noise alone; the edges of the maps add to it


@pytest.mark.parametrize(
    ("readout_axis", "lowest"), [(-2, {6: 54, 5: 54, 4: 53, 3: 50}), (None, {6: 48, 5: 42, 4: 36})]
)
def test_virtual_coils_keep_the_image(readout_axis: int | None, lowest: dict[int, float]) -> None:
    """Position by position along whole readout lines, where fewer virtual coils do; else the same for all."""
    scan = replace(head((96, 96), coils=8), readout_axis=readout_axis)
    full = image(prepare(scan))
    for coils, decibels in lowest.items():  # smooth fields of eight dipoles: 61, 61, 60, 57 and 54, 48, 41
        prepared = prepare(scan, coils=coils)
        assert prepared.kspace.shape[1] == prepared.sens_maps.shape[2] == coils
        assert psnr(image(prepared).abs(), full.abs()) > decibels
    assert torch.equal(image(prepare(scan, coils=8)), full)  # as many as there are: nothing to compress


@pytest.mark.parametrize("kind", ["random", "poisson"])
def test_virtual_coils_fit_undersampled_data(kind: str) -> None:
    """What was not sampled stays 0, and maps of smooth virtual coils explain the rest to the noise."""
    scan = undersample(head((96, 96), coils=8), MASKS[kind]((96, 96), 2, seed=0))
    left = []
    for coils in (8, 4):
        prepared = prepare(scan, noise=white(8), coils=coils)
        assert not prepared.kspace[..., ~prepared.mask].any()
        x = cg_sense(likelihood(prepared), regularization=1e-3, iterations=30)
        left.append(float(likelihood(prepared).nll(x).sum()) / (coils * int(prepared.mask.sum())))
    assert left[1] < 1.2 * left[0]  # 0.95 to 0.89 by lines, 0.86 to 0.73 by points: as good a fit with fewer coils


def test_two_sets_of_maps_unfold_an_image_larger_than_its_field_of_view() -> None:
    """Every second sample of k-space: the head folds onto itself everywhere, and one sensitivity cannot tell it."""
    scan = head((96, 96), coils=8)
    folded = MRIScan(
        scan.kspace[..., ::2].contiguous(), torch.ones(96, 48, dtype=torch.bool), "folded", fully_sampled=True
    )
    left = []
    for sets in (1, 2):
        prepared = prepare(folded, noise=white(8), sets=sets)
        assert prepared.sens_maps.shape == (1, sets, 8, 96, 48)
        x = cg_sense(likelihood(prepared), regularization=1e-3, iterations=30)
        assert prepared.image(x).shape == (1, sets, 96, 48)
        left.append(float(likelihood(prepared).nll(x).sum()) / prepared.kspace.numel())
    assert left[1] < 0.1 * left[0]


# Units


def test_units_come_out_as_they_went_in() -> None:
    scan = head((64, 64), coils=4)
    expected = image(prepare(scan))
    for factor in (2.0**-40, 1000.0, 1e15):  # float32 holds their squares no longer
        scaled = prepare(replace(scan, kspace=factor * scan.kspace))
        assert (image(scaled) - factor * expected).norm() < 1e-4 * factor * expected.norm()  # float32 rounding


@pytest.mark.parametrize("kind", MASKS)
def test_the_scale_is_that_of_the_full_data(kind: str) -> None:
    """To the last bit, whatever the mask, if it holds a calibration of 8: no image changes its units by a mask."""
    scan = head((96, 96), coils=2)
    mask = MASKS[kind](scan.shape, 4, seed=3)
    assert all(block.stop - block.start >= 8 for block in calibration_region(mask, longest=24))
    assert prepare(undersample(scan, mask)).scale == prepare(scan).scale


def test_the_scale_is_that_of_bright_tissue() -> None:
    shown = torch.linalg.vector_norm(coil_images(head((128, 128), coils=1)), dim=0)
    # Made for heads on average: fat beside a coil may be brighter.
    assert 0.5 < intensity_scale(head((128, 128), coils=1).kspace, (128, 128)) / float(shown.quantile(0.99)) < 2


def test_short_axes_have_a_scale() -> None:
    """Fewer samples than the centre is wide: a thin slab, a narrow image."""
    kspace = head((64, 64), coils=2).kspace
    narrow = centre(kspace, (64, 6))
    assert intensity_scale(narrow, (64, 6)) > 0
    slab = torch.stack(4 * [kspace], -3)
    # Four equal samples along z are one plane of 4 / sqrt(4) among dark ones: its 96th percentile is theirs of 99.
    assert intensity_scale(slab, (4, 64, 64)) == pytest.approx(2 * intensity_scale(kspace, (64, 64)), rel=0.1)


# Fields of view


def oversampled(scan: MRIScan, factor: int = 2) -> MRIScan:
    """The same scan with a readout (rows) of a larger field of view, empty but for noise."""
    images, rows = ifftc(torch.as_tensor(scan.kspace[:]), (-2, -1)), scan.shape[0]
    generator = torch.Generator().manual_seed(3)
    shape = (*images.shape[:-2], factor * rows, images.shape[-1])
    wide = 0.01 * 2**0.5 * torch.randn(shape, dtype=images.dtype, generator=generator)
    centre(wide, (rows, shape[-1])).copy_(images)
    mask = torch.ones(shape[-2:], dtype=torch.bool)
    return replace(scan, kspace=fftc(wide, (-2, -1)), mask=mask, recon_shape=scan.shape)


@pytest.mark.parametrize("shape", [(64, 64), (51, 48)])
def test_readout_oversampling_is_removed(shape: tuple[int, int]) -> None:
    scan = head(shape, coils=4)
    wide = oversampled(scan)
    plain, cropped = prepare(scan, noise=white(4)), prepare(wide, noise=white(4))
    assert cropped.kspace.shape == plain.kspace.shape
    assert cropped.mask.shape == shape
    assert psnr(image(cropped), image(plain)) > 100  # float32 rounding
    # The width of the centre is rounded to whole samples; a larger field of view alone would give a factor of 0.9.
    assert cropped.scale == pytest.approx(plain.scale, rel=0.02)


@pytest.mark.parametrize("kind", ["random", "poisson"])
def test_undersampled_readouts_are_removed_only_where_they_are_whole(kind: str) -> None:
    """A readout that is itself undersampled cannot be cropped before reconstruction."""
    scan = head((64, 64), coils=4, noise=0.002)
    wide = oversampled(scan)
    mask = MASKS[kind](wide.shape, 2, seed=0)
    prepared = prepare(undersample(wide, mask))
    reference = image(prepare(scan)).abs()
    x = prepared.image(cg_sense(likelihood(prepared)))[0].abs()
    assert x.shape == reference.shape
    # 10 dB are lost where the mask does not fit the data.
    assert psnr(x, reference) > {"random": 29, "poisson": 38}[kind]


@pytest.mark.parametrize(("before", "after"), [((8, 9), (5, 6)), ((9, 8), (4, 5)), ((7, 7), (7, 4)), ((8, 8), (1, 2))])
def test_the_crop_keeps_the_origin(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = torch.zeros(2, *before)
    x[:, before[0] // 2, before[1] // 2] = 1
    cropped = centre(x, after)
    assert cropped.shape == (2, *after)
    assert cropped[1, after[0] // 2, after[1] // 2] == 1


def test_the_image_has_the_size_of_the_file() -> None:
    scan = replace(head((64, 60), coils=3), recon_shape=(40, 51))
    prepared = prepare(scan)
    assert prepared.crop == (40, 51)
    assert image(prepared).shape == (1, 40, 51)
    assert prepared.kspace.shape[-2:] == (40, 60)  # rows are the readout; columns are cropped in the image
    larger = prepare(replace(scan, recon_shape=(80, 60)))
    assert larger.crop == (64, 60)  # never padded


def test_slices_are_prepared_together_or_alone() -> None:
    scans = [head((48, 48), coils=3, seed=seed) for seed in (0, 1)]
    both = replace(scans[0], kspace=torch.cat([scan.kspace for scan in scans]))
    assert len(both) == 2
    assert len(both[1:2]) == 1
    together = prepare(both, noise=white(3))
    assert together.sens_maps.shape == (2, 1, 3, 48, 48)
    x = together.image(zero_filled(likelihood(together)))
    for i in range(2):
        alone = image(prepare(both[i : i + 1], noise=white(3)))
        # One scale and one phase reference serve both slices, which differ by their noise.
        assert psnr(x[i].abs(), alone.abs()) > 60


def test_a_volume() -> None:
    """Three axes of k-space, undersampled along two of them."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 33)[:-1], torch.linspace(-1, 1, 29)[:-1], indexing="ij")
    z = torch.linspace(-1, 1, 17)[:-1, None, None]
    ball = ((z / 0.6) ** 2 + (y / 0.8) ** 2 + (x / 0.7) ** 2 < 1) * (1 + 0.5 * torch.cos(5 * x + 3 * z))
    fields = torch.stack(
        [1 / (1.5 + a * y + b * x + 1j * (b * y + c * z)) for a, b, c in ((1, 0, 1), (-1, 1, 0), (0, -1, -1))]
    )
    generator = torch.Generator().manual_seed(0)
    kspace = fftc(ball * fields, (-3, -2, -1))
    kspace = kspace + 0.005 * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    scan = MRIScan(kspace[None], torch.ones(16, 32, 28, dtype=torch.bool), "full", fully_sampled=True)
    reference = image(prepare(scan)).abs()
    mask = MASKS["poisson"]((16, 28), 2, calibration=10, seed=0)[:, None, :].expand(16, 32, 28)
    prepared = prepare(undersample(scan, mask))
    result = prepared.image(cg_sense(likelihood(prepared)))[0].abs()
    assert result.shape == (1, 16, 32, 28)
    assert psnr(result, reference) > 30


# Undersampling


def test_undersampling_keeps_what_the_mask_keeps() -> None:
    scan = head((40, 48), coils=2)
    mask = MASKS["random"](scan.shape, 3, seed=0)
    less = undersample(scan, mask)
    assert torch.equal(less.kspace, scan.kspace * mask)
    assert torch.equal(less.mask, mask)
    assert not less.fully_sampled
    assert less.readout_axis == -2
    assert undersample(scan, MASKS["poisson"](scan.shape, 3, seed=0)).readout_axis is None
    other = MASKS["random"](scan.shape, 3, seed=1)
    assert torch.equal(undersample(less, other).mask, mask & other)  # what was not measured stays so


def test_bad_masks_are_refused() -> None:
    scan = head((40, 48), coils=2)
    with pytest.raises(InputError, match=r"mask: expected shape \(40, 48\) as k-space has, got \(48, 40\)"):
        undersample(scan, torch.ones(48, 40, dtype=torch.bool))
    with pytest.raises(InputError, match="no sample is left; lower the acceleration"):
        undersample(scan, torch.zeros(40, 48, dtype=torch.bool))


# What cannot be prepared


@pytest.mark.parametrize("coils", [0, -1, 4])
def test_coils_that_are_not_there_are_refused(coils: int) -> None:
    with pytest.raises(InputError, match=f"coils: expected 1 to 3, as the scan has, got {coils}"):
        prepare(head((32, 32), coils=3), coils=coils)


@pytest.mark.parametrize(("coils", "sets"), [(1, 2), (3, 4)])
def test_sets_that_the_coils_do_not_give_are_refused(coils: int, sets: int) -> None:
    with pytest.raises(InputError, match="sets"):
        prepare(head((32, 32), coils=coils), sets=sets)


def lines(shape: Sequence[int], columns: Sequence[int]) -> Tensor:
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    mask[:, list(columns)] = True
    return mask


@pytest.mark.parametrize(
    "columns", [range(0, 32, 2), [15, *range(12), *range(20, 32)], [*range(12), 16, *range(20, 32)]]
)
def test_too_little_calibration_is_one_line(columns: Sequence[int]) -> None:
    scan = head((32, 32), coils=3)
    with pytest.raises(InputError) as caught:
        prepare(undersample(scan, lines(scan.shape, columns)))
    assert "\n" not in str(caught.value)
    assert "calibrat" in str(caught.value)


def test_a_centre_of_zeros_is_refused() -> None:
    scan = head((32, 32), coils=2)
    shifted = torch.fft.ifftshift(scan.kspace, dim=(-2, -1))
    centre(shifted, (16, 16)).zero_()
    with pytest.raises(InputError, match="is the origin at index n // 2"):
        prepare(replace(scan, kspace=shifted))


def test_the_noise_is_that_of_the_middle_slice_or_of_the_noise_scan() -> None:
    scans = [head((64, 64), coils=2, noise=noise) for noise in (0.1, 0.01, 0.1)]
    scan = replace(scans[0], kspace=torch.cat([s.kspace for s in scans]))
    # 1e-4 in the middle, 1e-2 outside; without air along the readout the estimate is an upper bound.
    assert 0.9e-4 < float(noise_of(scan).covariance[0, 0].real) < 1e-3
    noise = 0.3 * 2**0.5 * torch.randn(2, 5000, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    estimate = noise_of(replace(scan, noise=noise))
    assert float(estimate.covariance[0, 0].real) == pytest.approx(0.09, rel=0.1)  # 5000 samples: 6 standard errors
    assert "noise scan" in estimate.source
    assert estimate.source in prepare(replace(scan, noise=noise)).notes
