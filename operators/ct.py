"""X-ray computed tomography in the plane: the projector from images to sinograms."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .astra import Astra
from .geometry import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors
from .kernels import joseph, joseph_adjoint
from .linop import Adjoint, LinearOperator, Space

Backend = Literal["joseph", "astra"]

__all__ = ["Backend", "FanBeam", "Geometry", "Grid", "ParallelBeam", "ViewVectors", "XRay"]


class XRay(LinearOperator):
    """Line integrals of images (..., y, x) in 1/mm: sinograms (..., views, bins).

    By Joseph's method: a ray is followed along the axis it is closest to; each row of pixels that it crosses gives the
    value interpolated linearly between two pixels, times the length from row to row. The adjoint is the exact
    transpose; it is not the back-projection of filtered back-projection. Derivatives of any order exist by the image,
    none by the geometry.

    Its error falls with the square of the pixel where the image is smooth, and with the pixel across its edges. A bin
    sees one ray, without width, and a view one angle.

    Parameters
    ----------
    geometry : where the rays run.
    grid : the pixels of the image.
    dtype : torch.float32 or torch.float64.
    device : where images and sinograms lie.
    backend : "joseph", the kernels of this package; or "astra", astra-toolbox on one thread of the processor, for flat
        detectors, square pixels and float32. Its method is Joseph's for parallel rays; for rays from a source it
        weights pixels by the lengths of the ray in them.

    Raises
    ------
    ValueError
        If no ray meets the grid, the source is inside it, or dtype or backend is another one; if astra has no such
        detector, pixels, dtype or device.
    ImportError
        If astra is asked for and not installed.

    References
    ----------
    Joseph, IEEE Trans Med Imaging 1, 192 (1982).
    """

    def __init__(
        self,
        geometry: Geometry,
        grid: Grid,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: Backend = "joseph",
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}; attenuation is real")
        if backend not in get_args(Backend):
            raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
        where = torch.empty(0, device=device).device
        rays, runs = _trace(geometry, grid)
        self.geometry, self.grid = geometry, grid
        self._projector: Joseph | Astra
        if backend == "astra":
            if dtype != torch.float32 or where.type != "cpu":
                raise ValueError(f"astra: expected torch.float32 on the cpu, got {dtype} on {where}")
            self._projector = Astra(geometry, grid)
        else:
            self._projector = Joseph(rays.to(where, dtype), runs.to(where), grid.shape)
        super().__init__(Space(tuple(grid.shape), dtype, where), Space((geometry.views, geometry.bins), dtype, where))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
        return self._projector.forward(flat).reshape(*x.shape[:-2], *self.codomain.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        flat = y.reshape(math.prod(y.shape[:-2]), *y.shape[-2:])
        return self._projector.adjoint(flat).reshape(*y.shape[:-2], *self.domain.shape)

    @property
    def H(self) -> LinearOperator:
        return _XRayAdjoint(self)


class Joseph:
    """The kernels of this package on the rays of one geometry; see operators.kernels."""

    def __init__(self, rays: Tensor, runs: Tensor, shape: tuple[int, int]) -> None:
        self.rays, self.runs, self.shape = rays, runs, shape

    def forward(self, images: Tensor) -> Tensor:
        """(batch, y, x) to (batch, views, bins)."""
        return joseph(images, self.rays, self.runs)

    def adjoint(self, sinograms: Tensor) -> Tensor:
        """(batch, views, bins) to (batch, y, x)."""
        return joseph_adjoint(sinograms, self.rays, self.runs, *self.shape)


class _XRayAdjoint(Adjoint):
    """The adjoint, which names the axis of a sinogram that does not fit."""

    operator: XRay

    def __call__(self, x: Tensor) -> Tensor:
        self.operator.geometry.check(x)
        return super().__call__(x)


def _trace(geometry: Geometry, grid: Grid) -> tuple[Tensor, Tensor]:
    """Rays and runs as operators.kernels takes them, in float64."""
    points, directions = geometry.rays()
    point, direction = grid.to_pixels(points), directions / directions.new_tensor(grid.pixel_sizes)
    shape = point.new_tensor(grid.shape)
    # Where a ray enters and leaves the grid and the pixel of zeros around it, in lengths of its direction.
    edges = torch.stack(((-1 - point) / direction, (shape - point) / direction))
    enter, leave = edges.amin(0).amax(-1), edges.amax(0).amin(-1)
    meets = enter < leave
    if geometry.has_source:
        inside = meets & (enter < 0) & (leave > 0)
        if bool(inside.any()):
            raise ValueError(
                f"in view {int(inside.any(1).nonzero()[0])} the source is inside the image grid; move it away, or "
                "make the grid or its pixels smaller (mm)"
            )
        meets &= leave > 0
    if not bool(meets.any()):
        raise ValueError("no ray meets the image grid; check distances, offsets and pixel_size (mm)")
    along_x = direction[..., 1].abs() > direction[..., 0].abs()
    major, minor = along_x.long()[..., None], (~along_x).long()[..., None]
    step = direction.gather(-1, minor) / direction.gather(-1, major)
    start = point.gather(-1, minor) - step * point.gather(-1, major)
    length = directions.norm(dim=-1, keepdim=True) / direction.gather(-1, major).abs()
    rays = torch.cat((start, step, length), -1).movedim(-1, 0).contiguous()
    # Runs: neighbours of one view of the same kind; kind 2 misses the grid.
    kind = torch.where(meets, along_x.long(), 2) + 3 * torch.arange(geometry.views)[:, None]
    kinds, counts = kind.flatten().unique_consecutive(return_counts=True)
    runs = torch.stack((counts.cumsum(0) - counts, counts, kinds % 3), -1)
    return rays, runs[runs[:, 2] < 2].to(torch.int32)
