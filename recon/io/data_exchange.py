"""Scientific Data Exchange HDF5 of synchrotrons: parallel beam, raw counts with flats and darks.

`exchange/data`, `data_white` and `data_dark` are (frame, slice, bin), `exchange/theta` the angles.

References
----------
De Carlo et al., J Synchrotron Radiat 21, 1224 (2014).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from operators.geometry import ParallelBeam
from recon.ct import CTScan
from recon.errors import InputError
from recon.io import hdf5
from recon.io.projection_arrays import from_projections, radians
from recon.rotation_centre import centred

LAYOUT = "Data Exchange HDF5"
DATA, FLATS, DARKS, ANGLES = "exchange/data", "exchange/data_white", "exchange/data_dark", "exchange/theta"
PIXEL = "measurement/instrument/detector/x_pixel_size"
UNITS = {"m": 1e3, "mm": 1.0, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "µm": 1e-3}


def matches(path: Path) -> bool:
    """Whether it is HDF5 with exchange/data."""
    return hdf5.is_hdf5(path) and hdf5.shape_of(path, DATA) is not None


@dataclass(frozen=True)
class Transposed:
    """Projections (slice, view, bin) from a dataset (view, slice, bin), read at every access."""

    path: Path
    shape: tuple[int, ...]

    def __getitem__(self, index: slice, /) -> np.ndarray:
        with hdf5.opened(self.path) as file:
            return np.asarray(file[DATA][:, index]).swapaxes(0, 1)


def read(path: Path) -> CTScan:
    """Read counts; they stay on disk until slices are asked for.

    The format does not say where the rotation axis projects onto: it is found in the middle slice, and noted. Without
    a pixel size lengths are in bins, which is noted as well.

    Raises
    ------
    InputError
        If flats or angles are missing, axes disagree, or the angles are neither in degrees nor in radians.
    """
    name = path.name
    with hdf5.opened(path) as file:
        shape = tuple(file[DATA].shape)
        if missing := [key for key in (FLATS, ANGLES) if key not in file]:
            raise InputError(f"{name}: expected {' and '.join(missing)} beside {DATA}, came a file without; add them")
        if len(shape) != 3:
            raise InputError(f"{name}: expected {DATA} of axes (view, slice, bin), came shape {shape}; reorder them")
        flats = np.asarray(file[FLATS], np.float32)
        darks = np.asarray(file[DARKS], np.float32) if DARKS in file else None
        theta = torch.as_tensor(np.asarray(file[ANGLES], np.float64))
        unit = _text(file[ANGLES].attrs.get("units", "degrees"))
        bin_size = _millimetres(file[PIXEL], name) if PIXEL in file else None
        title = _text(file["exchange/title"][()]) if "exchange/title" in file else ""
    if unit[:3] not in ("deg", "rad"):
        raise InputError(f"{name}: expected angles in degrees or radians, came {unit}; mend the attribute units")
    angles = radians(theta, name) if unit.startswith("deg") else theta
    notes = [] if darks is not None else ["Without darks the background was taken to be 0."]
    if bin_size is None:
        notes.append("The file does not say how large a bin is: it was taken as 1 mm.")
    scan = from_projections(
        Transposed(path.absolute(), (shape[1], shape[0], shape[2])),
        ParallelBeam(angles, shape[2], bin_size or 1.0),
        is_counts=True,
        flats=flats,
        darks=darks,
        name=path.stem,
        header={"title": title} if title else {},
        notes=notes,
    )
    try:
        return centred(scan)
    except InputError:
        note = "The rotation axis was taken to project onto the middle of the detector: the views do not tell."
        return replace(scan, notes=(*scan.notes, note))


def _text(value: object) -> str:
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode() if isinstance(value, bytes) else str(value)


def _millimetres(dataset: object, name: str) -> float:
    unit = _text(getattr(dataset, "attrs", {}).get("units", "m"))
    if unit not in UNITS:
        raise InputError(f"{name}: expected {PIXEL} in m, mm or um, came {unit}; mend its attribute units")
    return float(np.asarray(dataset).squeeze()) * UNITS[unit]
