"""The line from projections to an image: the scan, its preparation, its likelihood, the command."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from operators.ct import XRay
from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors
from recon.benchmark.grid import make_grid
from recon.benchmark.run import benchmark
from recon.cli import app
from recon.cli.options import parse_range
from recon.ct import CTScan, PreparedCT, likelihood, mean_attenuation, noise_of, prepare
from recon.ct_undersampling import Part, choose_views, undersample
from recon.datafit import _wilcoxon
from recon.errors import InputError, ResultExistsError
from recon.io.dicom import datasets, read_images
from recon.io.numpy_projections import write
from recon.io.projection_arrays import default_grid
from recon.io.writers import DICOM, DICOM_STD, RESULT_NAMES
from recon.methods import METHODS
from recon.noise import Noise
from recon.phantom import head
from recon.pipeline import reconstruct
from recon.rotation_centre import centred

GRID = Grid((48, 40), 1.0)
ELLIPSES = [(2.0, -1.0, 17.0, 14.0, 0.02), (-5.0, 4.0, 5.0, 3.0, 0.01), (6.0, -5.0, 3.0, 4.0, -0.01)]
"""(y, x) of the middle in mm, half axes in mm, attenuation in 1/mm."""


def angles(views: int, turn: float = math.pi) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * turn / views


PARALLEL = ParallelBeam(angles(60), bins=56)
FAN = FanBeam(angles(90, 2 * math.pi), bins=72, bin_size=1.5, source_to_axis=100.0, source_to_detector=150.0)


def sinogram(geometry: Geometry) -> Tensor:
    """(view, bin) float32; exact line integrals of the ellipses."""
    points, directions = geometry.rays()
    result = torch.zeros(points.shape[:-1], dtype=torch.float64)
    for y, x, b, a, value in ELLIPSES:
        axes = torch.tensor([b, a], dtype=torch.float64)
        p, d = (points - torch.tensor([y, x])) / axes, directions / axes
        dd, pd = (d * d).sum(-1), (p * d).sum(-1)
        inside = pd**2 - dd * ((p * p).sum(-1) - 1)
        result += value * 2 * inside.clamp(min=0).sqrt() / dd * directions.norm(dim=-1)
    return result.float()


@pytest.mark.parametrize("geometry", [PARALLEL, FAN])
def test_likelihood_is_whitened(geometry: Geometry) -> None:
    y = sinogram(geometry)[None].repeat(2, 1, 1)
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    found = likelihood(PreparedCT(y, weights, geometry, GRID, scale=0.02))
    assert found.A.domain.shape == (2, 48, 40)
    assert found.A.domain.ndim == 2
    x = torch.rand(2, 48, 40, generator=torch.Generator().manual_seed(1))
    expected = 0.5 * (weights * (0.02 * XRay(geometry, GRID)(x) - y) ** 2).sum()
    torch.testing.assert_close(found.nll(x), expected, rtol=1e-4, atol=0.0)  # float32 sums
    v = torch.rand(found.A.codomain.shape)
    torch.testing.assert_close(
        found.A.codomain.inner(found.A(x), v), found.A.domain.inner(x, found.A.H(v)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(found.A.gram(x), found.A.H(found.A(x)), rtol=1e-4, atol=1e-6)  # float32


def test_views_of_a_geometry() -> None:
    chosen = torch.tensor([3, 10, 50])
    torch.testing.assert_close(FAN.select(chosen).angles, FAN.angles[chosen])
    wrapped = torch.remainder(FAN.view_angles() - FAN.angles + 1, 2 * math.pi) - 1
    assert float(wrapped.abs().max()) < 1e-12


def test_slices_are_read_lazily() -> None:
    scan = CTScan(torch.rand(5, 60, 56), PARALLEL, GRID, flats=torch.ones(3, 5, 56))
    part = scan[1:3]
    assert len(part) == 2
    assert part.flats is not None
    assert part.flats.shape == (3, 2, 56)
    assert part.shape == (48, 40)
    assert part.voxel_size == (1.0, 1.0, 1.0)


PHOTONS = 2e4


def noisy(geometry: Geometry, *, photons: float = PHOTONS, seed: int = 0) -> Tensor:
    """(1, view, bin) line integrals from Poisson counts."""
    expected = photons * torch.exp(-sinogram(geometry).double())
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(seed)).clamp(min=1)
    return -(counts / photons).log().float()[None]


def fan_scan(**changes: Any) -> CTScan:
    return CTScan(**{"projections": noisy(FAN), "geometry": FAN, "grid": GRID, "name": "ellipses", **changes})


# The noise and the scale


@pytest.mark.parametrize("geometry", [PARALLEL, FAN])
def test_photons_are_found_in_line_integrals(geometry: Geometry) -> None:
    found = noise_of(CTScan(noisy(geometry), geometry, GRID))
    # Signal is left in differences between coarse neighbours: fewer photons by up to a third, here 0.7 to 1.0.
    assert 0.6 * PHOTONS < found.photons < 1.1 * PHOTONS
    assert "neighbouring" in found.source


def test_weights_are_the_inverse_variance() -> None:
    """Over many realisations of one sinogram; 40 of them know a variance to 1 / sqrt(20), their mean much better."""
    draws = torch.cat([noisy(PARALLEL, seed=seed) for seed in range(40)])
    prepared = prepare(CTScan(draws[:1], PARALLEL, GRID, photons=PHOTONS))
    assert float((draws.var(0) * prepared.weights[0]).mean()) == pytest.approx(1, abs=0.05)
    assert prepared.counts is not None
    assert prepared.blank is not None
    expected = PHOTONS * torch.exp(-draws[0])
    torch.testing.assert_close(prepared.counts[0], expected)
    assert bool((prepared.blank == PHOTONS).all())


def test_counts_become_line_integrals() -> None:
    """Dark current, a dead bin and a bin that saw nothing."""
    p = sinogram(PARALLEL)
    counts = 1000 * torch.exp(-p) + 20
    flats, darks = torch.full((2, 1, 56), 1020.0), torch.full((2, 1, 56), 20.0)
    flats[:, :, 7] = 20.0
    counts[3, 20] = 5.0
    prepared = prepare(CTScan(counts[None], PARALLEL, GRID, is_counts=True, flats=flats, darks=darks, gain=2.0))
    assert not prepared.weights[..., 7].any()
    assert float(prepared.weights[0, 3, 20]) < 1
    seen = torch.ones_like(p, dtype=torch.bool)
    seen[:, 7], seen[3, 20] = False, False
    torch.testing.assert_close(prepared.line_integrals[0][seen], p[seen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prepared.weights[0][seen], (500 * torch.exp(-p))[seen], rtol=1e-4, atol=0.0)
    assert any("dead" in note for note in prepared.notes)


def test_the_scale_does_not_depend_on_the_views() -> None:
    scale = mean_attenuation(noisy(FAN), FAN)
    # The big ellipse alone has 0.02; one inside it is denser, one less dense, and the fan is not parallel: 2 % here.
    inside = sum(value * b * a for _, _, b, a, value in ELLIPSES) / (17.0 * 14.0)
    assert scale == pytest.approx(inside, rel=0.06)
    for asked in ({"views": 15}, {"angular_range": (0.0, 120.0)}, {"angular_range": (40.0, 100.0)}):
        chosen = choose_views(FAN, **asked)
        assert mean_attenuation(noisy(FAN)[:, chosen], FAN.select(chosen)) == pytest.approx(scale, rel=0.05)
    assert prepare(fan_scan(water=0.019)).scale == 0.019


# The rotation axis and rings


def off_centre(axis: float, photons: float | None = 1e7) -> CTScan:
    """A scan over half a turn whose rotation axis projects onto a bin, where its file says that it is in the middle."""
    true = ParallelBeam(angles(90), 80, 1.0, 39.5 - axis)
    projections = sinogram(true)[None] if photons is None else noisy(true, photons=photons)
    told = ParallelBeam(angles(90), 80, 1.0)
    return CTScan(projections, told, default_grid(told), photons=photons, name="off centre")


def test_the_rotation_axis_is_found_or_told(tmp_path: Path) -> None:
    scan = off_centre(42.3)
    wrong = reconstruct(scan, method="fbp")
    told = reconstruct(scan, method="fbp", rotation_centre=42.3, out=tmp_path)
    found = reconstruct(scan, method="fbp", rotation_centre="find")
    (note,) = (note for note in found.run["notes"] if "rotation axis" in note)
    assert float(note.split("bin ")[1].split(",")[0]) == pytest.approx(42.3, abs=0.1)
    assert "as the views of slice 0 tell" in note
    assert told.mean.shape == (1, 74, 74)  # the circle about bin 42.3 that bins 0 to 79 see: 36.7 mm to one side
    # What lies beside the object is empty about the right axis, and streaks about another: a fifth is left.
    beside = {name: float(r.mean[0, :6].abs().mean()) for name, r in {"w": wrong, "t": told, "f": found}.items()}
    assert beside["t"] < 0.3 * beside["w"]
    assert beside["f"] < 0.3 * beside["w"]
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["rotation_centre"] == 42.3


def test_an_image_of_its_own_size_does_not_follow_the_axis() -> None:
    scan = off_centre(42.3)
    moved = centred(CTScan(scan.projections, scan.geometry, GRID), 42.3)
    assert moved.grid == GRID
    assert centred(scan, 42.3).grid == Grid((74, 74), 1.0)


@pytest.mark.parametrize(
    ("scan", "arguments", "message"),
    [
        (fan_scan(), {"rotation_centre": "find"}, "expected a parallel beam, .* got FanBeam; give rotation_offset"),
        (off_centre(40.0), {"rotation_centre": "middle"}, "expected a bin, such as 245.1, or find, got 'middle'"),
        (off_centre(40.0), {"rotation_centre": 90.0}, r"expected a bin from 0 to 79, got 90 \(as given\)"),
        (off_centre(40.0), {"rotation_centre": math.nan}, "expected a bin from 0 to 79, got nan"),
        (off_centre(40.0), {"rings": 10}, "rings: expected an odd number of bins, at least 3, got 10"),
        (off_centre(40.0), {"rings": 101}, "at most 80, got 101"),
    ],
)
def test_axes_and_rings_that_cannot_be(scan: CTScan, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reconstruct(scan, method="fbp", **arguments)


def test_half_a_turn_is_needed_to_find_the_axis() -> None:
    scan = off_centre(40.0)
    part = undersample(scan, Part(torch.arange(40)), stream=(0,))
    with pytest.raises(InputError, match="expected views half a turn apart"):
        centred(part)


def test_rings_are_taken_out() -> None:
    """Bins that count too much or too little, in the image (0.4 is left) and for statistics that keep the counts."""
    scan = off_centre(39.5)
    gain = torch.ones(80)
    gain[[30, 37, 44, 52]] = torch.tensor([1.16, 0.88, 1.13, 0.86])
    bad = replace(scan, projections=torch.as_tensor(scan.projections) - gain.log())
    images = {
        name: reconstruct(given, method="fbp", rings=rings).mean
        for name, given, rings in (("good", scan, None), ("bad", bad, None), ("mended", bad, 5))
    }
    error = {name: float((images[name] - images["good"]).norm()) for name in ("bad", "mended")}
    assert error["mended"] < 0.5 * error["bad"]
    plain, mended = prepare(bad), prepare(bad, rings=5)
    assert torch.equal(plain.counts, mended.counts)
    torch.testing.assert_close(mended.blank * torch.exp(-mended.line_integrals), mended.counts, rtol=1e-4, atol=0)
    assert any("Stripes of up to 2 bins" in note for note in mended.notes)


def test_rings_of_the_reference_too() -> None:
    bad = off_centre(39.5)
    stripes = torch.zeros(80)
    stripes[45] = 0.1
    bad = replace(bad, projections=torch.as_tensor(bad.projections) + stripes)
    result = reconstruct(bad, method="fbp", views=45, rings=5)
    full = reconstruct(bad, method="fbp", rings=5)
    assert result.reference is not None
    torch.testing.assert_close(result.reference, full.mean)


# Less of a scan


def test_views_and_ranges() -> None:
    assert choose_views(FAN, views=30).tolist() == list(range(0, 90, 3))
    assert choose_views(FAN, angular_range=(0.0, 120.0)).tolist() == list(range(31))  # 4 degrees from view to view
    assert choose_views(FAN, angular_range=(0.0, 120.0), views=4).tolist() == [0, 7, 15, 23]
    backwards = FanBeam(3.0 - FAN.angles, 72, 1.5, 100.0, 150.0)
    assert choose_views(backwards, angular_range=(0.0, 120.0)).tolist() == list(range(31))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"views": 61}, "expected 1 to 60, as the scan has, got 61"),
        ({"views": 21, "angular_range": (0.0, 57.0)}, "expected 1 to 20, as the scan has in that range, got 21"),
        ({"angular_range": (0.0, 200.0)}, "within 0 to 177, .* got 0 to 200"),
        ({"angular_range": (-20.0, 60.0)}, "got -20 to 60"),
    ],
)
def test_what_the_scan_does_not_have_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_views(PARALLEL, **asked)


def test_a_lower_dose_has_its_noise() -> None:
    """Line integrals of a known number of photons, thinned to a quarter: the variance is that of a quarter."""
    scan = CTScan(noisy(PARALLEL), PARALLEL, GRID, photons=PHOTONS)
    part = Part(torch.arange(60), 0.25)
    low = undersample(scan, part, stream=(0, 0))
    prepared = prepare(low)
    error = prepared.line_integrals[0] - sinogram(PARALLEL)
    assert float((error.square() * prepared.weights[0]).mean()) == pytest.approx(1, abs=0.1)  # 3360 rays: 0.024 each
    again = undersample(scan, part, stream=(0, 0))
    assert torch.equal(torch.as_tensor(low.projections[:]), torch.as_tensor(again.projections[:]))
    other = undersample(scan, part, stream=(0, 1))
    assert not torch.equal(torch.as_tensor(low.projections[:]), torch.as_tensor(other.projections[:]))


# Bad input


def test_sinogram_and_geometry_that_disagree() -> None:
    with pytest.raises(
        InputError, match=r"axis -2 has 90 views, the geometry 60.*axis -1 has 72 bins, the geometry 56"
    ):
        prepare(CTScan(noisy(FAN), PARALLEL, GRID))
    with pytest.raises(InputError, match="transpose it"):
        prepare(CTScan(noisy(FAN).mT, FAN, GRID))


def test_degrees_taken_for_radians_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="more than two turns in radians; convert degrees"):
        ParallelBeam(torch.arange(0.0, 180.0, 3.0), bins=56)


def test_a_short_detector_is_a_warning() -> None:
    short = ParallelBeam(angles(60), bins=24)
    with pytest.warns(UserWarning, match="the detector ends before the object does in 60 of 60 views"):
        prepared = prepare(CTScan(noisy(short), short, GRID))
    assert any(note.startswith("WARNING") for note in prepared.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(fan_scan())


def test_projections_without_noise_or_object_are_refused() -> None:
    with pytest.raises(InputError, match="expected noise, whose level is needed"):
        noise_of(CTScan(torch.ones(1, 60, 56), PARALLEL, GRID))
    with pytest.raises(InputError, match="expected an object in every view"):
        prepare(CTScan(torch.zeros(1, 60, 56), PARALLEL, GRID, photons=1e4))
    with pytest.raises(InputError, match="expected flats with counts"):
        prepare(CTScan(torch.ones(1, 60, 56), PARALLEL, GRID, is_counts=True))
    with pytest.raises(InputError, match="finite"):
        prepare(CTScan(torch.full((1, 60, 56), torch.nan), PARALLEL, GRID, photons=1e4))


# The line


class Smooth:
    """E[x0 | x] of real Gaussian images about half the object, whose spectrum falls with the frequency."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, False

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        ky, kx = torch.fft.fftfreq(x.shape[-2])[:, None], torch.fft.rfftfreq(x.shape[-1])
        spectrum = 100.0 / (1 + (8.0**2 * (ky**2 + kx**2)) ** 2)
        variance = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return torch.fft.irfft2(spectrum / (spectrum + variance) * torch.fft.rfft2(x), s=x.shape[-2:])


def test_half_of_the_views_are_compared_with_all(tmp_path: Path) -> None:
    result = reconstruct(fan_scan(), method="tv", views=30, options={"iterations": 60}, out=tmp_path)
    assert result.mean.shape == (1, 48, 40)
    assert result.mean.dtype == torch.float32
    assert result.complex_mean is None
    assert result.reference is not None
    # 1/mm: the middle of the big ellipse, away from the others; noise of FBP within 10 %.
    assert float(result.mean[0, 34:38, 18:24].mean()) == pytest.approx(0.02, rel=0.1)
    assert result.run["sampled"] == "30 of 90 views"
    assert result.run["acceleration"] == 3.0
    assert any("photons a bin" in note for note in result.run["notes"])
    assert {path.name for path in tmp_path.iterdir()} == set(RESULT_NAMES)
    assert result.metrics["psnr"] > 20  # 25 here; 30 views of these photons


def test_images_are_in_hu_where_water_is_known(tmp_path: Path) -> None:
    import nibabel

    result = reconstruct(fan_scan(water=0.02), method="fbp", views=45, out=tmp_path)
    stored = torch.from_numpy(nibabel.load(tmp_path / "reconstruction.nii.gz").get_fdata()).movedim(-1, 0).mT
    torch.testing.assert_close(stored.float(), 1000 * (result.mean / 0.02 - 1), rtol=1e-4, atol=0.01)  # HU, float32
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["units"] == "1/mm"
    assert record["modality"] == "CT"
    assert record["reference"] == "filtered back-projection of all views at full dose"
    assert record["arguments"]["views"] == 45


def test_geometries_view_by_view_are_reconstructed() -> None:
    """Without a formula for the inverse the reference is SIRT's; the image is that of the fan they came from."""
    points, directions = FAN.rays()
    ends = points + directions
    middle, step = (ends[:, 0] + ends[:, -1]) / 2, ends[:, 1] - ends[:, 0]
    vectors = ViewVectors(middle, step, FAN.bins, source=points[:, 0])
    options = {"method": "dds", "prior": Smooth(), "samples": 2, "steps": 6, "check": False}
    found, expected = (reconstruct(fan_scan(geometry=g), views=45, **options) for g in (vectors, FAN))
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-4 * float(expected.mean.max()))
    assert found.preview_name == "SIRT"
    assert found.run["reference"] == "SIRT of all views at full dose"
    assert found.metrics["psnr"] > 15  # 19 here, where the fan has FBP for its reference and 17
    assert any("no coverage: the reference, by SIRT" in note for note in found.run["notes"])


def test_dicom_out_is_what_was_reconstructed(tmp_path: Path) -> None:
    header = {"KVP": "120", "Manufacturer": "ACME", "title": "of the file"}
    scan = fan_scan(projections=noisy(FAN).repeat(2, 1, 1), water=0.02, slice_spacing=2.5, header=header)
    options = {"method": "dds", "prior": Smooth(), "samples": 3, "steps": 6, "check": False}
    result = reconstruct(scan, views=45, out=tmp_path, dicom=True, **options)
    assert result.std is not None
    image, std = (read_images(tmp_path / name) for name in (DICOM, DICOM_STD))
    assert torch.equal(image.hu, (1000 * (result.mean / 0.02 - 1)).round())
    torch.testing.assert_close(std.hu, 1000 * result.std / 0.02, rtol=0, atol=0.051)  # in tenths
    assert (image.pixel_size, image.positions.tolist(), image.tilt) == ((1.0, 1.0), [-1.25, 1.25], 0)
    first, second = (next(datasets(tmp_path / name)) for name in (DICOM, DICOM_STD))
    for key in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "KVP"):
        assert first[key].value == second[key].value
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert (first.SeriesNumber, second.SeriesNumber, first.KVP) == (1, 2, 120)
    # As the other results: refused, replaced as a whole, and gone if the run that replaces them makes none.
    with pytest.raises(ResultExistsError, match=f"{DICOM}, {DICOM_STD}"):
        reconstruct(scan, method="fbp", out=tmp_path)
    reconstruct(scan, method="fbp", slices=(0, 1), out=tmp_path, dicom=True, overwrite=True)
    assert [path.name for path in (tmp_path / DICOM).iterdir()] == ["0000.dcm"]
    assert {path.name for path in tmp_path.iterdir()} == {*RESULT_NAMES, DICOM}
    result.save(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == set(RESULT_NAMES)


def test_dicom_needs_water_before_any_work(tmp_path: Path) -> None:
    for scan, method in ((fan_scan(), "fbp"), (head((32, 32), coils=2), "cg-sense")):
        with pytest.raises(InputError, match=f"attenuation of water .* came {scan.name} without"):
            reconstruct(scan, method=method, dicom=True, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="attenuation of water"):
        reconstruct(fan_scan(), method="fbp").save(tmp_path / "out", dicom=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["dds", "dps", "split-gibbs", "score-mri", "l1-wavelet", "cg-sense", "fbp"])
def test_methods_run_on_real_images(method: str) -> None:
    draws = method in ("dds", "dps", "split-gibbs", "score-mri")
    more = {"prior": Smooth(), "samples": 2, "steps": 6, "check": False} if draws else {}
    result = reconstruct(fan_scan(), method=method, views=45, **more)
    assert not result.mean.is_complex()
    assert bool(torch.isfinite(result.mean).all())
    assert (result.std is not None) == draws
    assert (result.run["coverage"][0] is not None) == draws


def test_a_result_that_is_the_preview_is_pictured_once(tmp_path: Path) -> None:
    def width(method: str) -> int:
        reconstruct(fan_scan(), method=method, out=tmp_path / method)
        with Image.open(tmp_path / method / "panel.png") as picture:
            return picture.width

    assert width("fbp") < width("cgls")


class InUnits(Smooth):
    """A prior of attenuation over 0.005/mm, which keeps the last images that it was shown."""

    card: ClassVar = {"scale_per_mm": 0.005}

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.shown = x
        return super().__call__(x, sigma)


@pytest.mark.parametrize("water", [None, 0.02])
def test_a_prior_sees_images_in_its_own_unit(water: float | None) -> None:
    prior = InUnits()
    result = reconstruct(fan_scan(water=water), method="dds", prior=prior, steps=20, check=False)
    # The last level adds little noise; a few of the data remain to be met after it.
    assert float(prior.shown.mean()) == pytest.approx(float(result.mean.mean()) / 0.005, rel=0.02)


@pytest.mark.filterwarnings("ignore:the prior does not suit")
def test_the_prior_is_checked_on_segments_of_views() -> None:
    result = reconstruct(fan_scan(), method="dds", views=45, prior=Smooth(), samples=2, steps=6)
    assert result.data_fit is not None
    assert result.data_fit.what == "segments of views"
    assert result.data_fit.places == round(0.03 * 45 * 8)


def test_a_dose_is_that_of_every_slice() -> None:
    scan = fan_scan(projections=noisy(FAN).repeat(2, 1, 1), photons=PHOTONS)
    result = reconstruct(scan, method="fbp", dose=0.1)
    assert result.run["sampled"] == "90 of 90 views, 0.1 of the dose"
    assert not torch.equal(result.mean[0], result.mean[1])
    assert reconstruct(scan, method="fbp").reference is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "random"}, "mask: is for MRI scans, and ellipses is one of CT"),
        ({"coils": 4}, "coils: is for MRI scans"),
        ({"method": "varnet"}, "varnet: no network of it comes with the package for CT scans; choose another"),
        ({"method": "rss"}, "rss: is for MRI scans, and ellipses is one of CT"),
        ({"method": "zero-filled"}, "zero-filled needs a SENSE operator"),
        ({"dose": 1.5}, "dose: expected a fraction above 0"),
        ({"views": 0}, "views: expected at least 1, got 0"),
        ({"views": 91}, "views: expected 1 to 90"),
        ({"angular_range": (90.0, 10.0)}, "expected FIRST < LAST degrees"),
        ({"method": "dds", "prior": "brain"}, "expected one of real images for ellipses, a scan of CT"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reconstruct(fan_scan(), **{"method": "cg-sense", "check": False, **arguments})


def test_views_are_not_for_mri() -> None:
    with pytest.raises(InputError, match=r"views: is for CT scans, and .* is one of MRI"):
        reconstruct(head((32, 32), coils=2), method="cg-sense", views=10)
    with pytest.raises(InputError, match="fbp: is for CT scans"):
        reconstruct(head((32, 32), coils=2), method="fbp")


def test_a_benchmark_over_views_ranges_and_doses(tmp_path: Path) -> None:
    file = tmp_path / "ellipses.npz"
    write(file, fan_scan())
    grid = make_grid([file], methods=["fbp", "cg-sense"], accelerations=[3.0])
    assert grid.masks == ("views", "range", "dose")
    found = benchmark(grid, out=tmp_path / "out", workers=1)
    assert not found.failed
    assert len(found.records) == 6
    assert {record["acceleration"] for record in found.records.values()} == {3.0, 90 / 30, 90 / 30}
    with pytest.raises(InputError, match="masks: expected views, range, dose for ellipses, a scan of CT, got random"):
        make_grid([file], masks=["random"], accelerations=[3.0])


@pytest.mark.filterwarnings("ignore:the detector ends")
def test_a_scan_of_less_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "scan.npz"
    write(file, replace(off_centre(42.3, photons=1e5), water=0.02))
    asked = {"--views": "20", "--angular-range": "0:120", "--dose": "0.5", "--rings": "3", "--rotation-centre": "find"}
    words = [word for pair in asked.items() for word in pair]
    result = CliRunner().invoke(
        app, ["reconstruct", str(file), "--method", "fbp", *words, "--dicom", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "20 of 90 views, 0.5 of the dose" in result.output
    assert "Stripes of up to 1 bins" in result.output
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    arguments = {name: record["arguments"][name.strip("-").replace("-", "_")] for name in asked}
    assert [*arguments.values()] == [20, [0.0, 120.0], 0.5, 3, "find"]
    assert read_images(tmp_path / "out" / DICOM).hu.shape == (1, 74, 74)


def test_the_command_reads_ranges() -> None:
    assert parse_range("-30:90.5") == (-30.0, 90.5)
    for text in ("90", "a:b", "0:1:2"):
        with pytest.raises(InputError, match="expected FIRST:LAST in degrees"):
            parse_range(text)


# Coverage and the check


def test_samples_that_are_the_truth_cover_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are projections of the very image: what is looked at is the noise of the reference, not a method."""
    y, x = torch.meshgrid(torch.arange(48.0) - 23.5, torch.arange(40.0) - 19.5, indexing="ij")
    image = sum(v * ((((y - b0) / b) ** 2 + ((x - a0) / a) ** 2) <= 1) for b0, a0, b, a, v in ELLIPSES)
    expected = PHOTONS * torch.exp(-XRay(PARALLEL, GRID)(image))
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(0))

    def truth(scan: PreparedCT, rng: Noise) -> Tensor:
        return (image / scan.scale).expand(len(rng), 1, *image.shape)

    monkeypatch.setitem(METHODS, "truth", truth)
    scan = CTScan(-(counts / PHOTONS).log()[None], PARALLEL, GRID, photons=PHOTONS)
    result = reconstruct(scan, method="truth", samples=39, check=False, views=30)
    (found,) = result.run["coverage"]
    # About 750 pixels of the object, neighbours alike: 0.02 each if they were independent, 3 to 4 of these.
    assert found["coverage"] == pytest.approx(found["nominal"], abs=0.07)


def test_places_of_one_group_count_as_one() -> None:
    """Copies of a place add no evidence."""
    differences = torch.randn(1, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    once = _wilcoxon(differences, torch.arange(20))
    assert _wilcoxon(differences.repeat(1, 5), torch.arange(20).repeat(5)) == pytest.approx(once)
    assert _wilcoxon(differences.repeat(1, 5), torch.arange(100)) < once / 10
