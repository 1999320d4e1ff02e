"""Simulated scans: photon statistics, dose, and a model finer than the one that reconstructs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from operators.ct import FanBeam, Grid, ParallelBeam, ViewVectors, XRay
from recon.ct import CTScan, logarithm, noise_of
from recon.ct_simulation import WATER, clinical_fan, low_dose, photon_counts, simulate, strip_integrals, thin
from recon.errors import InputError, ReconError
from recon.io import from_projections

N = 200_000  # samples: variances are known to sqrt(2 / N) = 0.3 %, tests allow 4 times that


def test_photons_are_poisson_with_electronic_noise() -> None:
    p = torch.full((N,), 2.0, dtype=torch.float64)
    expected = 1000 * math.exp(-2)
    counts = photon_counts(p, 1000.0, seed=1)
    assert float(counts.mean()) == pytest.approx(expected, rel=4 / math.sqrt(N * expected))
    assert float(counts.var()) == pytest.approx(expected, rel=0.013)
    assert torch.equal(counts, counts.round())
    noisy = photon_counts(p, 1000.0, seed=1, electronic=20.0)
    assert float(noisy.var()) == pytest.approx(expected + 400, rel=0.013)
    assert torch.equal(counts, photon_counts(p, 1000.0, seed=1))
    assert not torch.equal(counts, photon_counts(p, 1000.0, seed=2))


def test_thinned_photons_are_poisson_of_the_fraction() -> None:
    counts = photon_counts(torch.zeros(N, dtype=torch.float64), 400.0, seed=0)
    less = thin(counts, 0.1, seed=1)
    assert float(less.mean()) == pytest.approx(40, rel=0.002)
    assert float(less.var()) == pytest.approx(40, rel=0.013)
    assert torch.equal(less, less.round())
    assert torch.equal(thin(counts, 1.0, seed=1), counts)


def test_thinning_of_a_detector_that_integrates() -> None:
    gain = 3.7  # counts a photon
    counts = gain * photon_counts(torch.zeros(N, dtype=torch.float64), 400.0, seed=0) + 1e-3
    less = thin(counts, 0.25, seed=1, gain=gain)
    assert float(less.mean()) == pytest.approx(gain * 100, rel=0.002)
    assert float(less.var()) == pytest.approx(gain**2 * 100, rel=0.013)


def test_numbers_out_of_range() -> None:
    for fraction in (0, 1.1, -1):
        with pytest.raises(InputError, match="fraction"):
            thin(torch.ones(3), fraction, seed=0)
    for photons in (0.0, 1e30, math.nan):
        with pytest.raises(InputError, match="photons"):
            photon_counts(torch.ones(3), photons, seed=0)
    for electronic in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="electronic"):
            photon_counts(torch.ones(3), 10.0, seed=0, electronic=electronic)
    with pytest.raises(InputError, match="seed: expected 0 or more, got -1"):
        photon_counts(torch.ones(3), 10.0, seed=-1)


GEOMETRY = ParallelBeam(torch.arange(40, dtype=torch.float64) * math.pi / 40, 64, 1.0)


def scan_of_counts(photons: float, *, gain: float = 1.0, dark: float = 50.0) -> CTScan:
    p = torch.full((1, 40, 64), 1.0)
    counts = gain * photon_counts(p, photons, seed=3) + dark
    flats, darks = torch.full((2, 1, 64), gain * photons + dark), torch.full((2, 1, 64), dark)
    return from_projections(counts, GEOMETRY, is_counts=True, flats=flats, darks=darks, gain=gain)


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_low_dose_of_counts(gain: float) -> None:
    scan = scan_of_counts(10000, gain=gain)
    low = low_dose(scan, 0.1, seed=1)
    assert low.flats is not None
    assert torch.allclose(low.flats, torch.tensor(gain * 1000 + 50.0))
    signal = (low.projections[:] - 50) / gain
    # 2560 bins: the mean to sqrt(368) / sqrt(2560) = 0.4, the variance to sqrt(2 / 2560) = 2.8 %
    assert float(signal.mean()) == pytest.approx(1000 / math.e, abs=1.6)
    assert float(signal.var()) == pytest.approx(1000 / math.e, rel=0.12)
    assert "0.1 of the dose; all of it: noise: " in low.notes[-1]


@pytest.mark.parametrize("is_counts", [True, False])
def test_electronic_noise_is_the_same_at_every_dose(is_counts: bool) -> None:
    """And the weights know of it: the spread of line integrals is what they say, at full dose and at a tenth."""
    counts, electronic = photon_counts(torch.full((1, 40, 64), 1.0), 10000.0, seed=3, electronic=50.0), 50.0
    scan = scan_of_counts(10000, dark=0.0) if is_counts else from_projections(-torch.log(counts / 1e4), GEOMETRY)
    projections = counts if is_counts else scan.projections[:]
    scan = replace(scan, projections=projections, photons=10000.0, electronic=electronic)
    for dose, given in ((1.0, scan), (0.1, low_dose(scan, 0.1, seed=1))):
        n = dose * 10000 / math.e
        assert given.electronic == electronic
        found = logarithm(given)
        assert float(found.values.var()) == pytest.approx((n + 2500) / n**2, rel=0.12)
        assert float(noise_of(given).weights(found.signal).median()) == pytest.approx(n**2 / (n + 2500), rel=0.05)


def test_low_dose_of_line_integrals() -> None:
    counts = photon_counts(torch.full((1, 40, 64), 1.0), 10000.0, seed=3)
    scan = from_projections(-torch.log(counts / 10000), GEOMETRY, photons=10000.0)
    low = low_dose(scan, 0.1, seed=1)
    assert low.photons == pytest.approx(1000)
    # var p = 1 / signal
    assert float(torch.as_tensor(low.projections[:]).var()) == pytest.approx(math.e / 1000, rel=0.12)
    assert torch.equal(low.projections[:], low_dose(scan, 0.1, seed=1).projections[:])
    with pytest.raises(InputError, match="fraction"):
        low_dose(scan, 2.0, seed=1)
    with pytest.raises(InputError, match="flats"):
        low_dose(replace(scan_of_counts(100), flats=None), 0.5, seed=1)


# -- A scan of an image -----------------------------------------------------------------------------------------------


def disc_hu(size: int, pixel: float, *, radius: float = 20.0, parts: int = 8) -> torch.Tensor:
    """(1, y, x) a disc of water in vacuum, off the centre; each pixel holds its mean over parts^2 points."""
    at = ((torch.arange(size * parts, dtype=torch.float64) + 0.5) / parts - size / 2) * pixel
    inside = ((at[:, None] - 4) ** 2 + (at + 6) ** 2 < radius**2).float()
    return torch.nn.functional.avg_pool2d(inside[None], parts) * 1000 - 1000


def exact(geometry: ParallelBeam, parts: int = 16) -> torch.Tensor:
    """(view, bin) -log of the mean intensity over each bin behind that disc."""
    offsets = (torch.arange(parts, dtype=torch.float64) + 0.5) / parts - 0.5
    s = (torch.arange(geometry.bins)[:, None] - (geometry.bins - 1) / 2 + offsets) * geometry.bin_size
    middle = 4 * torch.sin(geometry.angles) - 6 * torch.cos(geometry.angles)
    chord = 2 * (20.0**2 - (s - middle[:, None, None]) ** 2).clamp(min=0).sqrt()
    return -torch.log(torch.exp(-WATER * chord).mean(-1))


def test_strips_approach_the_exact_intensities() -> None:
    truth = exact(GEOMETRY)

    def error(size: int, sub_bins: int) -> float:
        image, grid = WATER * (1 + disc_hu(size, 64 / size) / 1000), Grid((size, size), 64 / size)
        return float((strip_integrals(image, GEOMETRY, grid, sub_bins=sub_bins)[0] - truth).norm() / truth.norm())

    coarse, fine = error(128, 8), error(256, 8)
    assert coarse < 3e-3  # pixels of 0.5 mm: measured 2.6e-3
    assert fine < 0.5 * coarse  # of the edge's pixels: measured 0.36, between first and second order
    assert fine < 0.3 * error(256, 1)  # one ray a bin is another model


def test_a_simulated_scan_is_not_the_projection_of_its_reference() -> None:
    grid = Grid((64, 64), 1.0)
    scan = simulate(disc_hu(128, 0.5), GEOMETRY, grid, photons=1e9, seed=0)
    assert (scan.water, scan.photons, scan.shape) == (WATER, 1e9, (64, 64))
    reference = torch.as_tensor(scan.reference[:])
    assert reference.shape == (1, 64, 64)
    assert float(reference.max()) == pytest.approx(WATER)
    own = XRay(GEOMETRY, grid)(reference)
    data = torch.as_tensor(scan.projections[:])
    crime = float((own - data).norm() / data.norm())
    assert 1e-3 < crime < 0.03  # near, but not the same
    assert float((data[0] - exact(GEOMETRY)).norm() / data.norm()) < 3e-3  # as above


def test_noise_of_a_simulated_scan() -> None:
    grid = Grid((64, 64), 1.0)
    hu = disc_hu(128, 0.5).expand(2, -1, -1)
    clean = torch.as_tensor(simulate(hu, GEOMETRY, grid, photons=1e12, seed=0).projections[:])
    scan = simulate(hu, GEOMETRY, grid, photons=1e4, seed=0)
    noise = torch.as_tensor(scan.projections[:]) - clean
    normal = noise * (1e4 * torch.exp(-clean)).sqrt()
    # 2 x 2560 bins: 2 %; the logarithm adds less than 1 % at 4000 counts
    assert float(normal.var()) == pytest.approx(1, rel=0.08)
    assert abs(float((normal[0] * normal[1]).mean())) < 0.08  # slices have streams of their own
    assert torch.equal(scan.projections[:], simulate(hu, GEOMETRY, grid, photons=1e4, seed=0).projections[:])


def test_sub_views_are_the_mean_intensity_of_a_step() -> None:
    geometry = ParallelBeam(torch.arange(10, dtype=torch.float64) * math.pi / 10, 64, 1.0)
    step = (torch.arange(24, dtype=torch.float64) + 0.5) / 24 - 0.5
    turned = [replace(geometry, angles=geometry.angles + float(part) * math.pi / 10) for part in step]
    truth = -torch.log(torch.stack([torch.exp(-exact(part)) for part in turned]).mean(0))
    image, grid = WATER * (1 + disc_hu(128, 0.5) / 1000), Grid((128, 128), 0.5)
    errors = [
        float((strip_integrals(image, geometry, grid, sub_views=n)[0] - truth).norm() / truth.norm()) for n in (1, 8)
    ]
    assert errors[1] < 5e-3  # eight angles for a step of 18 degrees, pixels of 0.5 mm
    assert errors[0] > 5 * errors[1]  # a gantry that stops


def test_an_image_of_the_grid_is_refined_first() -> None:
    scan = simulate(disc_hu(64, 1.0), GEOMETRY, Grid((64, 64), 1.0), photons=1e9, seed=0)
    data = torch.as_tensor(scan.projections[:])
    assert float((data[0] - exact(GEOMETRY)).norm() / data.norm()) < 0.02  # a disc of pixels of 1 mm, interpolated
    assert scan.shape == (64, 64)


def test_what_cannot_be_simulated() -> None:
    grid, hu = Grid((64, 64), 1.0), disc_hu(64, 1.0)
    scan = simulate(hu - 100, GEOMETRY, grid, photons=1e5, seed=0)
    assert any("below -1000" in note for note in scan.notes)
    with pytest.raises(InputError, match="divides"):
        simulate(hu, GEOMETRY, Grid((48, 48), 1.0), photons=1e5, seed=0)
    with pytest.raises(InputError, match="along both axes or along none"):
        simulate(hu, GEOMETRY, Grid((64, 32), 1.0), photons=1e5, seed=0)
    with pytest.raises(InputError, match="finite"):
        simulate(hu * math.nan, GEOMETRY, grid, photons=1e5, seed=0)
    with pytest.raises(InputError, match="1/mm"):
        simulate(hu, GEOMETRY, grid, photons=1e5, seed=0, water=0.2)
    with pytest.raises(InputError, match="sub_bins"):
        simulate(hu, GEOMETRY, grid, photons=1e5, seed=0, sub_bins=0)
    vectors = ViewVectors(torch.tensor([[90.0, 0]]), torch.tensor([[0, 1.0]]), 64, direction=torch.tensor([[1.0, 0]]))
    assert simulate(hu, vectors, grid, photons=1e5, seed=0).projections.shape == (1, 1, 64)
    with pytest.raises(InputError, match="sub_views"):
        simulate(hu, vectors, grid, photons=1e5, seed=0, sub_views=2)


def test_a_head_from_its_dicom_series(data_dir: Path) -> None:
    from recon.io.dicom import read_images

    images = read_images(data_dir / "ct" / "dcm_qa_ct_GE_head_28.tar.xz")
    grid = Grid((128, 128), 4 * images.pixel_size[0])
    geometry = FanBeam(torch.arange(60, dtype=torch.float64) * math.pi / 30, 256, 1.9, 541.0, 949.075)
    scan = simulate(images.hu[12:13], geometry, grid, photons=1e5, seed=0)
    data = torch.as_tensor(scan.projections[:])
    # the object is seen whole: its edges' bins read air
    assert float(data[..., [0, -1]].abs().max()) < 0.05
    assert 3 < float(data.max()) < 8  # a head of 20 cm and bone


def test_a_series_becomes_a_scan_on_the_command_line(tmp_path: Path) -> None:
    import pydicom
    from typer.testing import CliRunner

    from recon.cli import app
    from recon.io import load
    from recon.io.dicom_writer import write_series

    folder = tmp_path / "series"
    first, *_ = write_series(folder, disc_hu(128, 0.5).expand(3, -1, -1), voxel_size=(2.0, 0.5, 0.5))
    write_series(folder / "scout", torch.zeros(1, 8, 8), voxel_size=(1.0, 1.0, 1.0))
    arguments = ["simulate-ct", str(folder), "--shape", "64,64", "--views", "24", "--slices", "1:3", "--photons", "1e9"]
    mixed = CliRunner().invoke(app, arguments)
    assert "came 2 mixed" in str(mixed.exception)
    arguments += ["--series", pydicom.dcmread(first).SeriesInstanceUID]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "scan.npz")])
    assert result.exit_code == 0, result.output
    scan = load(tmp_path / "scan.npz")
    assert isinstance(scan, CTScan)
    assert (len(scan), scan.geometry.views, scan.shape, scan.voxel_size) == (2, 24, (64, 64), (2.0, 1.0, 1.0))
    assert any("Simulated from an image in HU" in note for note in scan.notes)
    own = XRay(scan.geometry, scan.grid)(torch.as_tensor(scan.reference[:]))
    data = torch.as_tensor(scan.projections[:])
    # the same object; three angles in steps of 15 degrees make another model of it
    assert 1e-3 < float((own - data).norm() / data.norm()) < 0.2
    assert float(data[..., [0, -1]].abs().max()) < 0.01


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "there.npz"], "came an existing one"),
        (["--out", "scan.h5"], "ends in .npz"),
        (["--electronic", "nan"], "electronic: expected"),
        (["--photons", "1e30"], "photons: expected"),
        (["--seed", "-1"], "seed: expected 0 or more"),
        (["--shape", "8,4"], "along both axes or along none"),
        (["--shape", "0,8"], "at least 1 pixel"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    from typer.testing import CliRunner

    from recon import ct_simulation
    from recon.cli import app
    from recon.io.dicom_writer import write_series

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ct_simulation, "strip_integrals", None)  # the work
    write_series("series", disc_hu(8, 8.0), voxel_size=(2.0, 8.0, 8.0))
    Path("there.npz").touch()
    result = CliRunner().invoke(app, ["simulate-ct", "series", "--shape", "8,8", *arguments])
    assert isinstance(result.exception, ReconError)
    assert said in str(result.exception)
    assert not Path("scan.npz").exists()


def test_a_clinical_fan_has_views_and_stays_clear_of_its_source() -> None:
    with pytest.raises(InputError, match="views: expected at least 1, got 0"):
        clinical_fan(Grid((64, 64), 1.0), views=0)
    with pytest.raises(InputError, match=r"image: expected a radius below 487 mm, .* got 653 mm"):
        clinical_fan(Grid((64, 64), 20.0), views=9)
