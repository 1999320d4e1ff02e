"""The bin that the rotation axis of a parallel beam projects onto: found in a scan, or told."""

from __future__ import annotations

from dataclasses import replace

from operators.geometry import Grid, ParallelBeam

from .ct import CTScan, logarithm
from .errors import InputError
from .io.projection_arrays import default_grid
from .projections import centre_from_consistency, centre_from_opposite_views


def centred(scan: CTScan, centre: float | None = None) -> CTScan:
    """The scan with its rotation axis where it should be, and a note that says where and why.

    An image over the circle that every view sees whole follows the axis; one of another size stays as it is.

    Parameters
    ----------
    centre : the bin (from 0, may be a fraction) that the axis projects onto; what the middle slice tells if None.

    Raises
    ------
    InputError
        If the beam is not parallel, the views do not tell, or the axis does not project onto the detector.
    """
    geometry = scan.geometry
    if not isinstance(geometry, ParallelBeam):
        raise InputError(
            "rotation_centre: expected a parallel beam, whose axis projects onto one bin, got "
            f"{type(geometry).__name__}; give rotation_offset or detector_offset (mm) in its geometry file"
        )
    if centre is None:
        middle = len(scan) // 2
        centre, source = find_centre(scan[middle : middle + 1]), f"as the views of slice {middle} tell"
    else:
        source = "as given"
    if not 0 <= centre <= geometry.bins - 1:
        raise InputError(f"rotation_centre: expected a bin from 0 to {geometry.bins - 1}, got {centre:g} ({source})")
    offset = ((geometry.bins - 1) / 2 - centre) * geometry.bin_size
    moved = replace(geometry, detector_offset=offset)
    grid = default_grid(moved) if _same(scan.grid, default_grid(geometry)) else scan.grid
    note = f"The rotation axis projects onto bin {centre:.2f}, {source}."
    return replace(scan, geometry=moved, grid=grid, notes=(*scan.notes, note))


def _same(a: Grid, b: Grid) -> bool:
    """Pixel sizes may be one number or two."""
    return (a.shape, a.pixel_sizes, a.centre) == (b.shape, b.pixel_sizes, b.centre)


def find_centre(scan: CTScan) -> float:
    """The bin, from the first slice of a parallel beam's scan.

    Raises
    ------
    InputError
        If neither half a turn nor opposite views are there.
    """
    assert isinstance(scan.geometry, ParallelBeam)
    sinogram = logarithm(scan[:1]).values[0]
    try:
        return centre_from_consistency(sinogram, scan.geometry.angles)
    except InputError:
        return centre_from_opposite_views(sinogram, scan.geometry.angles)
