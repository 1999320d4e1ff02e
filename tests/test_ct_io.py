"""CT readers and writers: geometry and units are what the files say, and each mistake is one line."""

import math
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from ct_scans import ct, refusal

from operators.ct import FanBeam, Grid, ParallelBeam, ViewVectors, XRay
from recon.ct import CTScan
from recon.errors import InputError
from recon.io import from_projections, load
from recon.io.projection_arrays import default_grid


def disc(geometry: Any, *, y: float, x: float, radius: float) -> torch.Tensor:
    """(view, bin) line integrals of a disc of attenuation 1, from its chords."""
    points, directions = geometry.rays()
    towards = torch.tensor([y, x], dtype=torch.float64) - points
    across = (directions[..., 0] * towards[..., 1] - directions[..., 1] * towards[..., 0]) / directions.norm(dim=-1)
    return 2 * (radius**2 - across**2).clamp(min=0).sqrt().float()


def centre_of_mass(image: torch.Tensor, grid: Grid) -> tuple[float, float]:
    """(y, x) mm."""
    y, x = (
        (image.sum(axis) * (torch.arange(n) - (n - 1) / 2) * size).sum() / image.sum()
        for axis, n, size in zip((1, 0), grid.shape, grid.pixel_sizes, strict=True)
    )
    return float(y), float(x)


def least_squares(scan: CTScan, *, iterations: int = 10) -> tuple[torch.Tensor, float]:
    """Image of conjugate gradients from the first slice, and the part of the data that it leaves."""
    A, y = XRay(scan.geometry, scan.grid), torch.as_tensor(scan.projections[0:1])[0]
    x, r = torch.zeros(scan.grid.shape), y.clone()
    z = A.H(r)
    p, norm = z, z.square().sum()
    for _ in range(iterations):
        q = A(p)
        step = norm / q.square().sum()
        x, r = x + step * p, r - step * q
        z = A.H(r)
        p, norm = z + z.square().sum() / norm * p, z.square().sum()
    return x, float(r.norm() / y.norm())


# -- HTC 2022 ---------------------------------------------------------------------------------------------------------


def htc_fields(views: int = 12, bins: int = 24) -> dict[str, Any]:
    sinogram = np.random.default_rng(0).uniform(0.5, 1, (views, bins))
    sinogram[:, :8], sinogram[:, -8:] = 0.02, 0.02  # air
    parameters = {
        "angles": np.linspace(0, 330, views),
        "distanceSourceOrigin": 410.66,
        "distanceSourceDetector": 553.74,
        "distanceUnit": "mm",
        "pixelSizePost": 0.2,
        "numDetectorsPost": bins,
    }
    return {"type": "2d", "sinogram": sinogram, "parameters": parameters}


def test_htc_geometry_units_and_air(tmp_path: Path) -> None:
    from scipy.io import savemat

    fields = htc_fields()
    savemat(tmp_path / "scan.dat", {"CtDataFull": fields})  # the content decides
    scan = ct(tmp_path / "scan.dat")
    geometry = scan.geometry
    assert isinstance(geometry, FanBeam)
    assert (geometry.source_to_axis, geometry.source_to_detector, geometry.bin_size) == (410.66, 553.74, 0.2)
    assert not geometry.curved
    assert geometry.angles.tolist() == pytest.approx((math.pi - np.deg2rad(fields["parameters"]["angles"])).tolist())
    assert scan.grid.pixel_sizes[0] == pytest.approx(0.2 * 410.66 / 553.74)
    assert np.allclose(scan.projections[:][0], fields["sinogram"][:, ::-1] - 0.02, atol=1e-6)
    assert any("0.0200" in note for note in scan.notes)


def test_htc_version_7_3_is_the_same(tmp_path: Path) -> None:
    from scipy.io import savemat

    fields, path = htc_fields(), tmp_path / "new.mat"
    savemat(tmp_path / "old.mat", {"CtDataLimited": fields})
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("CtDataLimited")
        group["sinogram"] = fields["sinogram"].T
        for key, value in fields["parameters"].items():
            text = isinstance(value, str)
            letters = np.array([[ord(c)] for c in value], np.uint16) if text else np.atleast_2d(value).T
            group[f"parameters/{key}"] = letters
            group[f"parameters/{key}"].attrs["MATLAB_class"] = np.bytes_("char" if text else "double")
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file, HDF5 schema 1.00".ljust(128)
    path.write_bytes(content)
    new, old = ct(path), ct(tmp_path / "old.mat")
    assert torch.equal(torch.as_tensor(new.projections[:]), torch.as_tensor(old.projections[:]))
    assert torch.equal(new.geometry.rays()[0], old.geometry.rays()[0])
    assert new.header["distanceUnit"] == "mm"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"distanceUnit": "cm"}, "in mm, came cm"),
        ({"numDetectorsPost": 20}, "axis -1 has 24 bins, the geometry 20"),
        ({"angles": 30 * np.arange(5.0)}, "axis -2 has 12 views, the geometry 5"),
        ({"distanceSourceDetector": 100.0}, "detector beyond the rotation axis"),
    ],
)
def test_htc_that_does_not_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    from scipy.io import savemat

    fields = htc_fields()
    fields["parameters"] |= change
    savemat(tmp_path / "scan.mat", {"CtDataFull": fields})
    assert said in refusal(tmp_path / "scan.mat")


def test_htc_truncated(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(tmp_path / "scan.mat", {"CtDataFull": htc_fields()})
    (tmp_path / "scan.mat").write_bytes((tmp_path / "scan.mat").read_bytes()[:2000])
    assert "copy it again" in refusal(tmp_path / "scan.mat")


def test_htc_turns_as_the_scanner_does(data_dir: Path) -> None:
    scan = ct(data_dir / "ct" / "htc2022_tc_full.mat")
    assert (scan.geometry.views, scan.geometry.bins, scan.shape) == (721, 560, (512, 512))
    geometry, views = scan.geometry, torch.arange(0, 720, 24)
    assert isinstance(geometry, FanBeam)
    data, left = torch.as_tensor(scan.projections[:])[:, views], {}
    for sign in (1, -1):
        turned = FanBeam(sign * geometry.angles[views], 560, 0.2, geometry.source_to_axis, geometry.source_to_detector)
        part = from_projections(data, turned, grid=Grid((128, 128), 4 * scan.grid.pixel_sizes[0]))
        left[sign] = least_squares(part)[1]
    assert left[1] < 0.5 * left[-1]  # 0.6 % against 2.4 % of the data, at 256^2 from 60 views


# -- Data Exchange ----------------------------------------------------------------------------------------------------


def data_exchange(path: Path, *, axis: float = 27.5, units: str | None = "degrees", **leave: bool) -> torch.Tensor:
    """A file of two discs in two slices, whose rotation axis projects onto a bin; returns its line integrals."""
    degrees = np.arange(60) * 3.0
    geometry = ParallelBeam(torch.deg2rad(torch.from_numpy(degrees)), 64, 1.0, 31.5 - axis)
    body = 0.05 * disc(geometry, y=4, x=2, radius=14) + 0.1 * disc(geometry, y=-8, x=3, radius=3)
    with h5py.File(path, "w") as file:
        counts = 100 + 9900 * torch.exp(-body)
        file["exchange/data"] = torch.stack((counts, counts), 1).numpy()
        file["exchange/theta"] = degrees if units != "radians" else np.deg2rad(degrees)
        if units:
            file["exchange/theta"].attrs["units"] = units
        if not leave.get("flats"):
            file["exchange/data_white"] = np.full((3, 2, 64), 10000, np.float32)
        file["exchange/data_dark"] = np.full((3, 2, 64), 100, np.float32)
        file["exchange/title"] = "a title"
    return body


@pytest.mark.parametrize("units", ["degrees", "radians", None])
def test_data_exchange_counts_angles_and_centre(tmp_path: Path, units: str | None) -> None:
    data_exchange(tmp_path / "scan", units=units)
    scan = ct(tmp_path / "scan")
    geometry = scan.geometry
    assert isinstance(geometry, ParallelBeam)
    assert (len(scan), geometry.views, geometry.bins, scan.is_counts) == (2, 60, 64, True)
    assert float(geometry.angles[-1]) == pytest.approx(math.radians(177))
    # the object is of sharp discs, sampled by bins: a tenth of a bin
    assert (64 - 1) / 2 - geometry.detector_offset == pytest.approx(27.5, abs=0.1)
    assert scan.flats is not None
    assert scan[1:2].flats.shape == (3, 1, 64)
    assert scan.header["title"] == "a title"
    assert torch.equal(
        torch.as_tensor(pickle.loads(pickle.dumps(scan)).projections[0:1]), torch.as_tensor(scan.projections[0:1])
    )


def test_data_exchange_without_flats(tmp_path: Path) -> None:
    data_exchange(tmp_path / "scan", flats=True)
    assert "exchange/data_white" in refusal(tmp_path / "scan")


def test_data_exchange_in_radians_that_does_not_say_so_warns(tmp_path: Path) -> None:
    data_exchange(tmp_path / "scan.h5", units="radians")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        del file["exchange/theta"].attrs["units"]  # the format's own is degrees
    with pytest.warns(UserWarning, match=r"scan.h5: its angles reach over 3.09 degrees only; are they radians"):
        load(tmp_path / "scan.h5")


def test_tooth(data_dir: Path) -> None:
    scan = ct(data_dir / "ct" / "tomopy_tooth.h5")
    assert (len(scan), scan.geometry.views, scan.geometry.bins) == (2, 181, 640)
    assert isinstance(scan.geometry, ParallelBeam)
    assert 319.5 - scan.geometry.detector_offset == pytest.approx(296, abs=0.5)  # the published centre


# -- LoDoPaB ----------------------------------------------------------------------------------------------------------


def test_lodopab_by_its_specification(tmp_path: Path) -> None:
    # theirs: angle t looks at s = x cos(t) + y sin(t), x along the rows; metres, over mu_max
    t, s = (np.arange(1000) + 0.5) * np.pi / 1000, (np.arange(513) - 256) * 0.26 * math.sqrt(2) / 513
    x0, y0, radius, mu = 0.05, -0.03, 0.02, 20.0
    across = s - (x0 * np.cos(t) + y0 * np.sin(t))[:, None]
    integrals = mu * 2 * np.sqrt(np.clip(radius**2 - across**2, 0, None))
    axis = (np.arange(362) - 180.5) * 0.26 / 362
    truth = mu * ((axis[:, None] - x0) ** 2 + (axis - y0) ** 2 < radius**2)
    for name, values in (("observation", integrals), ("ground_truth", truth)):
        with h5py.File(tmp_path / f"{name}_test_000.hdf5", "w") as file:
            file["data"] = (values[None] / 81.35858).astype(np.float32)
    scan = ct(tmp_path / "observation_test_000.hdf5")
    assert scan.photons == 4096
    assert scan.reference is not None
    assert float(torch.as_tensor(scan.reference[0:1]).max()) == pytest.approx(0.02)  # water, 1/mm
    assert scan.projections[0:1].max() == pytest.approx(0.8, rel=1e-3)
    projected = XRay(scan.geometry, scan.grid)(torch.as_tensor(scan.reference[0:1]))
    difference = projected - torch.as_tensor(scan.projections[0:1])
    # the disc is drawn in pixels: measured 2 %; another orientation gives more than 100 %
    assert float(difference.norm() / projected.norm()) < 0.04


# -- What every reader refuses ----------------------------------------------------------------------------------------

ANGLES = torch.linspace(0, 3, 7, dtype=torch.float64)


def test_projections_that_do_not_fit_their_geometry() -> None:
    geometry = ParallelBeam(ANGLES, 10)
    for wrong, said in (
        (torch.ones(7, 10), r"\(slice, view, bin\)"),
        (torch.ones(1, 10, 7), "transpose"),
        (torch.ones(1, 7, 10, dtype=torch.complex64), "real"),
        (np.ones((1, 7, 10), bool), "real"),
        (torch.ones(0, 7, 10), "non-empty"),
    ):
        with pytest.raises(InputError, match=said):
            from_projections(wrong, geometry)
    with pytest.raises(InputError, match="flats"):
        from_projections(torch.ones(1, 7, 10), geometry, is_counts=True, flats=torch.ones(1, 1, 9))
    with pytest.raises(InputError, match="flats and darks beside counts only"):
        from_projections(torch.ones(1, 7, 10), geometry, flats=torch.ones(1, 1, 10), darks=torch.ones(1, 1, 10))
    for water in (0.2, 20.0, -1.0):  # in 1/cm, in 1/m
        with pytest.raises(InputError, match=r"scan: water: expected an attenuation in 1/mm, .* 1/cm or 1/m"):
            from_projections(torch.ones(1, 7, 10), geometry, water=water)


def test_nan_is_refused_when_its_slice_is_read() -> None:
    values = torch.ones(3, 7, 10)
    values[2, 1, 1] = math.nan
    scan = from_projections(values, ParallelBeam(ANGLES, 10))
    scan.projections[0:2]
    with pytest.raises(InputError, match="slice 2"):
        scan.projections[1:3]


def test_a_reference_of_another_size_is_left_out_and_said() -> None:
    scan = from_projections(torch.ones(1, 7, 10), ParallelBeam(ANGLES, 10), reference=torch.ones(1, 3, 3))
    assert scan.reference is None
    assert "left out" in scan.notes[0]


def test_default_grid_is_what_every_view_sees() -> None:
    # bins 0 ... 9 of 1 mm about bin 3: 3 mm on the narrow side
    assert default_grid(ParallelBeam(ANGLES, 10, 1.0, 1.5)) == Grid((6, 6), 1.0)
    fan = default_grid(FanBeam(ANGLES, 101, 1.0, 50.0, 100.0))
    radius = 50 * math.sin(math.atan(50 / 100))
    assert fan.pixel_sizes[0] == 0.5
    assert fan.shape[0] * 0.25 == pytest.approx(radius, abs=0.5)
    with pytest.raises(InputError, match="image_shape"):
        default_grid(ViewVectors(torch.rand(7, 2) + 10, torch.rand(7, 2), 10, source=torch.rand(7, 2) - 9))
