"""Projections in NumPy and TIFF files with a geometry file: what is written is read, and each mistake is one line."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ct_scans import ct, refusal

from operators.ct import FanBeam, Grid, ParallelBeam, ViewVectors
from recon.errors import MissingFileError
from recon.io import from_projections, load, numpy_projections
from recon.io import geometry_file as geometry_file_module

ANGLES = torch.linspace(0, 3, 7, dtype=torch.float64)
GEOMETRIES = [
    ParallelBeam(ANGLES, 10, 0.5, 0.25),
    FanBeam(ANGLES, 10, 0.5, 40.0, 60.0, detector_offset=0.1, rotation_offset=-0.2),
    FanBeam(ANGLES, 10, 0.5, 40.0, 60.0, curved=True),
    ViewVectors(torch.rand(7, 2) + 10, torch.rand(7, 2), 10, source=torch.rand(7, 2) - 9),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: type(g).__name__)
def test_npz_round_trip(tmp_path: Path, geometry: Any) -> None:
    scan = from_projections(
        torch.rand(2, 7, 10),
        geometry,
        grid=Grid((6, 5), (0.3, 0.4), (1.0, 2.0)),
        is_counts=True,
        flats=torch.ones(3, 2, 10),
        darks=torch.zeros(1, 2, 10),
        reference=torch.rand(2, 6, 5),
        gain=2.5,
        water=0.02,
        slice_spacing=3.0,
        header={"KVP": "120"},
    )
    numpy_projections.write(tmp_path / "scan.npz", scan)
    back = ct(tmp_path / "scan.npz")
    for name in ("projections", "reference"):
        assert torch.equal(torch.as_tensor(getattr(back, name)[:]), torch.as_tensor(getattr(scan, name)[:])), name
    for found, written in zip(back.geometry.rays(), geometry.rays(), strict=True):
        assert torch.allclose(found, written, atol=1e-12)  # vectors were float32
    assert back.grid == scan.grid
    assert torch.equal(back.flats, scan.flats)
    assert (back.is_counts, back.gain, back.water, back.slice_spacing) == (True, 2.5, 0.02, 3.0)
    assert back.header == {"KVP": "120"}


def geometry_file(path: Path, **changes: Any) -> Path:
    entries: dict[str, Any] = {
        "beam": "parallel",
        "angles_degrees": {"start": 0, "stop": 150, "views": 6},
        "bin_size": 0.5,
    }
    entries |= changes
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))
    return path


def test_npy_with_a_geometry_beside_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(size=(6, 9)).astype(np.float32)
    np.save(tmp_path / "scan.npy", values)
    geometry_file(tmp_path / "scan.json", rotation_centre=3.0)
    scan = ct(tmp_path / "scan.npy")
    assert np.array_equal(scan.projections[:][0], values)
    assert isinstance(scan.geometry, ParallelBeam)
    assert scan.geometry.detector_offset == (4 - 3.0) * 0.5
    assert float(scan.geometry.angles[-1]) == pytest.approx(math.radians(150))
    assert scan.grid.pixel_sizes == (0.5, 0.5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_pages_and_the_order_of_axes(tmp_path: Path, dtype: str) -> None:
    from PIL import Image

    values = np.random.default_rng(0).uniform(1, 250, size=(6, 2, 9)).astype(dtype)  # (view, slice, bin)
    first, *others = (Image.fromarray(page) for page in values)
    first.save(tmp_path / "scan.tif", save_all=True, append_images=others)
    geometry_file(tmp_path / "any.json", projections="scan.tif", axes="view,slice,bin", counts=True, flat=255)
    scan = ct(tmp_path / "any.json")
    assert np.array_equal(scan.projections[:], values.swapaxes(0, 1).astype(np.float32))
    assert scan.flats is not None
    assert float(scan.flats.mean()) == 255
    assert "JSON" in refusal(tmp_path / "scan.tif", MissingFileError)


def test_the_geometry_files_of_the_documentation_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.ones((459, 503), np.float32))
    for text in ((Path(__file__).parents[1] / "README.md").read_text(), str(geometry_file_module.__doc__)):
        (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        entries = json.loads(example)
        entries.pop("projections", None)
        (tmp_path / "scan.json").write_text(json.dumps(entries))
        scan = ct(tmp_path / "scan.npy")
        assert (scan.geometry.views, scan.geometry.bins, scan.is_counts) == (459, 503, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beam": "cone"}, "parallel, fan-flat"),
        ({"bin_size": None}, "expected bin_size"),
        ({"bin_size": -1}, "positive number of mm"),
        ({"source_to_axis": 3}, "unknown in a parallel geometry: source_to_axis"),
        ({"angles": [0, 1]}, "either angles"),
        ({"angles_degrees": {"start": 0, "views": 6}}, "start, stop and views"),
        ({"angles_degrees": {"start": 0, "stop": 150, "views": 7}}, "axis -2 has 6 views, the geometry 7"),
        ({"bins": 8}, "axis -1 has 9 bins, the geometry 8"),
        ({"counts": True}, "expected flats"),
        ({"rotation_centre": 40}, "misses it"),
        ({"rotation_centre": 4, "detector_offset": 0}, "came both"),
        ({"image_shape": [5, 5]}, "together"),
        ({"photons": 0}, "photons as a positive number"),
        ({"axes": "bin,view"}, "slice,view,bin"),
        ({"water": 0.2}, "in 1/mm"),
        ({"counts": "false"}, 'counts as true or false, came "false"'),
        ({"flat": 47000}, "flats beside counts only"),
        ({"flat": "abc", "counts": True}, "flat as a number"),
        ({"gain": "abc"}, "gain as a number"),
        ({"gain": True}, "gain as a number, came true"),
        ({"bins": "abc"}, "bins as a whole number"),
        ({"bins": 9.7}, "bins as a whole number, came 9.7"),
        ({"angles_degrees": {"start": 0, "stop": 150, "views": 6.5}}, "views as a whole number"),
        ({"angles_degrees": {"start": 0, "stop": 150, "views": -6}}, "at least 1 of views, came -6"),
        ({"angles_degrees": ["a"]}, "angles_degrees: expected a list of numbers, came ['a']"),
        ({"angles_degrees": None, "angles": ["a"]}, "angles: expected a list of numbers, came ['a']"),
        ({"header": [1]}, "header as an object"),
        ({"notes": "hello"}, "notes as a list"),
        ({"image_centre": [1, 1]}, "came image_centre alone"),
        ({"image_shape": [5.5, 5], "pixel_size": 1}, "came image_shape [5.5, 5]"),
        ({"image_shape": [5, 5], "pixel_size": [1, 1, 1]}, "pixel_size in mm"),
        ({"reference": 5}, "reference as a text"),
    ],
)
def test_geometry_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    np.save(tmp_path / "scan.npy", np.ones((6, 9), np.float32))
    geometry_file(tmp_path / "scan.json", **changes)
    assert said in refusal(tmp_path / "scan.npy")


def test_geometry_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"beam": ')
    assert "not" in refusal(tmp_path / "a.json")
    geometry_file(tmp_path / "b.json")
    assert "expected projections" in refusal(tmp_path / "b.json")
    geometry_file(tmp_path / "c.json", projections="none.npy")
    assert "none.npy" in refusal(tmp_path / "c.json", MissingFileError)
    geometry_file(tmp_path / "c.json", projections=5)
    assert "projections as a text, came 5" in refusal(tmp_path / "c.json")
    np.savez(tmp_path / "d.npz", projections=np.ones((1, 6, 9)))
    assert "expected geometry" in refusal(tmp_path / "d.npz")


def test_degrees_for_radians_and_radians_for_degrees_warn(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.ones((6, 9), np.float32))
    geometry_file(tmp_path / "scan.json", angles_degrees=None, angles=[0, 30, 60, 90, 120, 150])
    with pytest.warns(UserWarning, match="deg2rad"):
        load(tmp_path / "scan.npy")
    geometry_file(tmp_path / "scan.json", angles_degrees=[0, 0.5, 1, 1.5, 2, 2.5])
    with pytest.warns(UserWarning, match="are they radians"):
        load(tmp_path / "scan.npy")
