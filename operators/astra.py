"""astra-toolbox as a projector of `operators.ct.XRay`: on the processor, in two dimensions, in single precision."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry, Grid

Map = Callable[[Tensor], Tensor]


class Astra:
    """Line integrals and their transpose by astra's `linear` (parallel rays) or `line_fanflat` (rays from a source).

    `linear` is Joseph's method too; `line_fanflat` weights pixels by the lengths of the ray in them. It runs on one
    thread, one image after the other. Derivatives of any order exist; torch.compile leaves it out of its graphs.

    Parameters
    ----------
    geometry : with a flat detector.
    grid : with square pixels.

    Raises
    ------
    ImportError
        If astra-toolbox is not installed.
    ValueError
        If astra has no such detector or pixels.
    """

    def __init__(self, geometry: Geometry, grid: Grid) -> None:
        self._astra = astra = _import()
        height, width = grid.pixel_sizes
        if height != width:
            raise ValueError(
                f"astra: expected square pixels, got pixel_size {grid.pixel_sizes} mm; use backend='joseph'"
            )
        # astra's y points up and its rows go down: with y mirrored its rows are ours.
        (bottom, top), (left, right) = (
            (c - n * width / 2, c + n * width / 2) for c, n in zip(grid.centre, grid.shape, strict=True)
        )
        self._volume = astra.create_vol_geom(*grid.shape, left, right, -top, -bottom)
        name, projector = ("fanflat_vec", "line_fanflat") if geometry.has_source else ("parallel_vec", "linear")
        self._rays = astra.create_proj_geom(name, geometry.bins, _vectors(geometry).numpy())
        self._projector = astra.create_projector(projector, self._rays, self._volume)
        weakref.finalize(self, astra.projector.delete, self._projector)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, y, x) to (batch, views, bins)."""
        return _Linear.apply(images, self._forward, self._adjoint)

    def adjoint(self, sinograms: Tensor) -> Tensor:
        """(batch, views, bins) to (batch, y, x)."""
        return _Linear.apply(sinograms, self._adjoint, self._forward)

    def _forward(self, images: Tensor) -> Tensor:
        rays = self._rays
        result = images.new_zeros(len(images), len(rays["Vectors"]), rays["DetectorCount"])
        for image, sinogram in zip(images.contiguous(), result, strict=True):
            self._run("FP", image, sinogram, VolumeDataId=0, ProjectionDataId=1)
        return result

    def _adjoint(self, sinograms: Tensor) -> Tensor:
        result = sinograms.new_zeros(len(sinograms), self._volume["GridRowCount"], self._volume["GridColCount"])
        for image, sinogram in zip(result, sinograms.contiguous(), strict=True):
            self._run("BP", image, sinogram, ReconstructionDataId=0, ProjectionDataId=1)
        return result

    def _run(self, algorithm: str, image: Tensor, sinogram: Tensor, **roles: int) -> None:
        """astra works in the memory of the tensors; `roles` are its names for the image (0) and the sinogram (1)."""
        astra = self._astra
        data = [
            astra.data2d.link("-vol", self._volume, image.numpy()),
            astra.data2d.link("-sino", self._rays, sinogram.numpy()),
        ]
        config = astra.astra_dict(algorithm) | {name: data[role] for name, role in roles.items()}
        run = astra.algorithm.create(config | {"ProjectorId": self._projector})
        try:
            astra.algorithm.run(run)
        finally:
            astra.algorithm.delete(run)
            astra.data2d.delete(data)


class _Linear(torch.autograd.Function):
    """A linear function with its transpose, which are each other's derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Map, transpose: Map) -> Tensor:
        ctx.pair = transpose, function
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(gradient, *ctx.pair), None, None


def _vectors(geometry: Geometry) -> Tensor:
    """(views, 6) float64: source or direction, middle of the detector, step from bin to bin; each (x, -y) mm."""
    points, directions = geometry.rays()
    ends = points + directions if geometry.has_source else points
    first, last = ends[:, 0], ends[:, -1]
    across = torch.stack((-directions[:, 0, 1], directions[:, 0, 0]), -1)
    step = (last - first) / (geometry.bins - 1) if geometry.bins > 1 else across
    even = first[:, None] + step[:, None] * torch.arange(geometry.bins)[:, None]
    if not torch.allclose(even, ends, rtol=0, atol=1e-6 * float(step.norm(dim=-1).max())):
        raise ValueError("astra: expected a flat detector, got a curved one; use backend='joseph'")
    where = points[:, 0] if geometry.has_source else directions[:, 0]
    return torch.cat([pair.flip(-1) * pair.new_tensor([1.0, -1.0]) for pair in (where, (first + last) / 2, step)], -1)


def _import() -> ModuleType:
    try:
        import astra
    except ImportError as error:
        raise ImportError("backend='astra' needs astra-toolbox; pip install 'tweedie-recon[astra]'") from error
    return astra
