"""Files in and out. `load` looks at what a file holds, not at what it is called.

A new format is one module with `LAYOUT` (its name), `matches(path) -> bool` and `read(path)`, which returns a scan,
and its line in FORMATS. If it reads more than the file that is named, it says what by `files(path)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from recon.ct import CTScan
from recon.errors import InputError, MissingFileError
from recon.io import (
    cfl,
    data_exchange,
    dicom,
    dicom_projections,
    fastmri,
    htc,
    lodopab,
    numpy_array,
    numpy_projections,
)
from recon.io.arrays import from_arrays
from recon.io.projection_arrays import from_projections
from recon.mri import MRIScan


class Format(Protocol):
    """What a module of this package offers to read one format."""

    LAYOUT: str

    def matches(self, path: Path) -> bool: ...

    def read(self, path: Path) -> MRIScan | CTScan: ...


# fastmri takes any HDF5 that is left, numpy_array any .npy or .npz, to say what is missing in it.
FORMATS: tuple[Format, ...] = (
    *(htc, data_exchange, lodopab, dicom_projections, numpy_projections),
    *(fastmri, numpy_array, cfl),
)


def load(path: str | Path) -> MRIScan | CTScan:
    """Read a scan; its data stay on disk until slices are asked for, where the format lets them.

    Parameters
    ----------
    path : k-space as a fastMRI HDF5 file, a BART pair (either file, or their name without ending), a .npy or .npz; or
        projections as an HTC 2022 .mat, Data Exchange or LoDoPaB HDF5, a folder or tar archive of DICOM-CT-PD files,
        a .npz, .npy or TIFF with a geometry file (see `recon.io.geometry_file`), or that file.

    Raises
    ------
    MissingFileError
        If nothing is there.
    InputError
        If the content is of no known format, or not what its format promises.
    """
    path = Path(path)
    try:
        if layout := format_of(path):
            return layout.read(path)
    except PermissionError as error:
        raise InputError(
            f"{path}: expected a file that may be read, came one that may not; change its permissions"
        ) from error
    if not path.exists():
        raise MissingFileError(f"{path}: expected a file, came a path where there is none; check its spelling")
    if path.is_dir():
        raise InputError(f"{path}: expected a file, or a folder of DICOM projections, came another folder; name a file")
    known = ", ".join(layout.LAYOUT for layout in FORMATS)
    raise InputError(f"{path}: expected a scan as {known}; came a file whose content is none of these; convert it")


def format_of(path: Path) -> Format | None:
    """The format of what is there, None if it is none of these."""
    formats: tuple[Format, ...] = FORMATS if path.is_file() else (cfl,)  # a pair may be named where there is no file
    if path.is_dir():
        formats += (dicom_projections,)
    return next((layout for layout in formats if layout.matches(path)), None)


def files_of(path: str | Path) -> tuple[Path, ...]:
    """Every file that a scan, or anything else that is read, is made of.

    The files in a folder, both of a BART pair, a geometry file and the arrays that it names; else the file itself.
    """
    path = Path(path)
    files = getattr(format_of(path), "files", None)
    return (path,) if files is None else tuple(files(path))


__all__ = ["FORMATS", "Format", "dicom", "files_of", "from_arrays", "from_projections", "load"]
