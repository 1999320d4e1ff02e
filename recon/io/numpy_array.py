"""NumPy arrays: .npy with k-space, .npz with k-space and what belongs to it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon.errors import InputError
from recon.io.arrays import from_arrays, refuse_real
from recon.mri import MRIScan

LAYOUT = "NumPy .npy/.npz"
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
KEYS = ("kspace", "mask", "noise", "reference", "recon_shape", "voxel_size", "readout_axis")


def matches(path: Path) -> bool:
    """Whether the file is a .npy, or a zip archive that holds only .npy members."""
    with path.open("rb") as file:
        start = file.read(len(NPY))
    if start.startswith(ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                return all(member.endswith(".npy") for member in archive.namelist())
        except zipfile.BadZipFile:  # truncated: the table of members is at the end
            return path.suffix == ".npz"
    return start == NPY


def read(path: Path) -> MRIScan:
    """Read k-space (coil, ky, kx), (slice, coil, ky, kx) or (slice, coil, kz, ky, kx).

    A .npy stays on disk until slices are asked for. A .npz may hold, beside `kspace`: `mask`, `noise` (coil, sample),
    `reference` (slice, y, x), `recon_shape`, `voxel_size` (mm along z, y, x) and `readout_axis` (negative).

    Raises
    ------
    InputError
        No `kspace` (says what there is), wrong axes, real data, a mask of the wrong width, a truncated file, ...
    """
    with path.open("rb") as file:
        archive = file.read(len(ZIP)) == ZIP
    return read_npz(path) if archive else read_npy(path)


def mapped(path: Path) -> np.ndarray:
    """The array in a .npy, memory-mapped."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path}: expected a whole .npy file, came one that cannot be read ({error}); save it again"
        ) from error


@dataclass(frozen=True)
class NpyArray:
    """An array in a .npy, mapped at every access: lazy, and picklable for spawned workers."""

    path: Path
    shape: tuple[int, ...]

    def __getitem__(self, index: slice, /) -> np.ndarray:
        return np.array(mapped(self.path).reshape(self.shape)[index])


def read_npy(path: Path) -> MRIScan:
    array = mapped(path)
    refuse_real(array, path.name)
    shape = array.shape if array.ndim != 3 else (1, *array.shape)
    return from_arrays(NpyArray(path.absolute(), shape), name=path.stem)


def read_npz(path: Path) -> MRIScan:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: expected a whole .npz file, came one that cannot be read ({error}); save it again"
        ) from error
    if "kspace" not in arrays:
        raise InputError(f"{path.name}: expected an array 'kspace', came {', '.join(sorted(arrays)) or 'nothing'}")
    kspace, unknown = arrays["kspace"], sorted(set(arrays) - set(KEYS))
    voxel_size = arrays.get("voxel_size", np.ones(3))
    if voxel_size.shape != (3,) or voxel_size.dtype.kind not in "iuf" or not (voxel_size > 0).all():
        raise InputError(
            f"{path.name}: expected voxel_size of three positive numbers (z, y, x) in mm, came {voxel_size}"
        )
    dz, dy, dx = (float(n) for n in voxel_size)
    for key, axes in (("readout_axis", 0), ("recon_shape", 1)):
        if key in arrays and (arrays[key].ndim != axes or arrays[key].dtype.kind not in "iu"):
            raise InputError(
                f"{path.name}: expected {key} as {('a whole number', 'whole numbers')[axes]}, came {arrays[key]!r}"
            )
    return from_arrays(
        kspace if kspace.ndim != 3 else kspace[None],
        arrays.get("mask"),
        mask_source="mask of the file",
        readout_axis=int(arrays["readout_axis"]) if "readout_axis" in arrays else None,
        recon_shape=arrays["recon_shape"].tolist() if "recon_shape" in arrays else None,
        voxel_size=(dz, dy, dx),
        noise=arrays.get("noise"),
        reference=arrays.get("reference"),
        name=path.stem,
        notes=[f"Not used: {', '.join(unknown)} (known: {', '.join(KEYS)})."] if unknown else [],
    )
