"""`recon calibrate` and `recon tune` on small simulated scans: what they find, keep, refuse and hand on."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_simulation import nifti
from torch import Tensor
from typer.testing import CliRunner

import recon.calibrate
import recon.series
from recon.calibrate import calibrate
from recon.calibrated import load_calibration
from recon.calibration import conformal_factor
from recon.cli import app
from recon.errors import InputError, MissingFileError, ReconError, ResultExistsError
from recon.metrics import object_mask
from recon.posterior import summarize
from recon.records import tuned_options
from recon.series import Series
from recon.settings import Settings
from recon.simulation import Distribution
from recon.tune import tune

SMALL = Distribution(shape=(40, 32), coils=3, thickness=5.0)
QUICK: dict[str, Any] = {"method": "dds", "samples": 2, "steps": 2, "distribution": SMALL}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name in ("a_1", "a_2", "b_1"):
        nifti(folder / f"{name}.nii.gz", size=5.2 if name == "b_1" else 5)  # another head
    return folder


@pytest.fixture(scope="module")
def calibrated(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("calibration") / "dds.json"
    settings = QUICK | {"alpha": 0.4, "images": 3, "test_images": 1}
    return calibrate(labels, out=out, on=["a_*"], test=["b_*"], **settings)


# Series


def test_a_copy_of_a_subject_is_no_other_subject(labels: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(labels, copies)
    shutil.copy(copies / "a_1.nii.gz", copies / "z_9.nii.gz")
    with pytest.raises(InputError, match=r"other subjects to test on, came z_9.nii.gz for both"):
        calibrate(copies, out=tmp_path / "x.json", on=["a_*"], test=["z_*"], **QUICK | {"alpha": 0.4, "images": 3})


def test_a_series_draws_its_subjects_slices_and_masks(labels: Path) -> None:
    series = Series(labels, ["a_*"], distribution=SMALL, seed=3)
    names = [series[i].name for i in range(8)]
    assert {name.split()[0] for name in names} == {"a_1.nii.gz", "a_2.nii.gz"}
    again = Series(labels, ["a_*"], distribution=SMALL, seed=3)
    assert torch.equal(series[5].kspace, again[5].kspace)
    assert len({series.run_seed(i) for i in range(20)}) == 20
    assert list(series.checksums()) == ["a_1.nii.gz", "a_2.nii.gz"]


def test_what_is_not_there_is_said(labels: Path) -> None:
    with pytest.raises(InputError, match=r"match c_\*, came a_1.nii.gz, .* b_1.nii.gz; give other"):
        Series(labels, ["c_*"], distribution=SMALL, seed=0)
    with pytest.raises(MissingFileError, match="expected a folder"):
        Series(labels / "none", ["*"], distribution=SMALL, seed=0)
    series = Series(labels, ["*"], distribution=Distribution(shape=(40, 32), noise=(0.0, 0.1)), seed=0)
    with pytest.raises(InputError, match=r"scan 0 of .*: noise: expected a range .* got 0,0.1"):
        series[0]


# Calibration


def test_the_factor_is_that_of_the_images(
    labels: Path, calibrated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, record = calibrated
    series = Series(labels, ["a_*"], distribution=SMALL, seed=0)
    found = []
    for i in range(3):  # the line itself, without the command's help
        scan = series[i]
        truth: Tensor = scan.reference  # type: ignore[assignment]
        result = recon.reconstruct(
            scan, method="dds", mask="random", acceleration=4, samples=2, steps=2, seed=series.run_seed(i), check=False
        )
        inside = object_mask(truth)
        half = (result.upper - result.lower) / 2  # type: ignore[operator]
        found.append(((truth - result.mean).abs() / half)[inside])
    assert record["factor"] == pytest.approx(conformal_factor(found, alpha=0.4), rel=1e-5)
    risk = sum(float((f > 1).double().mean()) for f in found) / 3
    assert record["calibration"]["risk"]["before"] == pytest.approx(risk, abs=1e-3)
    assert record["calibration"]["risk"]["after"] <= (4 * 0.4 - 1) / 3
    assert record["calibration"]["images"] == 3
    assert record["test"]["images"] == 1
    assert list(record["test_files"]) == ["b_1.nii.gz"]
    assert record["prior"]["name"] == "brain"
    assert "exchangeable" in record["notes"][0]
    assert json.loads(path.read_text())["factor"] == record["factor"]
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left


def test_an_interrupted_calibration_continues(
    labels: Path, calibrated: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does no image twice."""
    done: list[int] = []
    real = recon.calibrate.against_truth

    def counted(stop: int) -> Callable[..., Any]:
        def run(*args: Any, **keywords: Any) -> Any:
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(1)
            return real(*args, **keywords)

        return run

    call: dict[str, Any] = QUICK | {"alpha": 0.4, "images": 3, "test_images": 1, "out": tmp_path / "dds.json"}
    monkeypatch.setattr(recon.calibrate, "against_truth", counted(2))
    with pytest.raises(KeyboardInterrupt):
        calibrate(labels, on=["a_*"], test=["b_*"], **call)
    assert not (tmp_path / "dds.json").exists()
    monkeypatch.setattr(recon.calibrate, "against_truth", counted(99))
    told: list[str] = []
    _, record = calibrate(labels, on=["a_*"], test=["b_*"], progress=lambda what, _: told.append(what), **call)
    assert len(done) == 4
    assert record["factor"] == calibrated[1]["factor"]
    assert any("3 of 4, " in what and "s each" in what for what in told)  # the cost


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"method": "l1-wavelet", "samples": None, "steps": None}, InputError, "expected a method that draws samples"),
        ({"samples": 1}, InputError, "at least 2 samples, got 1"),
        ({"images": 8, "alpha": 0.1}, InputError, "at least 9 images for a risk of 0.1, got 8"),
        ({"alpha": 1.5}, InputError, "between 0 and 1, got 1.5"),
        ({"test": ["a_1*"]}, InputError, "other subjects to test on, came a_1.nii.gz for both"),
        (
            {"test": ["b_1*"], "test_images": 0},
            InputError,
            "test_images: expected at least 1, .* got 0",
        ),
        ({"mask": "spirals"}, InputError, "spirals"),
        ({"prior": "liver"}, MissingFileError, "unknown prior 'liver'"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    labels: Path, tmp_path: Path, wrong: dict[str, Any], error: type[ReconError], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibrate(labels, out=tmp_path / "a.json", on=["a_*"], **(QUICK | {"images": 4, "alpha": 0.3} | wrong))


def test_a_record_is_not_replaced(labels: Path, calibrated: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ResultExistsError):
        calibrate(labels, out=calibrated[0], on=["a_*"], **QUICK)


def test_the_record_lies_beside_the_prior() -> None:
    path = recon.calibrate.beside(Settings(method="dds", mask="random").resolved())
    assert path.parts[-3:] == ("weights", "calibrations", "brain-dds-random-4.json")


# What a calibration does to a run


def test_a_calibration_scales_intervals_and_says_so(calibrated: tuple[Path, dict[str, Any]]) -> None:
    calibration = load_calibration(calibrated[0])
    posterior = summarize(torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0)) + 4)
    wide = calibration.apply(posterior)
    factor = calibrated[1]["factor"]
    for name in ("std", "lower", "upper"):
        zero = 0 if name == "std" else posterior.mean
        torch.testing.assert_close(getattr(wide, name) - zero, factor * (getattr(posterior, name) - zero))
    assert torch.equal(wide.samples, posterior.samples)
    assert f"{factor:.3g} times" in wide.statement


def test_a_calibration_belongs_to_its_method_and_prior(calibrated: tuple[Path, dict[str, Any]]) -> None:
    calibration, card = load_calibration(calibrated[0]), calibrated[1]["prior"]
    settings: dict[str, Any] = {"method": "dds", "mask": "random", "samples": 2, "steps": 2}
    assert calibration.check(Settings(**settings).resolved(), card) == ""
    for other in ({"method": "split-gibbs"}, {"steps": 3}):
        with pytest.raises(InputError, match="as in the calibration, got"):
            calibration.check(Settings(**(settings | other)).resolved(), card)
    for stranger in ({"name": "brain", "sha256": "0" * 64}, None):
        with pytest.raises(InputError, match="expected the prior 'brain' of checksum"):
            calibration.check(Settings(**settings).resolved(), stranger)
    for other in ({"mask": "equispaced"}, {"acceleration": 8.0}, {"samples": 4}):
        warning = calibration.check(Settings(**(settings | other)).resolved(), card)
        assert "the guarantee does not hold here" in warning


def test_files_of_another_kind_are_refused(tmp_path: Path, calibrated: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(MissingFileError, match="came a path where there is no file"):
        load_calibration(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("no")
    with pytest.raises(InputError, match="cannot be read"):
        load_calibration(tmp_path / "text.json")
    (tmp_path / "other.json").write_text('{"kind": "tuned settings"}')
    with pytest.raises(InputError, match="expected calibration of intervals, came a file of kind 'tuned settings'"):
        load_calibration(tmp_path / "other.json")
    with pytest.raises(InputError, match="expected tuned settings"):
        tuned_options(calibrated[0], method="dds")
    (tmp_path / "part.json").write_text('{"kind": "calibration of intervals"}')
    with pytest.raises(InputError, match="without 'factor'"):
        load_calibration(tmp_path / "part.json")


# Tuning


@pytest.fixture(scope="module")
def tuned(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("tuning") / "cg.json"
    grid = {"regularization": [0.001, 0.05, 10.0]}
    call: dict[str, Any] = {"method": "cg-sense", "grid": grid, "images": 2, "accelerations": [2, 4]}
    return out, tune(labels, out=out, on=["a_*"], distribution=SMALL, **call)


def test_tuning_takes_the_best_of_the_grid(labels: Path, tuned: tuple[Path, dict[str, Any]]) -> None:
    path, record = tuned
    series = Series(labels, ["a_*"], distribution=SMALL, seed=0)
    found = {}
    for value in (0.001, 0.05, 10.0):
        quality = []
        for i, acceleration in itertools.product(range(2), (2, 4)):
            scan = series[i]
            result = recon.reconstruct(
                scan,
                method="cg-sense",
                options={"regularization": value},
                mask="random",
                acceleration=acceleration,
                seed=series.run_seed(i),
            )
            truth: Tensor = scan.reference  # type: ignore[assignment]
            quality.append(recon.metrics.psnr_scaled(truth, result.mean, object_mask(truth)))
        found[value] = sum(quality) / 4
    table = {row["options"]["regularization"]: row["psnr_scaled"] for row in record["table"]}
    assert table == pytest.approx(found, rel=1e-6)
    assert record["options"] == {"regularization": max(found, key=lambda value: found[value])}
    assert record["options"]["regularization"] != 10.0  # an image of next to nothing
    assert record["arguments"]["acceleration"] == [2, 4]
    assert list(record["files"]) == ["a_1.nii.gz", "a_2.nii.gz"]
    assert list(path.parent.iterdir()) == [path]
    assert tuned_options(path, method="cg-sense") == record["options"]
    with pytest.raises(InputError, match="expected settings of tv, came those of cg-sense"):
        tuned_options(path, method="tv")


def test_a_value_at_the_edge_is_noted(labels: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"method": "cg-sense", "images": 1, "distribution": SMALL}
    record = tune(labels, out=tmp_path / "a.json", grid={"regularization": [5.0, 10.0]}, **call)
    assert record["notes"] == ["regularization=5.0 is at the edge of its grid: what lies beyond may be better"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grid": {}}, "expected values to try, got none"),
        ({"grid": {"regularization": []}}, "expected values to try, got none"),
        ({"grid": {"strength": [1.0]}}, "unknown option 'strength'"),
        ({"grid": {"regularization": [-1.0]}}, "0 or more"),
        ({"options": {"regularization": 0.1}}, "regularization: expected fixed or in the grid, got both"),
        ({"images": 0}, "at least one image"),
        ({"masks": ["spirals"]}, "spirals"),
        ({"samples": 4}, "draws no samples"),
    ],
)
def test_what_cannot_be_tuned_is_refused(labels: Path, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"method": "cg-sense", "grid": {"regularization": [0.1]}, "distribution": SMALL}
    with pytest.raises(InputError, match=message):
        tune(labels, out=tmp_path / "a.json", **(call | wrong))


# In a run


def test_a_run_takes_the_factor_and_names_it(
    labels: Path, calibrated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    scan = Series(labels, ["b_*"], distribution=SMALL, seed=9)[0]
    call: dict[str, Any] = {"method": "dds", "mask": "random", "samples": 2, "steps": 2, "check": False}
    plain = recon.reconstruct(scan, **call)
    wide = recon.reconstruct(scan, calibrated=calibrated[0], out=tmp_path / "out", **call)
    factor = calibrated[1]["factor"]
    torch.testing.assert_close(wide.std, factor * plain.std)
    torch.testing.assert_close(wide.upper - wide.lower, factor * (plain.upper - plain.lower))  # type: ignore[operator]
    assert torch.equal(wide.mean, plain.mean)
    assert torch.equal(wide.samples, plain.samples)  # type: ignore[arg-type]
    assert "Calibrated (dds.json)" in wide.statement
    assert "under-dispersed" not in wide.statement
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["calibration"]["factor"] == factor
    assert list(written["calibration"]["file"]) == ["dds.json"]
    assert plain.run["calibration"] is None
    # Predictive intervals hold the noise of the reference too, which the factor leaves alone.
    ratio = wide.run["coverage"][0]["width"][2] / plain.run["coverage"][0]["width"][2]
    assert (ratio - 1) * (factor - 1) > 0
    assert abs(ratio - 1) < abs(factor - 1) + 1e-3


def test_a_run_that_the_calibration_was_not_for_is_warned_of_or_refused(
    labels: Path, calibrated: tuple[Path, dict[str, Any]]
) -> None:
    scan = Series(labels, ["b_*"], distribution=SMALL, seed=9)[0]
    call: dict[str, Any] = {"method": "dds", "samples": 2, "steps": 2, "check": False, "calibrated": calibrated[0]}
    with pytest.warns(UserWarning, match="expected mask 'random' as in the calibration, got 'equispaced'"):
        result = recon.reconstruct(scan, mask="equispaced", **call)
    assert any(note.startswith("WARNING") and "guarantee" in note for note in result.run["notes"])
    for wrong, message in (
        ({"steps": 3}, "expected steps 2 as in the calibration, got 3"),
        ({"options": {"iterations": 3}}, "expected options"),
        ({"samples": 1}, "at least 2 samples, got 1"),
        ({"method": "cg-sense", "samples": None, "steps": None}, "calibrated: cg-sense draws no samples"),
    ):
        with pytest.raises(InputError, match=message):
            recon.reconstruct(scan, mask="random", **(call | wrong))


def test_a_run_takes_tuned_options_and_names_them(labels: Path, tuned: tuple[Path, dict[str, Any]]) -> None:
    path, record = tuned
    scan = Series(labels, ["b_*"], distribution=SMALL, seed=9)[0]
    result = recon.reconstruct(scan, method="cg-sense", mask="random", tuned=path)
    same = recon.reconstruct(scan, method="cg-sense", mask="random", options=record["options"])
    assert torch.equal(result.mean, same.mean)
    assert result.run["arguments"]["options"] == record["options"]
    assert f"options from {path}" in result.run["notes"]
    assert list(result.run["tuned"]) == ["cg.json"]
    mine = recon.reconstruct(scan, method="cg-sense", mask="random", tuned=path, options={"regularization": 1.0})
    assert mine.run["arguments"]["options"] == {"regularization": 1.0}
    with pytest.raises(InputError, match="expected settings of tv, came those of cg-sense"):
        recon.reconstruct(scan, method="tv", mask="random", tuned=path)


# The commands


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands(labels: Path, tmp_path: Path) -> None:
    small = ("--shape", "40,32", "--coils", "3", "--noise", "0.01", "--on", "a_*")
    quick = ("--samples", "2", "--steps", "1", "--alpha", "0.5", "--images", "1")
    said = run("calibrate", str(labels), *small, *quick, "--test", "b_*", "--out", str(tmp_path / "c.json"))
    assert all(word in said for word in ("calibration", "test", "factor"))
    grid = ("--method", "cg-sense", "--set-grid", "regularization=0.01,0.1", "--images", "1")
    said = run("tune", str(labels), *small, *grid, "--out", str(tmp_path / "t.json"))
    assert all(word in said for word in ("regularization=0.01", "--tuned"))
    run("simulate", str(labels / "b_1.nii.gz"), "--shape", "40,32", "--coils", "3", "--out", str(tmp_path / "scan.h5"))
    line = ("reconstruct", str(tmp_path / "scan.h5"), "--mask", "random", "--out", str(tmp_path / "out"), "--overwrite")
    assert "options from" in run(*line, "--method", "cg-sense", "--tuned", str(tmp_path / "t.json"))
    sampler = ("--method", "dds", "--samples", "2", "--steps", "1", "--no-check")
    assert "Calibrated (c.json)" in run(*line, *sampler, "--calibrated", str(tmp_path / "c.json"))
    for wrong in (("--set-grid", "regularization"), ("--set-grid", "a=1,,2"), ("--noise", "1,2,3"), ("--noise", "x")):
        result = CliRunner().invoke(app, ["tune", str(labels), *grid, *wrong, "--out", str(tmp_path / "u.json")])
        assert isinstance(result.exception, InputError)
