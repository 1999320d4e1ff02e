"""The Helsinki tomography challenge's MATLAB files (version 5, or 7.3, which is HDF5): fan beam, flat detector.

A structure CtDataFull or CtDataLimited holds `sinogram` (view, bin), the logarithm already taken, and `parameters` with
angles in degrees and distances in mm. The image is oriented as the challenge's own reconstructions are.

References
----------
Meaney, Silva de Moura, Juvonen & Siltanen, Helsinki tomography challenge 2022, zenodo.6984868.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from operators.geometry import FanBeam, Grid
from recon.ct import CTScan
from recon.errors import InputError
from recon.io import hdf5
from recon.io.projection_arrays import from_projections, radians
from recon.projections import air_offset

LAYOUT = "HTC 2022 MATLAB"
STRUCTURE = "CtData"
SHAPE = (512, 512)  # of the challenge's images


def matches(path: Path) -> bool:
    """Whether it is a MATLAB file with a structure whose name begins with CtData."""
    with path.open("rb") as file:
        start = file.read(128)
    if len(start) < 128 or not start.startswith(b"MATLAB"):
        return False
    if start.startswith(b"MATLAB 7.3"):
        return any(name.startswith(STRUCTURE) for name in hdf5.names(path))
    from scipy.io import whosmat

    try:
        return any(name.startswith(STRUCTURE) for name, _, _ in whosmat(path))
    except Exception as error:  # whatever a broken file leads scipy to
        raise _broken(path, error) from error


def read(path: Path) -> CTScan:
    """Read one sinogram. What air reads (about 0.016 in these files) is taken off, and noted.

    Raises
    ------
    InputError
        If a parameter is missing, a distance is not in mm, or the sinogram does not fit the angles and bins.
    """
    data = _structure(path)
    parameters = data.get("parameters")
    if not isinstance(parameters, dict) or "sinogram" not in data:
        raise InputError(f"{path.name}: expected sinogram and parameters in {STRUCTURE}..., came {', '.join(data)}")

    def number(key: str) -> float:
        if key not in parameters:
            raise InputError(f"{path.name}: expected {key} among the parameters, came {', '.join(parameters)}")
        return float(np.asarray(parameters[key]).squeeze())

    if (unit := str(parameters.get("distanceUnit", "mm"))) != "mm":
        raise InputError(f"{path.name}: expected distances in mm, came {unit}; convert them")
    if "angles" not in parameters:
        raise InputError(f"{path.name}: expected angles among the parameters, came {', '.join(parameters)}")
    degrees = torch.as_tensor(np.asarray(parameters["angles"], float).ravel())
    sinogram = np.atleast_2d(np.asarray(data["sinogram"], np.float32))
    bins, size = int(number("numDetectorsPost")), number("pixelSizePost")
    distances = number("distanceSourceOrigin"), number("distanceSourceDetector")
    try:  # the challenge's angles turn the other way round than ours, with bins in the other order
        geometry = FanBeam(torch.pi - radians(degrees, path.name), bins, size, *distances)
    except ValueError as error:
        raise InputError(f"{path.name}: {error}") from error
    pixel = geometry.bin_size * geometry.source_to_axis / geometry.source_to_detector
    projections = torch.from_numpy(np.ascontiguousarray(sinogram[:, ::-1]))[None]
    notes = ["The rotation axis was taken to project onto the middle of the detector."]
    if sinogram.shape[-1] >= 16:
        air = float(air_offset(projections))
        projections -= air
        notes.append(f"What air read, {air:.4f}, was taken off the line integrals.")
    texts = {key: value for key, value in parameters.items() if isinstance(value, str)}
    return from_projections(projections, geometry, grid=Grid(SHAPE, pixel), name=path.stem, header=texts, notes=notes)


def _structure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        newer = file.read(10) == b"MATLAB 7.3"
    if newer:
        with hdf5.opened(path) as file:
            return next(_entries(file[name]) for name in file if name.startswith(STRUCTURE))
    from scipy.io import loadmat

    try:
        found = loadmat(path, simplify_cells=True)
    except Exception as error:  # whatever a broken file leads scipy to
        raise _broken(path, error) from error
    return next(value for name, value in found.items() if name.startswith(STRUCTURE))


def _entries(group: Any) -> dict[str, Any]:
    """A structure of a version 7.3 file: its arrays are transposed, its texts are numbers of letters."""
    import h5py

    entries: dict[str, Any] = {}
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            entries[name] = _entries(item)
        elif item.attrs.get("MATLAB_class", b"") == b"char":
            entries[name] = "".join(map(chr, np.asarray(item).T.ravel()))
        else:
            entries[name] = np.asarray(item).T
    return entries


def _broken(path: Path, error: Exception) -> InputError:
    what = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path}: expected a whole MATLAB file, came one that cannot be read ({what}); copy it again")
