"""What the readers of HDF5 layouts share: opening, looking, and arrays that stay on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recon.errors import InputError

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether the file is HDF5: its signature stands at byte 0, 512, 1024, 2048, ... (after a user block)."""
    with path.open("rb") as file:
        size, offset = path.stat().st_size, 0
        while offset < size:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            offset = 2 * offset or 512
    return False


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The open file; what HDF5 cannot read is one line."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        what = "truncated" if "truncated" in str(error) else " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a whole HDF5 file, came one that cannot be read ({what}); copy it again"
        ) from error


def shape_of(path: Path, dataset: str) -> tuple[int, ...] | None:
    """The shape of a dataset, None if there is no such one."""
    import h5py

    with opened(path) as file:
        found = file.get(dataset)
        return tuple(found.shape) if isinstance(found, h5py.Dataset) else None


def names(path: Path) -> list[str]:
    """What stands at the root of the file."""
    with opened(path) as file:
        return list(file)


@dataclass(frozen=True)
class HDF5Array:
    """An HDF5 dataset that opens its file at every access: lazy, and picklable for spawned workers.

    Parameters
    ----------
    path : the file.
    dataset : name of the dataset inside it.
    shape : of the dataset; with an axis of length 1 after the first where it has no coil axis.
    """

    path: Path
    dataset: str
    shape: tuple[int, ...]

    def __getitem__(self, index: slice, /) -> np.ndarray:
        with opened(self.path) as file:
            values = file[self.dataset][index]
        return values.reshape(len(values), *self.shape[1:])
