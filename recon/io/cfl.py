"""BART cfl: a text header (.hdr) with the dimensions beside raw column-major complex64 (.cfl).

BART's dimensions 0, 1, 2 are space (0 the readout), 3 the coils, 13 the slices. A scan keeps the spatial ones in BART's
order: (slice, coil, ky, kx) is dimensions (13, 3, 0, 1) where dimension 2 has length 1, and (13, 3, 1, 2) where
dimension 0 has (both are then phase encodings, as in a slice of a volume whose readout was transformed); where none
has, the scan is a volume and (slice, coil, kz, ky, kx) is dimensions (13, 3, 0, 1, 2). DC at n // 2, as in BART.

References
----------
Uecker et al., Berkeley Advanced Reconstruction Toolbox, Proc ISMRM 23, 2486 (2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from recon.errors import InputError, MissingFileError
from recon.io.arrays import from_arrays
from recon.io.atomic import atomic
from recon.mri import MRIScan

LAYOUT = "BART cfl/hdr"
DIMENSIONS = 16
SPACE, COIL, SLICE = (0, 1, 2), 3, 13
TITLE = "# Dimensions"


def pair(path: str | Path) -> tuple[Path, Path]:
    """Paths of the .cfl and the .hdr, from either of them or from their common name without ending."""
    path = Path(path)
    base = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    return base.with_name(base.name + ".cfl"), base.with_name(base.name + ".hdr")


def matches(path: Path) -> bool:
    """Whether a header that starts as BART's stands beside it (the data is raw: without one its ending must do)."""
    header = pair(path)[1]
    if not header.is_file():
        return path.suffix == ".cfl" and path.is_file()
    with header.open("rb") as file:
        return file.read(len(TITLE)) == TITLE.encode()


files = pair


def dimensions(path: str | Path) -> tuple[int, ...]:
    """The 16 dimensions in the header, checked against the size of the data.

    Raises
    ------
    MissingFileError
        If the .cfl or the .hdr is missing.
    InputError
        If the header has no dimensions, or the data is shorter or longer than they say.
    """
    data, header = pair(path)
    for file in (data, header):
        if not file.is_file():
            raise MissingFileError(f"{file}: expected a .cfl with its .hdr, came one without the other; copy both")
    lines = header.read_text(errors="replace").splitlines()
    words = lines[lines.index(TITLE) + 1].split() if TITLE in lines[:-1] else []
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InputError(
            f"{header}: expected a line '{TITLE}' and positive numbers below it, came {' '.join(words) or 'none'}"
        )
    dims = tuple(int(word) for word in words)
    dims += (1,) * (DIMENSIONS - len(dims))
    expected, size = 8 * math.prod(dims), data.stat().st_size
    if size != expected:
        raise InputError(
            f"{data}: expected {expected} bytes for dimensions {' '.join(words)}, came {size}; "
            + ("the file is truncated, copy it again" if size < expected else "the header belongs to another file")
        )
    return dims


def read_array(path: str | Path) -> np.ndarray:
    """The data as BART orders it, memory-mapped: complex64 with 16 axes, column-major."""
    return np.memmap(pair(path)[0], dtype=np.complex64, mode="r", order="F", shape=dimensions(path))


@dataclass(frozen=True)
class CflArray:
    """K-space in a .cfl, mapped at every access: lazy, and picklable for spawned workers.

    Parameters
    ----------
    path : the pair's name.
    axes : BART dimensions in the order (slice, coil, *space).
    shape : along these axes.
    """

    path: Path
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def __getitem__(self, index: slice, /) -> np.ndarray:
        array = read_array(self.path)
        others = tuple(d for d in range(array.ndim) if d not in self.axes)
        ordered = array.transpose(*self.axes, *others).reshape(self.shape)  # the others have length 1: still a view
        return np.array(ordered[index], order="C")


def read(path: Path) -> MRIScan:
    """Read k-space; it stays on disk until slices are asked for. A cfl has no mask: what was sampled comes from zeros.

    Raises
    ------
    InputError
        Dimensions other than space, coils and slices; fewer than two in space; a truncated file; NaNs; zeros only.
    """
    dims = dimensions(path)
    space, name = tuple(d for d in SPACE if dims[d] > 1), pair(path)[0].stem
    others = {d: n for d, n in enumerate(dims) if n > 1 and d not in (*SPACE, COIL, SLICE)}
    if others:
        raise InputError(
            f"{name}: expected BART dimensions 0-2 (space), {COIL} (coil) and {SLICE} (slice) only, came "
            + ", ".join(f"{n} along dimension {d}" for d, n in others.items())
            + "; extract one entry of it with `bart slice`"
        )
    if len(space) < 2:
        raise InputError(f"{name}: expected k-space with 2 or 3 axes in space (BART dimensions 0-2), came {dims[:3]}")
    axes = (SLICE, COIL, *space)
    return from_arrays(
        CflArray(path.absolute(), axes, tuple(dims[d] for d in axes)),
        readout_axis=-len(space) if 0 in space else None,
        name=name,
    )


def write(path: str | Path, kspace: np.ndarray | Tensor, *, readout_axis: int | None, overwrite: bool = False) -> None:
    """Write k-space so that `read` gives it back exactly.

    Parameters
    ----------
    path : name of the pair, with or without ending.
    kspace : (slice, coil, ky, kx) or (slice, coil, kz, ky, kx) complex; stored as complex64.
    readout_axis : the first spatial axis if it is the readout, None if all are phase encodings (as in MRIScan).

    Raises
    ------
    InputError
        If the axes do not fit BART's (a readout axis other than the first, a volume without readout).
    ResultExistsError, WriteError
        If the pair is there and `overwrite` is not set; if it cannot be written.
    """
    values = np.asarray(kspace)
    space = values.ndim - 2
    if space not in (2, 3) or readout_axis not in (-space, None if space == 2 else -3):
        raise InputError(
            "expected k-space (slice, coil, ky, kx) or (slice, coil, kz, ky, kx) with the readout as first spatial "
            f"axis, came shape {values.shape} with readout axis {readout_axis}; move the readout first"
        )
    first = 1 if space == 2 and readout_axis is None else 0
    axes = (SLICE, COIL, *range(first, first + space))
    ordered = np.expand_dims(values, tuple(range(values.ndim, DIMENSIONS)))
    others = tuple(d for d in range(DIMENSIONS) if d not in axes)
    write_array(path, ordered.transpose(np.argsort((*axes, *others))), overwrite=overwrite)


def write_array(path: str | Path, array: np.ndarray | Tensor, *, overwrite: bool = False) -> None:
    """Write an array whose axes are BART's dimensions in order, at most 16, as complex64.

    Raises
    ------
    ResultExistsError, WriteError
        If the pair is there and `overwrite` is not set; if it cannot be written.
    """
    values = np.asarray(array)
    data, header = pair(path)
    dims = values.shape + (1,) * (DIMENSIONS - values.ndim)
    with atomic(header, overwrite=overwrite) as new_header, atomic(data, overwrite=overwrite) as new_data:
        with new_data.open("wb") as file:
            file.write(np.ascontiguousarray(values.T, dtype=np.complex64).data)  # the first axis varies fastest
        new_header.write_text(f"{TITLE}\n{' '.join(map(str, dims))}\n")
