"""The line from projections to an image: the scan, its preparation, its likelihood, the command."""

import math

import pytest
import torch
from torch import Tensor

from operators.ct import XRay
from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam
from recon.ct import CTScan, PreparedCT, likelihood

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


@pytest.mark.parametrize("geometry", [PARALLEL, FAN])
def test_likelihood_is_whitened(geometry: Geometry) -> None:
    y = sinogram(geometry)[None].repeat(2, 1, 1)
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    found = likelihood(PreparedCT(y, weights, geometry, GRID, scale=0.02))
    assert found.A.domain.shape == (2, 48, 40)
    assert found.A.domain.ndim == 2
    x = torch.rand(2, 48, 40, generator=torch.Generator().manual_seed(1))
    expected = 0.5 * (weights * (0.02 * XRay(geometry, GRID)(x) - y) ** 2).sum()
    torch.testing.assert_close(found.nll(x), expected, rtol=1e-4, atol=0.0)  # float32 sums
    v = torch.rand(found.A.codomain.shape)
    torch.testing.assert_close(
        found.A.codomain.inner(found.A(x), v), found.A.domain.inner(x, found.A.H(v)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(found.A.gram(x), found.A.H(found.A(x)), rtol=1e-4, atol=1e-6)  # float32


def test_views_of_a_geometry() -> None:
    chosen = torch.tensor([3, 10, 50])
    torch.testing.assert_close(FAN.select(chosen).angles, FAN.angles[chosen])
    wrapped = torch.remainder(FAN.view_angles() - FAN.angles + 1, 2 * math.pi) - 1
    assert float(wrapped.abs().max()) < 1e-12


def test_slices_are_read_lazily() -> None:
    scan = CTScan(torch.rand(5, 60, 56), PARALLEL, GRID, flats=torch.ones(3, 5, 56))
    part = scan[1:3]
    assert len(part) == 2
    assert part.flats is not None
    assert part.flats.shape == (3, 2, 56)
    assert part.shape == (48, 40)
    assert part.voxel_size == (1.0, 1.0, 1.0)
