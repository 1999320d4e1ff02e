"""Projections from arrays: the one place where every CT reader's data is checked and given a grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam
from recon.ct import CTScan
from recon.errors import InputError
from recon.mri import SliceArray
from recon.projections import checked_water


@dataclass(frozen=True)
class CheckedProjections:
    """Projections that are checked as they are read; holds nothing but its source (picklable if that is).

    Parameters
    ----------
    source : (slice, view, bin) numbers.
    name : what to call it in messages.
    """

    source: SliceArray
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def __getitem__(self, index: slice, /) -> Tensor:
        values = self.source[index]
        projections = values.float() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
        bad = ~projections.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            number = range(self.shape[0])[index][int(bad.nonzero()[0])]
            raise InputError(
                f"{self.name}: expected finite projections; slice {number} holds NaN or infinity; leave it out, or "
                "repair the file"
            )
        return projections


def from_projections(
    projections: SliceArray,
    geometry: Geometry,
    *,
    grid: Grid | None = None,
    is_counts: bool = False,
    flats: np.ndarray | Tensor | None = None,
    darks: np.ndarray | Tensor | None = None,
    gain: float | None = None,
    photons: float | None = None,
    electronic: float = 0.0,
    water: float | None = None,
    reference: SliceArray | None = None,
    slice_spacing: float = 1.0,
    name: str = "scan",
    header: dict[str, str] | None = None,
    notes: Sequence[str] = (),
) -> CTScan:
    """Check arrays, lazy or in memory, and make them a scan.

    Parameters
    ----------
    projections : (slice, view, bin) real; only slices are ever read from it.
    grid : pixels of the image; `default_grid` if None.
    flats, darks : (frame, slice, bin), for counts.
    geometry, is_counts, gain, photons, electronic, water, reference, slice_spacing, name, header, notes : as in
        CTScan. A reference of another size than the image is left out, and that is noted.

    Raises
    ------
    InputError
        Wrong axes or axes that disagree with the geometry (says which), complex or boolean data, counts without flats,
        flats without counts or of another shape, NaNs (when their slice is read), a number that should be positive,
        water out of the range of `checked_water`.
    """
    shape = tuple(projections.shape)
    if len(shape) != 3 or 0 in shape:
        raise InputError(
            f"{name}: expected projections with non-empty axes (slice, view, bin), came shape {shape}; reorder the "
            "axes or add those of length 1"
        )
    dtype = getattr(projections, "dtype", None)
    if str(dtype).removeprefix("torch.").startswith(("complex", "bool")):
        raise InputError(f"{name}: expected real projections, came {dtype}; give counts or line integrals")
    try:
        geometry.check(torch.empty(shape, device="meta"))
    except ValueError as error:
        raise InputError(f"{name}: {error}; or mend the geometry") from error
    frames = {"flats": flats, "darks": darks}
    for what, values in frames.items():
        if values is not None and (values.ndim != 3 or tuple(values.shape[1:]) != (shape[0], shape[2])):
            raise InputError(
                f"{name}: expected {what} (frame, slice, bin) with {shape[0]} slices of {shape[2]} bins, came shape "
                f"{tuple(values.shape)}"
            )
    if is_counts and flats is None:
        raise InputError(f"{name}: expected flats (counts without object) beside counts, came none; measure them")
    if not is_counts and (given := [what for what, values in frames.items() if values is not None]):
        raise InputError(
            f"{name}: expected {' and '.join(given)} beside counts only, came line integrals; say that these are "
            f"counts (counts true), or leave out {' and '.join(given)}"
        )
    numbers = {"gain": gain, "photons": photons, "slice_spacing": slice_spacing}
    for what, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name}: expected {what} as a positive number, came {value:g}")
    if not 0 <= electronic < math.inf:
        raise InputError(
            f"{name}: expected electronic, a standard deviation in photons, of 0 or more, came {electronic:g}"
        )
    if water is not None:
        try:
            checked_water(water)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    grid, remarks = default_grid(geometry) if grid is None else grid, list(notes)
    if reference is not None and tuple(reference.shape) != (shape[0], *grid.shape):
        expected = (shape[0], *grid.shape)
        remarks.append(f"The reference was left out: it is {tuple(reference.shape)} and the image is {expected}.")
        reference = None
    flat, dark = (
        None if values is None else torch.as_tensor(np.asarray(values, np.float32)) for values in frames.values()
    )
    return CTScan(
        projections=CheckedProjections(projections, name),
        geometry=geometry,
        grid=grid,
        is_counts=is_counts,
        flats=flat,
        darks=dark,
        gain=gain,
        photons=photons,
        electronic=electronic,
        water=water,
        reference=reference,
        slice_spacing=slice_spacing,
        name=name,
        header=dict(header or {}),
        notes=tuple(remarks),
    )


def radians(degrees: Tensor, name: str) -> Tensor:
    """Angles (views,) in radians, of those that a file gives in degrees.

    Warns
    -----
    UserWarning
        If they look as if they were radians already.
    """
    reach = float(degrees.max() - degrees.min()) if len(degrees) > 2 else 0.0
    if 0 < reach <= 2 * math.pi:
        warnings.warn(f"{name}: its angles reach over {reach:.3g} degrees only; are they radians?", stacklevel=2)
    return torch.deg2rad(degrees)


def default_grid(geometry: Geometry) -> Grid:
    """The square about the circle that every view sees whole, in pixels of one bin's width at the rotation axis.

    Raises
    ------
    InputError
        If the geometry is of another kind than parallel or fan, or the rotation axis is not in front of the detector.
    """
    if not isinstance(geometry, ParallelBeam | FanBeam):
        raise InputError(f"grid: expected image_shape and pixel_size with {type(geometry).__name__}, came none")
    points, directions = (x[0] for x in geometry.rays())  # the first view; the others are turned
    lengths = directions.norm(dim=-1)
    distance = (directions[:, 0] * points[:, 1] - directions[:, 1] * points[:, 0]) / lengths  # of the axis from the ray
    magnification = geometry.source_to_detector / geometry.source_to_axis if isinstance(geometry, FanBeam) else 1.0
    pixel = geometry.bin_size / magnification
    if not float(distance[0] * distance[-1]) < 0:
        raise InputError(
            "geometry: expected the rotation axis to project onto the detector, it misses it; check the offsets (mm)"
        )
    radius = float(distance[[0, -1]].abs().min())
    size = max(1, 2 * math.ceil(radius / pixel - 1e-6))
    return Grid((size, size), pixel)
