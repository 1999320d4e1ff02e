"""Simulated scans: fields, Fourier samples and noise against closed forms, and what the pipeline makes of a scan."""

import itertools
import math
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from scipy.special import ellipe, ellipk
from torch import Tensor
from typer.testing import CliRunner

import recon
from operators.fourier import ifftc
from recon.anatomy import Anatomy, slice_heights, sphere_field
from recon.biot_savart import loop_field
from recon.cli import app
from recon.errors import InputError, ResultExistsError
from recon.io.scan_writer import write_scan
from recon.metrics import fit_scale, nmse_scaled, object_mask
from recon.mri import MRIScan
from recon.simulation import fourier_samples, noise_correlation, simulate
from recon.training_images import Volume

F64 = torch.float64
SMALL = {"shape": (40, 32), "pixel": 5.0, "thickness": 5.0, "coils": 4}


def head() -> Volume:
    """A head of 5 labels on 30 x 36 x 30 voxels of 5 mm: scalp, fluid, cortex, white matter, air."""
    z, y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in (30, 36, 30)), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    data = np.zeros(radius.shape, np.uint8)
    for label, size in enumerate((1.0, 0.88, 0.8, 0.6), start=1):
        data[radius < size] = label
    return Volume(data, (5.0, 5.0, 5.0), tissues=(0, 5, 4, 2, 1))


# Coils


@pytest.mark.parametrize("normal", [(1.0, 0.0, 0.0), (0.0, 0.6, 0.8), (2 / 3, -2 / 3, 1 / 3)])
def test_field_on_the_axis_of_a_loop(normal: tuple[float, float, float]) -> None:
    n, centre, radius = torch.tensor(normal, dtype=F64), torch.tensor([3.0, -7.0, 11.0], dtype=F64), 40.0
    z = torch.linspace(-90, 90, 13, dtype=F64)
    expected = 2 * math.pi * radius**2 / (radius**2 + z**2) ** 1.5
    found = loop_field(centre + z[:, None] * n, centre, n, radius)
    torch.testing.assert_close(found, expected[:, None] * n, rtol=1e-12, atol=1e-15)  # rounding


def test_field_off_the_axis_is_that_of_elliptic_integrals() -> None:
    radius = 1.0
    rho, z = np.meshgrid([0.2, 0.5, 1.7, 3.0], [-0.8, 0.6, 1.5])
    m = 4 * radius * rho / ((radius + rho) ** 2 + z**2)
    front, inner = 2 / np.sqrt((radius + rho) ** 2 + z**2), (radius - rho) ** 2 + z**2
    axial = front * (ellipk(m) + (radius**2 - rho**2 - z**2) / inner * ellipe(m))
    radial = front * z / rho * (-ellipk(m) + (radius**2 + rho**2 + z**2) / inner * ellipe(m))
    points = torch.from_numpy(np.stack([z, rho, 0 * rho], -1))  # the normal along the first axis
    normal = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    expected = torch.from_numpy(np.stack([axial, radial, 0 * rho], -1))
    # The rule converges exponentially: half a radius from the wire 32 segments give 1e-6, 96 rounding.
    for segments, tolerance in ((32, 1e-5), (96, 1e-12)):
        found = loop_field(points, torch.zeros(3, dtype=F64), normal, radius, segments=segments)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_noise_correlation_is_that_of_two_alike_coils() -> None:
    fields = torch.ones(2, 10, dtype=torch.complex128) * torch.tensor([[1.0], [3j]])
    found = noise_correlation(fields @ fields.mH)
    torch.testing.assert_close(found, torch.tensor([[1, -0.5j], [0.5j, 1]], dtype=torch.complex128))


# The object


def test_field_of_a_sphere_of_air() -> None:
    place = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    magic = math.acos(1 / math.sqrt(3))
    offsets = [(10, 0, 0), (0, 10, 0), (20, 0, 0), (20 * math.cos(magic), 0, 20 * math.sin(magic)), (0, 0, 5)]
    found = sphere_field(place + torch.tensor(offsets, dtype=F64), place, 10.0)
    pole = 2 * 42.577e6 * 3 * 9.4e-6 / 3  # Hz
    torch.testing.assert_close(found, torch.tensor([pole, -pole / 2, pole / 8, 0, 0], dtype=F64), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("shape", "factor"), [((16, 20), 2), ((15, 18), 3)])
def test_fourier_samples_of_a_rectangle(shape: tuple[int, int], factor: int) -> None:
    fine = (factor * shape[0], factor * shape[1])
    cells = torch.zeros(fine, dtype=torch.complex128)
    cells[5:20, 9:13] = 2 - 1j  # edges anywhere on the fine grid
    expected = torch.tensor(2 - 1j, dtype=torch.complex128)
    for (first, last), n, m, axis in zip(((5, 20), (9, 13)), fine, shape, (-1, 0), strict=True):
        k = torch.arange(m, dtype=F64) - m // 2
        low, high = ((edge - 0.5 - n // 2) / n for edge in (first, last))  # fractions of the field of view
        phase = torch.polar(torch.ones_like(k), -math.pi * k * (low + high))
        expected = expected * ((high - low) * torch.sinc(k * (high - low)) * phase * math.sqrt(m)).unsqueeze(axis)
    torch.testing.assert_close(fourier_samples(cells, shape), expected, rtol=1e-11, atol=1e-13)  # rounding


def test_cells_must_be_a_multiple() -> None:
    with pytest.raises(InputError, match="whole multiple of \\(16, 16\\), got \\(40, 32\\)"):
        fourier_samples(torch.zeros(40, 32, dtype=torch.complex64), (16, 16))


def test_labels_do_not_mix_within_a_cell() -> None:
    volume = head()
    anatomy = Anatomy(volume, [75.0], rng=np.random.default_rng(0))
    assert anatomy.brightness is not None
    points = torch.stack(torch.meshgrid(torch.tensor([75.0]), *[torch.linspace(-95, 95, 150)] * 2, indexing="ij"), -1)
    values = anatomy._magnitude(points[0])
    assert set(values.unique().tolist()) <= set(anatomy.brightness.tolist())
    scalp = 5 * 36 / 2.2 * np.sqrt(1 - ((75 / 5) * 2.2 / 29 - 1.1) ** 2)  # half extent of the head at this height
    assert anatomy.half_extent[0] == pytest.approx(scalp, abs=5)  # a voxel
    area = float((values > 0).double().mean()) * 190**2
    assert area == pytest.approx(math.pi * anatomy.half_extent[0] * anatomy.half_extent[1], rel=0.1)


def test_magnitude_volumes_keep_their_brightness() -> None:
    data = np.zeros((12, 20, 20), np.float16)
    data[:, 4:16, 5:15] = 0.7
    anatomy = Anatomy(Volume(data, (4.0, 4.0, 4.0)), [20.0], rng=np.random.default_rng(0))
    points = torch.stack(
        (torch.full((9, 9), 20.0), *torch.meshgrid(*[torch.linspace(-9, 9, 9)] * 2, indexing="ij")), -1
    )
    torch.testing.assert_close(anatomy._magnitude(points), torch.full((9, 9), 0.7), rtol=1e-3, atol=0)  # float16


def test_heights_lie_where_the_brain_is() -> None:
    volume = head()  # the brain's radius is 0.8 of 1.1 half extents of 72.5 mm: half its area at 0.57 of that
    low, high = (slice_heights(volume, 1, position, 5.0)[0] for position in (0.0, 1.0))
    middle, expected = 72.5, 0.8 / math.sqrt(2) * 72.5 / 1.1
    assert (middle - low, high - middle) == pytest.approx((expected, expected), abs=5)  # a voxel
    assert np.diff(slice_heights(volume, 3, 0.5, 4.0)).tolist() == [4.0, 4.0]


# Scans


def test_a_scan_is_reproducible_and_says_what_it_is() -> None:
    state = torch.get_rng_state()
    scan, again, other = (simulate(head(), **SMALL, slices=2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(scan.kspace, again.kspace)
    assert not torch.allclose(scan.kspace, other.kspace)
    assert scan.kspace.shape == (2, 4, 40, 32)
    assert scan.fully_sampled
    assert scan.voxel_size == (5.0, 5.0, 5.0)
    assert scan.reference.shape == (2, 40, 32)
    assert float(scan.reference.quantile(0.99)) == pytest.approx(1, abs=1e-5)


def test_noise_is_of_the_level_that_was_asked_and_recorded() -> None:
    scan, silent = (simulate(head(), **SMALL, slices=3, noise=noise) for noise in (0.02, 0.0))
    assert silent.noise is None
    assert torch.equal(scan.reference, silent.reference)  # the truth is free of noise
    noise = (scan.kspace - silent.kspace).transpose(0, 1).flatten(1)
    found, recorded = noise @ noise.mH / noise.shape[1] / 2, scan.noise @ scan.noise.mH / scan.noise.shape[1] / 2
    # 3840 and 4096 complex samples: a variance is known to 1 / sqrt(n) = 1.6 %, and four of that are allowed.
    for covariance in (found, recorded):
        torch.testing.assert_close(covariance.diagonal().real, torch.full((4,), 0.02**2), rtol=0.065, atol=0)
    assert float((found - recorded).abs().max()) < 0.09 * 0.02**2  # four times sqrt(2) of 1.6 %
    neighbours = (found / found[0, 0].real).abs()[0, 1]
    assert 0.1 < neighbours < 0.5  # coils share noise


def rss(scan: MRIScan) -> Tensor:
    return torch.linalg.vector_norm(ifftc(torch.as_tensor(scan.kspace[:]), (-2, -1)), dim=1)


def test_reconstruction_of_all_the_data_is_near_the_truth_but_not_it() -> None:
    scan = simulate(head(), **SMALL, noise=0.002, seed=1)
    result = recon.reconstruct(scan, method="zero-filled")
    assert result.reference is not None
    inside = object_mask(scan.reference)
    error = nmse_scaled(scan.reference, result.mean, inside)
    # Noise leaves 0.002^2 * 2 / (mean square) < 1e-4 of it; the maps are estimated, and the truth knows none: below
    # 1e-6 the model of the reconstruction would have made the data.
    assert 1e-6 < error < 2e-3
    assert fit_scale(scan.reference, result.mean, inside) == pytest.approx(1, abs=0.02)  # in the same units


def test_the_object_does_not_depend_on_the_grid_that_it_is_made_on() -> None:
    grids = [simulate(head(), **SMALL, noise=0, oversampling=n, seed=2).reference for n in (2, 4, 8)]
    coarse, fine = (float((a - b).norm() / b.norm()) for a, b in itertools.pairwise(grids))
    assert 2 * fine < coarse < 0.08  # borders fall into cells: an error in proportion to their size, or smaller


def test_the_noise_of_a_scan_is_found_by_the_pipeline() -> None:
    scan = simulate(head(), **SMALL, noise=0.01)
    estimate = recon.mri.noise_of(scan)
    assert "noise scan" in estimate.source
    torch.testing.assert_close(estimate.covariance.diagonal().real, torch.full((4,), 1e-4), rtol=0.065, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"oversampling": 1}, "oversampling: expected at least 2"),
        ({"shape": (4, 32)}, "shape: expected two sizes of at least 16, got \\(4, 32\\)"),
        ({"coils": 0}, "coils: expected at least 1, got 0"),
        ({"noise": -0.1}, "noise: expected a finite number, 0 or more"),
        ({"position": 1.5}, "position: expected 0 to 1"),
        ({"pixel": 0.0}, "pixel: expected mm, above 0"),
        ({"thickness": 0.0}, "thickness: expected mm, above 0"),
        ({"slices": 0}, "slices: expected at least 1"),
        ({"slices": 50}, "leave the volume of 150 mm; take fewer or thinner"),
        ({"shape": (24, 24)}, "reaches the edge of the field of view of 120 x 120 mm; give more pixels"),
    ],
)
def test_what_cannot_be_simulated_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(head(), **(SMALL | wrong))  # type: ignore[arg-type]


def test_a_volume_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="zeros only"):
        simulate(Volume(np.zeros((8, 8, 8), np.float16), (1.0, 1.0, 1.0)))


# Files


def test_a_scan_is_read_as_it_was_written(tmp_path: Path) -> None:
    scan = simulate(head(), **(SMALL | {"pixel": 4.9}), slices=2, name="head")
    write_scan(tmp_path / "head.h5", scan)
    found = recon.load(tmp_path / "head.h5")
    assert torch.equal(torch.as_tensor(found.kspace[:]), scan.kspace)
    assert torch.equal(torch.as_tensor(found.reference[:]), scan.reference)
    assert torch.equal(found.noise, scan.noise)
    assert found.fully_sampled
    assert found.readout_axis == -2
    assert found.voxel_size == pytest.approx((5.0, 4.9, 4.9))
    assert found.recon_shape is None
    assert found.header["simulation"] == scan.header["simulation"]
    with pytest.raises(ResultExistsError):
        write_scan(tmp_path / "head.h5", scan)


def test_columns_are_written_as_a_mask_and_points_are_refused(tmp_path: Path) -> None:
    scan = simulate(head(), **SMALL)
    mask = torch.zeros(40, 32, dtype=torch.bool)
    mask[:, ::2] = True
    write_scan(tmp_path / "lines.h5", recon.mri.undersample(scan, mask))
    assert torch.equal(recon.load(tmp_path / "lines.h5").mask, mask)
    mask[3] = False
    with pytest.raises(InputError, match="whole columns"):
        write_scan(tmp_path / "points.h5", recon.mri.undersample(scan, mask))


def nifti(path: Path, *, size: float = 5) -> Path:
    """The head with FreeSurfer's labels, as a file; voxels in mm."""
    labels = np.array([0, 507, 24, 3, 2])[head().data]
    labels[:, :, 15:] = np.where(np.isin(labels, (2, 3)), labels + 39, labels)[:, :, 15:]
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(np.int16), np.diag([size, size, size, 1])), path)
    return path


def test_the_command_writes_a_scan(tmp_path: Path) -> None:
    labels = nifti(tmp_path / "labels.nii.gz")
    out = tmp_path / "scan.h5"
    arguments = ["simulate", str(labels), "--coils", "3", "--noise", "0.02", "--shape", "40,32", "--pixel", "5"]
    result = CliRunner().invoke(app, [*arguments, "--seed", "7", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "1 slice, 3 coils, 40 x 32" in result.output
    with h5py.File(out) as file:
        assert file["kspace"].shape == (1, 3, 40, 32)
        assert "labels.nii.gz" in file.attrs["simulation"]
    result = CliRunner().invoke(app, [*arguments[:-4], "--shape", "40", "--out", str(tmp_path / "b.h5")])
    assert isinstance(result.exception, InputError)
    assert "--shape: expected Y,X" in str(result.exception)
