"""Simulated CT scans of heads, and `recon tune` and `recon calibrate` on them."""

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from test_training_ct import head
from torch import Tensor
from typer.testing import CliRunner

import recon
import recon.calibrate
from operators.ct import XRay
from recon.calibrate import calibrate
from recon.calibrated import load_calibration
from recon.calibration import conformal_factor
from recon.cli import app
from recon.ct_heads import FIELD, HeadScans
from recon.errors import InputError
from recon.metrics import object_mask
from recon.records import tuned_options
from recon.series import Series
from recon.settings import Settings
from recon.training_volumes import label_volume
from recon.tune import tune

pytestmark = pytest.mark.filterwarnings("ignore:the detector ends")  # few bins: 8 at its ends are much of the image

SMALL = HeadScans(shape=(48, 40), views=60)
QUICK: dict[str, Any] = {"method": "dds", "views": 12, "samples": 2, "steps": 2, "distribution": SMALL}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, volume = tmp_path_factory.mktemp("labels"), head()
    values = np.array(volume.labels, np.int16)[volume.data]
    for name, size in (("a_1", 4.0), ("b_1", 4.1)):
        affine = np.diag([size, size, size, 1])
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def calibrated(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("calibration") / "dds.json"
    settings = QUICK | {"alpha": 0.4, "images": 3, "test_images": 1}
    return calibrate(labels, out=out, on=["a_*"], test=["b_*"], **settings)


# Scans of heads


def test_a_scan_depends_on_seed_and_index_alone() -> None:
    first = SMALL.draw(head(), seed=3, index=1, name="x")
    again, next_one, other = (SMALL.draw(head(), seed=s, index=i, name="y") for s, i in ((3, 1), (3, 2), (4, 1)))
    assert torch.equal(first.projections, again.projections)
    assert all(not torch.equal(first.projections, scan.projections) for scan in (next_one, other))
    assert first.photons != next_one.photons
    assert all(1e5 <= float(scan.photons or 0) <= 4e5 for scan in (first, next_one, other))


def test_the_reference_is_what_was_scanned() -> None:
    """Its line integrals, by another projector on another grid, are those that were measured, but for what pixels and
    strips of 6 mm cannot tell, and less of it with smaller ones."""
    errors = []
    for n in (40, 160):
        scan = HeadScans(shape=(n, n), views=24, photons=(1e8, 1e8), electronic=0.0).draw(
            head(), seed=0, index=0, name=""
        )
        truth = torch.as_tensor(scan.reference[:])  # type: ignore[index]
        assert scan.grid.pixel_sizes == pytest.approx((FIELD / n, FIELD / n))
        assert truth.shape == (1, n, n)
        lines = XRay(scan.geometry, scan.grid, dtype=truth.dtype)(truth)
        measured = torch.as_tensor(scan.projections[:])
        errors.append(float((lines - measured).norm() / measured.norm()))
    assert errors[1] < 0.5 * errors[0] < 0.01


def test_scans_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"photons: expected a range LOW,HIGH of positive numbers, got 0,10"):
        HeadScans(photons=(0.0, 10.0)).draw(head(), seed=0, index=0, name="")
    with pytest.raises(InputError, match=r"shape: expected .* at least 16 pixels, got \(8, 40\)"):
        HeadScans(shape=(8, 40)).draw(head(), seed=0, index=0, name="")
    volume = label_volume(np.full((9, 9, 9), 507), (4.0, 4.0, 4.0))
    with pytest.raises(InputError, match="expected a label map that shows a brain"):
        SMALL.draw(volume, seed=0, index=0, name="")


def test_the_object_is_the_reference_of_a_part() -> None:
    scan = SMALL.draw(head(), seed=0, index=0, name="")
    result = recon.reconstruct(scan, method="fbp", views=20)
    assert torch.equal(result.reference, torch.as_tensor(scan.reference[:]))  # type: ignore[arg-type, index]
    assert result.run["reference"] == "in the file"


# Tuning


def test_tuning_takes_the_best_of_the_grid(labels: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"method": "sirt", "grid": {"iterations": [2, 30]}, "images": 2, "accelerations": [3, 5]}
    record = tune(labels, out=tmp_path / "sirt.json", on=["a_*"], masks=["views"], distribution=SMALL, **call)
    series, found = Series(labels, ["a_*"], distribution=SMALL, seed=0), {}
    for iterations in (2, 30):
        runs = itertools.product(range(2), (20, 12))
        quality = []
        for i, views in runs:
            scan = series[i]
            result = recon.reconstruct(scan, method="sirt", options={"iterations": iterations}, views=views)
            truth = torch.as_tensor(scan.reference[:])  # type: ignore[index]
            quality.append(recon.metrics.psnr_scaled(truth, result.mean, object_mask(truth)))
        found[iterations] = sum(quality) / 4
    table = {row["options"]["iterations"]: row["psnr_scaled"] for row in record["table"]}
    assert table == pytest.approx(found, rel=1e-6)
    assert record["options"] == {"iterations": 30}
    asked = record["arguments"]
    assert (asked["mask"], asked["acceleration"], asked["views"]) == (["views"], [3, 5], None)
    with pytest.raises(InputError, match=r"masks of MRI or those of CT .* got both: \['views', 'random'\]"):
        tune(labels, out=tmp_path / "b.json", masks=["views", "random"], **call)


def test_the_command_tunes_on_doses(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "fbp.json"
    arguments = ["tune", str(labels), "--on", "a_*", "--method", "fbp", "--set-grid", "cutoff=0.3,1", "--images", "1"]
    arguments += [
        "--masks",
        "dose",
        "--accelerations",
        "100",
        "--shape",
        "48,40",
        "--photons",
        "1e5",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert tuned_options(out, method="fbp") == {"cutoff": 0.3}  # few photons: smooth
    result = CliRunner().invoke(app, [*arguments, "--overwrite", "--masks", "dose,random"])
    assert "expected masks of MRI or those of CT" in str(result.exception)


# Calibration


def test_the_factor_is_that_of_the_images(labels: Path, calibrated: tuple[Path, dict[str, Any]]) -> None:
    record, series, found = calibrated[1], Series(labels, ["a_*"], distribution=SMALL, seed=0), []
    for i in range(3):  # the line itself, without the command's help
        scan = series[i]
        truth: Tensor = scan.reference  # type: ignore[assignment]
        call: dict[str, Any] = {"method": "dds", "views": 12, "samples": 2, "steps": 2, "check": False}
        result = recon.reconstruct(scan, seed=series.run_seed(i), **call)
        half = (result.upper - result.lower) / 2  # type: ignore[operator]
        found.append(((truth - result.mean).abs() / half)[object_mask(truth)])
    assert record["factor"] == pytest.approx(conformal_factor(found, alpha=0.4), rel=1e-5)
    assert record["prior"]["name"] == "head-ct"
    assert (record["arguments"]["mask"], record["arguments"]["views"]) == (None, 12)
    assert record["test"]["images"] == 1


def test_a_calibration_belongs_to_its_views(calibrated: tuple[Path, dict[str, Any]]) -> None:
    calibration, card = load_calibration(calibrated[0]), calibrated[1]["prior"]
    settings: dict[str, Any] = {"method": "dds", "views": 12, "samples": 2, "steps": 2}
    assert calibration.check(Settings(**settings).resolved(prior="head-ct"), card) == ""
    for other in ({"views": 13}, {"angular_range": (0.0, 90.0)}, {"dose": 0.5}, {"rings": 5}):
        warning = calibration.check(Settings(**(settings | other)).resolved(prior="head-ct"), card)
        assert f"expected {next(iter(other))} " in warning
        assert "the guarantee does not hold here" in warning


def test_a_range_of_angles_is_the_same_from_a_file(labels: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"method": "dds", "angular_range": (0.0, 90.0), "samples": 2, "steps": 2}
    path, record = calibrate(
        labels, out=tmp_path / "a.json", on=["a_*"], alpha=0.6, images=1, distribution=SMALL, **call
    )
    asked = Settings(**call).resolved(prior="head-ct")
    assert load_calibration(path).check(asked, record["prior"]) == ""


def test_the_command_calibrates_and_a_run_uses_it(labels: Path, tmp_path: Path) -> None:
    out, scan = tmp_path / "dds.json", SMALL.draw(head(), seed=9, index=0, name="x")
    arguments = ["calibrate", str(labels), "--on", "a_*", "--views", "12", "--method", "dds", "--samples", "2"]
    arguments += ["--steps", "2", "--alpha", "0.6", "--images", "1", "--shape", "48,40", "--photons", "1e5"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    call: dict[str, Any] = {"method": "dds", "views": 12, "samples": 2, "steps": 2, "check": False}
    plain, wide = (recon.reconstruct(scan, **call, calibrated=name) for name in (None, out))
    factor = load_calibration(out).factor
    assert torch.allclose(wide.std, factor * plain.std)  # type: ignore[arg-type, operator]
    assert wide.run["calibration"]["factor"] == factor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "12", "--coils", "8", "--noise", "0.1"], "--coils, --noise: expected none with scans of CT"),
        (["--photons", "1e5,2e5"], "--photons: expected none with scans of MRI; .* or undersample as CT"),
        (["--dose", "0.1", "--mask", "random"], "is for MRI scans, and a_1.nii.gz 0 is one of CT"),
        (["--dose", "2"], "dose: expected a fraction"),
        (["--views", "12", "--photons", "5,2"], "photons: expected a range"),
    ],
)
def test_what_is_of_the_other_modality_is_refused(
    labels: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(labels), *arguments, "--out", str(tmp_path / "x.json")])
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception


def test_records_beside_the_prior_are_named_by_what_is_kept() -> None:
    settings = Settings(method="dds", views=23, angular_range=(0.0, 90.0), dose=0.1).resolved(prior="head-ct")
    path = recon.calibrate.beside(settings)
    assert path.parts[-2:] == ("calibrations", "head-ct-dds-23-views-0-to-90-degrees-dose-0.1.json")
