"""LoDoPaB-CT's HDF5 observations: parallel beam, line integrals of lungs at low dose.

`data` (slice, 1000, 513) is a line integral over mu_max = 81.35858 1/m; the images beside it, `ground_truth_*` for
`observation_*`, are attenuation over mu_max, (slice, 362, 362) over 26 cm x 26 cm. Angles are the middles of 1000 parts
of half a turn, bins those of 513 parts of the diagonal; 4096 photons a bin.

References
----------
Leuschner, Schmidt, Baguer & Maass, Sci Data 8, 109 (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from operators.geometry import Grid, ParallelBeam
from recon.ct import CTScan
from recon.io import hdf5
from recon.io.projection_arrays import from_projections

LAYOUT = "LoDoPaB HDF5"
VIEWS, BINS, PIXELS, SIDE = 1000, 513, 362, 260.0
WATER, AIR = 0.02, 0.00002  # 1/mm
LARGEST = 3071 * (WATER - AIR) / 1000 + WATER  # 1/mm
PHOTONS = 4096.0


def matches(path: Path) -> bool:
    """Whether it is HDF5 with a dataset `data` of 1000 views and 513 bins."""
    shape = hdf5.shape_of(path, "data") if hdf5.is_hdf5(path) else None
    return shape is not None and shape[1:] == (VIEWS, BINS)


@dataclass(frozen=True)
class Scaled:
    """A dataset `data` times a factor, read at every access."""

    path: Path
    shape: tuple[int, ...]
    factor: float

    def __getitem__(self, index: slice, /) -> np.ndarray:
        with hdf5.opened(self.path) as file:
            return np.asarray(file["data"][index], np.float32) * np.float32(self.factor)


def truth_of(path: Path) -> Path | None:
    """The file of the ground truth beside that of the observations, if it is there."""
    truth = path.with_name(path.name.replace("observation", "ground_truth"))
    return truth if truth != path and truth.is_file() else None


def files(path: Path) -> tuple[Path, ...]:
    """What is read: the observations and their ground truth."""
    truth = truth_of(path)
    return (path,) if truth is None else (path, truth)


def read(path: Path) -> CTScan:
    """Read observations, and the ground truth where its file stands beside; both stay on disk until asked for.

    The first axis of the images is the dataset's x; it is our y, so that images keep their axes.
    """
    path = path.absolute()
    shape = hdf5.shape_of(path, "data")
    assert shape is not None
    turns = (torch.arange(VIEWS, dtype=torch.float64) + 0.5) * math.pi / VIEWS
    truth, reference = truth_of(path), None
    if truth is not None:
        images = hdf5.shape_of(truth, "data")
        reference = None if images is None else Scaled(truth, images, LARGEST)
    return from_projections(
        Scaled(path, shape, 1e3 * LARGEST),  # theirs are integrals along metres
        # theirs: s = x cos(t) + y sin(t), x our rows; ours: s = row sin(a) + column cos(a)
        ParallelBeam(math.pi / 2 - turns, BINS, SIDE * math.sqrt(2) / BINS),
        grid=Grid((PIXELS, PIXELS), SIDE / PIXELS),
        photons=PHOTONS,
        water=WATER,
        reference=reference,
        name=path.stem,
    )
