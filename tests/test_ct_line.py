"""The line from projections to an image: reconstruction, results, the command, a benchmark."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ct_scans import ELLIPSES, FAN, GRID, PARALLEL, PHOTONS, fan_scan, noisy, off_centre
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from operators.ct import XRay
from operators.geometry import ViewVectors
from recon.benchmark.grid import make_grid
from recon.benchmark.run import benchmark
from recon.cli import app
from recon.cli.options import parse_range
from recon.ct import CTScan, PreparedCT
from recon.datafit import _wilcoxon
from recon.errors import InputError, ResultExistsError
from recon.io.dicom import datasets, read_images
from recon.io.numpy_projections import write
from recon.io.writers import DICOM, DICOM_STD, RESULT_NAMES
from recon.methods import METHODS
from recon.noise import Noise
from recon.phantom import head
from recon.pipeline import reconstruct


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
    assert (first.WindowCenter, first.WindowWidth) == (40, 400)
    assert second.WindowWidth == pytest.approx(float(std.hu.max()), abs=0.06)
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
    assert result.data_fit.fallback_name == "tv"


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
        ({"method": "rss"}, "rss: is for MRI scans, and ellipses is one of CT; take fbp or tv or dds, say"),
        ({"method": "zero-filled"}, r"zero-filled: is for MRI with maps .* take fbp for CT"),
        ({"dose": 1.5}, "dose: expected a fraction above 0"),
        ({"acceleration": 4.0}, "or for CT views, angular_range or dose in its place"),
        ({"rings": 1001}, "rings: expected at most the .* bins of the detector, got 1001"),
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
