"""Scans of ellipses whose line integrals are known, and what the tests of readers share."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam
from recon.ct import CTScan
from recon.errors import InputError, ReconError
from recon.io import load
from recon.io.projection_arrays import default_grid

GRID = Grid((48, 40), 1.0)
ELLIPSES = [(2.0, -1.0, 17.0, 14.0, 0.02), (-5.0, 4.0, 5.0, 3.0, 0.01), (6.0, -5.0, 3.0, 4.0, -0.01)]
"""(y, x) of the middle in mm, half axes in mm, attenuation in 1/mm."""


def angles(views: int, turn: float = math.pi) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * turn / views


PARALLEL = ParallelBeam(angles(60), bins=56)
FAN = FanBeam(angles(90, 2 * math.pi), bins=72, bin_size=1.5, source_to_axis=100.0, source_to_detector=150.0)


def sinogram(geometry: Geometry) -> Tensor:
    """(view, bin) float32; exact line integrals of the ellipses."""
    points, directions = geometry.rays()
    result = torch.zeros(points.shape[:-1], dtype=torch.float64)
    for y, x, b, a, value in ELLIPSES:
        axes = torch.tensor([b, a], dtype=torch.float64)
        p, d = (points - torch.tensor([y, x])) / axes, directions / axes
        dd, pd = (d * d).sum(-1), (p * d).sum(-1)
        inside = pd**2 - dd * ((p * p).sum(-1) - 1)
        result += value * 2 * inside.clamp(min=0).sqrt() / dd * directions.norm(dim=-1)
    return result.float()


PHOTONS = 2e4


def noisy(geometry: Geometry, *, photons: float = PHOTONS, seed: int = 0) -> Tensor:
    """(1, view, bin) line integrals from Poisson counts."""
    expected = photons * torch.exp(-sinogram(geometry).double())
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(seed)).clamp(min=1)
    return -(counts / photons).log().float()[None]


def fan_scan(**changes: Any) -> CTScan:
    return CTScan(**{"projections": noisy(FAN), "geometry": FAN, "grid": GRID, "name": "ellipses", **changes})


def off_centre(axis: float, photons: float | None = 1e7) -> CTScan:
    """A scan over half a turn whose rotation axis projects onto a bin, where its file says that it is in the middle."""
    true = ParallelBeam(angles(90), 80, 1.0, 39.5 - axis)
    projections = sinogram(true)[None] if photons is None else noisy(true, photons=photons)
    told = ParallelBeam(angles(90), 80, 1.0)
    return CTScan(projections, told, default_grid(told), photons=photons, name="off centre")


def refusal(path: Path, kind: type[ReconError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ct(path: Path) -> CTScan:
    scan = load(path)
    assert isinstance(scan, CTScan)
    return scan
