"""Which files a scan is made of: they are what a record holds checksums of, and what a resumed run depends on."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ct_scans import PARALLEL, noisy
from test_dicom import projections
from test_partial import interrupt, parts

from recon.benchmark.grid import make_grid
from recon.benchmark.run import benchmark
from recon.errors import InputError
from recon.io import cfl, files_of, geometry_file
from recon.io.numpy_projections import write
from recon.io.writers import checksums
from recon.pipeline import reconstruct

FRAMES = ("flats", "darks")
KSPACE = np.ones((1, 2, 4, 4), np.complex64)


def sinogram(folder: Path, *, slices: int = 1, **changes: object) -> Path:
    """Counts in sinogram.npy, with a geometry beside it that names flats and darks."""
    (folder / "frames").mkdir(exist_ok=True)
    values = 900 * torch.exp(-noisy(PARALLEL)).repeat(slices, 1, 1) + 100
    np.save(folder / "sinogram.npy", values.numpy())
    for name, value in zip(FRAMES, (1000, 100), strict=True):
        np.save(folder / "frames" / f"{name}.npy", np.full((1, slices, PARALLEL.bins), value, np.float32))
    write_geometry(folder, **changes)
    return folder / "sinogram.npy"


def write_geometry(folder: Path, **changes: object) -> None:
    entries = {"beam": "parallel", "angles": PARALLEL.angles.tolist(), "bin_size": PARALLEL.bin_size, "counts": True}
    entries |= {name: f"frames/{name}.npy" for name in FRAMES}
    (folder / "sinogram.json").write_text(json.dumps(entries | changes))


def names(path: Path) -> list[str]:
    return [file.relative_to(path.parent).as_posix() for file in files_of(path)]


def test_a_scan_is_made_of_all_that_is_read(tmp_path: Path) -> None:
    path = sinogram(tmp_path)
    assert names(path) == ["sinogram.npy", "sinogram.json", "frames/flats.npy", "frames/darks.npy"]
    write_geometry(tmp_path, projections="sinogram.npy")
    assert files_of(tmp_path / "sinogram.json") == files_of(path)
    projections(tmp_path / "dicom", positions=1, views=3)
    (tmp_path / "dicom" / "deeper").mkdir()
    (tmp_path / "dicom" / "1.dcm").rename(tmp_path / "dicom" / "deeper" / "1.dcm")
    assert names(tmp_path / "dicom") == ["dicom/0.dcm", "dicom/2.dcm", "dicom/deeper/1.dcm"]
    cfl.write(tmp_path / "pair", KSPACE, readout_axis=-2)
    for ending in ("", ".cfl", ".hdr"):
        assert names(tmp_path / f"pair{ending}") == ["pair.cfl", "pair.hdr"]
    for name, shape in (("observation_000", (1, 1000, 513)), ("ground_truth_000", (1, 362, 362))):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["data"] = np.zeros(shape, np.float32)
    assert names(tmp_path / "observation_000.hdf5") == ["observation_000.hdf5", "ground_truth_000.hdf5"]


def test_a_file_beside_that_is_not_read_is_no_part(tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text("{}")
    np.save(tmp_path / "scan.npy", KSPACE)  # k-space: its axes say all
    assert names(tmp_path / "scan.npy") == ["scan.npy"]
    scan = geometry_file.scan_of({"beam": "parallel", "angles": [0, 1], "bin_size": 1}, torch.ones(1, 2, 9), name="a")
    write(tmp_path / "scan.npz", scan)
    assert names(tmp_path / "scan.npz") == ["scan.npz"]


def test_checksums_are_by_the_name_in_the_folder(tmp_path: Path) -> None:
    path = sinogram(tmp_path)
    sums = checksums(path)
    assert sorted(sums) == ["frames/darks.npy", "frames/flats.npy", "sinogram.json", "sinogram.npy"]
    for name, value in sums.items():
        assert value == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    folder = tmp_path / "dicom"
    projections(folder, positions=1, views=2)
    assert sorted(checksums(folder)) == ["0.dcm", "1.dcm"]


@pytest.mark.filterwarnings("ignore:the detector ends")
def test_a_folder_of_projections_is_reconstructed_and_recorded(tmp_path: Path) -> None:
    folder, out = tmp_path / "scan", tmp_path / "out"
    projections(folder, positions=2)
    result = reconstruct(folder, method="fbp", out=out)
    assert torch.equal(result.mean, reconstruct(folder, method="fbp").mean)
    recorded = json.loads((out / "run.json").read_text())["input"]
    assert recorded == checksums(folder)
    assert len(recorded) == 24
    shutil.copytree(folder, tmp_path / "copy" / "scan")
    grid = make_grid([folder], methods=["fbp"], masks=["views"], accelerations=[2.0], slices=(0, 1))
    again = make_grid([tmp_path / "copy" / "scan"], methods=["fbp"], masks=["views"], accelerations=[2.0])
    assert grid.files[0].sha256 == again.files[0].sha256
    assert not benchmark(grid, out=tmp_path / "benchmark", workers=1).failed


def test_a_benchmark_tells_scans_by_all_their_files(tmp_path: Path) -> None:
    for name in ("a a", "b b"):  # names with blanks: of content alone
        (tmp_path / name).mkdir()
        path = sinogram(tmp_path / name).rename(tmp_path / name / f"{name}.npy")
        (tmp_path / name / "sinogram.json").rename(path.with_suffix(".json"))
    paths = [tmp_path / name / f"{name}.npy" for name in ("a a", "b b")]
    asked = {"methods": ["fbp"], "masks": ["views"], "accelerations": [2.0]}
    with pytest.raises(InputError, match="the same data in"):
        make_grid(paths, **asked)
    np.save(paths[1].parent / "frames" / "flats.npy", np.full((1, 1, PARALLEL.bins), 1100, np.float32))
    assert len(make_grid(paths, **asked).files) == 2


@pytest.mark.filterwarnings("ignore:the detector ends")
@pytest.mark.parametrize("changed", ["geometry", *FRAMES])
def test_an_edited_file_beside_the_data_starts_a_run_anew(tmp_path: Path, changed: str) -> None:
    path, out, asked = sinogram(tmp_path, slices=2), tmp_path / "out", {"method": "sirt", "options": {"iterations": 3}}
    interrupt(path, 0.6, out=out, **asked)
    assert len(parts(out)) == 1
    if changed == "geometry":
        write_geometry(tmp_path, rotation_centre=20.0)
    else:
        value = {"flats": 1200, "darks": 60}[changed]
        np.save(tmp_path / "frames" / f"{changed}.npy", np.full((1, 2, PARALLEL.bins), value, np.float32))
    mean = reconstruct(path, out=out, **asked).mean
    assert torch.equal(mean[0], mean[1])  # of the same data: no slice is of the old files
    assert torch.equal(mean, reconstruct(path, **asked).mean)


@pytest.mark.filterwarnings("ignore:the detector ends")
def test_an_edited_file_in_a_folder_starts_a_run_anew(tmp_path: Path) -> None:
    folder, out, asked = tmp_path / "scan", tmp_path / "out", {"method": "sirt", "options": {"iterations": 3}}
    projections(folder, positions=2)
    interrupt(folder, 0.6, out=out, **asked)
    assert len(parts(out)) == 1
    file = folder / "0.dcm"
    file.write_bytes(file.read_bytes().replace(b"0.00002", b"0.00003"))  # the scale of its values
    assert torch.equal(reconstruct(folder, out=out, **asked).mean, reconstruct(folder, **asked).mean)
