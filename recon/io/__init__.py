"""Files in and out. `load` looks at what a file holds, not at what it is called.

A new format is one module with `LAYOUT` (its name), `matches(path) -> bool` and `read(path) -> MRIScan`, and its
line in FORMATS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from recon.errors import InputError, MissingFileError
from recon.io import cfl, fastmri, numpy_array
from recon.io.arrays import from_arrays
from recon.mri import MRIScan


class Format(Protocol):
    """What a module of this package offers to read one format."""

    LAYOUT: str

    def matches(self, path: Path) -> bool: ...

    def read(self, path: Path) -> MRIScan: ...


FORMATS: tuple[Format, ...] = (fastmri, numpy_array, cfl)


def load(path: str | Path) -> MRIScan:
    """Read a scan; k-space stays on disk until slices are asked for.

    Parameters
    ----------
    path : a fastMRI HDF5 file, a BART pair (either file, or their name without ending), a .npy or .npz.

    Raises
    ------
    MissingFileError
        If nothing is there.
    InputError
        If the content is of no known format, or not what its format promises.
    """
    path = Path(path)
    try:
        for layout in FORMATS if path.is_file() else (cfl,):  # a pair may be named where there is no file
            if layout.matches(path):
                return layout.read(path)
    except PermissionError as error:
        raise InputError(
            f"{path}: expected a file that may be read, came one that may not; change its permissions"
        ) from error
    if not path.exists():
        raise MissingFileError(f"{path}: expected a file, came a path where there is none; check its spelling")
    if path.is_dir():
        raise InputError(f"{path}: expected a file, came a folder; name a file inside it")
    known = ", ".join(layout.LAYOUT for layout in FORMATS)
    raise InputError(f"{path}: expected k-space as {known}; came a file whose content is none of these; convert it")


__all__ = ["FORMATS", "Format", "from_arrays", "load"]
