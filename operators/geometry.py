"""Where the rays of an X-ray scan run, and where the pixels of its image lie.

Lengths are in mm, angles in radians, attenuation in 1/mm, so that line integrals have no unit. Pairs are (y, x), as the
axes of an image; y grows with the row. The rotation axis is the origin. A view at `angle` looks along
(cos angle, -sin angle), and its bins follow each other along (sin angle, cos angle): at angle 0 rays go along y, and
bins along x.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The pixels of an image.

    Parameters
    ----------
    shape : (y, x), numbers of pixels.
    pixel_size : mm; one number or (y, x).
    centre : (y, x) mm; where the middle of the image lies, from the rotation axis.

    Raises
    ------
    ValueError
        If a number or a size of pixels is not positive.
    """

    shape: tuple[int, int]
    pixel_size: float | tuple[float, float] = 1.0
    centre: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for n in self.shape:
            _check_positive(n, "shape of the grid", "pixels")
        for size in self.pixel_sizes:
            _check_positive(size, "pixel_size", "mm")

    @property
    def pixel_sizes(self) -> tuple[float, float]:
        size = self.pixel_size
        return size if isinstance(size, tuple) else (size, size)

    def to_pixels(self, points: Tensor) -> Tensor:
        """(..., 2) mm to indices of rows and columns."""
        return (points - points.new_tensor(self.centre)) / points.new_tensor(self.pixel_sizes) + self._middle(points)

    def to_mm(self, indices: Tensor) -> Tensor:
        """(..., 2) indices of rows and columns to mm."""
        from_middle = (indices - self._middle(indices)) * indices.new_tensor(self.pixel_sizes)
        return from_middle + indices.new_tensor(self.centre)

    def _middle(self, like: Tensor) -> Tensor:
        return (like.new_tensor(self.shape) - 1) / 2


class Geometry:
    """Where the rays of a scan run: one sinogram row per view, one ray per bin, through the middle of the bin."""

    bins: int

    @property
    def views(self) -> int:
        raise NotImplementedError

    def rays(self) -> tuple[Tensor, Tensor]:
        """A point and a direction of every ray, both (views, bins, 2) float64 in mm.

        Where rays come from a source the point is the source, and point + direction lies on the detector.
        """
        raise NotImplementedError

    @property
    def has_source(self) -> bool:
        """Whether rays begin at their point, rather than pass it."""
        raise NotImplementedError

    def select(self, views: Tensor) -> Self:
        """The geometry of some views, in the order of their indices (n,) int64."""
        raise NotImplementedError

    def view_angles(self) -> Tensor:
        """(views,) float64 radians; the direction of the ray through the middle of the detector, in [-pi, pi]."""
        directions = self.rays()[1]
        middle = directions[:, (self.bins - 1) // 2] + directions[:, self.bins // 2]
        return torch.atan2(-middle[:, 1], middle[:, 0])

    def check(self, sinogram: Tensor) -> None:
        """Raise ValueError unless the trailing axes of a sinogram are (views, bins); it says which one is not."""
        shape = tuple(sinogram.shape)
        if len(shape) < 2:
            raise ValueError(f"sinogram: expected (..., views, bins), got shape {shape}")
        names = ("views", "bins")
        found, expected = shape[-2:], (self.views, self.bins)
        wrong = [
            f"axis {axis} has {n} {name}, the geometry {m}"
            for axis, name, n, m in zip((-2, -1), names, found, expected, strict=True)
            if n != m
        ]
        if wrong:
            hint = "; transpose it with sinogram.mT" if found == expected[::-1] else ""
            raise ValueError(f"sinogram of shape {shape}: {', '.join(wrong)}{hint}")


@dataclass(frozen=True, eq=False)
class ParallelBeam(Geometry):
    """Parallel rays: p(angle, s) integrates the image along y sin(angle) + x cos(angle) = s.

    Parameters
    ----------
    angles : (views,) radians; any.
    bins : number of detector bins.
    bin_size : mm from one bin to the next.
    detector_offset : mm; the s that the middle of the detector sees. A rotation axis that projects onto bin c (from 0,
        may be a fraction) is an offset of ((bins - 1) / 2 - c) * bin_size.

    Raises
    ------
    ValueError
        If there are no angles or bins, or bin_size is not positive.
    """

    angles: Tensor
    bins: int
    bin_size: float = 1.0
    detector_offset: float = 0.0

    def __post_init__(self) -> None:
        _check_angles(self.angles)
        _check_detector(self.bins, self.bin_size)

    @property
    def views(self) -> int:
        return len(self.angles)

    def select(self, views: Tensor) -> Self:
        return replace(self, angles=self.angles[views])

    @property
    def has_source(self) -> bool:
        return False

    def rays(self) -> tuple[Tensor, Tensor]:
        along, across = _axes(self.angles)
        s = _bin_centres(self.bins, self.bin_size) + self.detector_offset
        points = s[:, None] * across[:, None]
        return points, along[:, None].expand_as(points)


@dataclass(frozen=True, eq=False)
class FanBeam(Geometry):
    """Rays from a point source that turns about the axis together with a flat or a curved detector.

    Parameters
    ----------
    angles : (views,) radians; any.
    bins : number of detector bins.
    bin_size : mm from one bin to the next, on the detector (along the arc of a curved one).
    source_to_axis, source_to_detector : mm.
    curved : the detector is an arc about the source, with equal angles between its rays.
    detector_offset : mm along the detector, from the central ray (which is square to it) to its middle.
    rotation_offset : mm along the bins, from the central ray to the rotation axis.

    Raises
    ------
    ValueError
        If there are no angles or bins, a distance or bin_size is not positive, the detector is nearer to the source
        than the axis, or a curved one reaches half a turn.
    """

    angles: Tensor
    bins: int
    bin_size: float
    source_to_axis: float
    source_to_detector: float
    curved: bool = False
    detector_offset: float = 0.0
    rotation_offset: float = 0.0

    def __post_init__(self) -> None:
        _check_angles(self.angles)
        _check_detector(self.bins, self.bin_size)
        _check_positive(self.source_to_axis, "source_to_axis", "mm")
        _check_positive(self.source_to_detector, "source_to_detector", "mm")
        if self.source_to_detector < self.source_to_axis:
            raise ValueError(
                f"expected a detector beyond the rotation axis, got source_to_detector={self.source_to_detector:g} mm "
                f"with source_to_axis={self.source_to_axis:g} mm; are they swapped, or is one from axis to detector?"
            )
        reach = float(self.positions().abs().max()) / self.source_to_detector
        if self.curved and reach >= math.pi / 2:
            raise ValueError(
                f"the curved detector reaches {math.degrees(reach):.0f} degrees to one side of the source, expected "
                "less than 90; is bin_size in mm along the arc?"
            )

    @property
    def views(self) -> int:
        return len(self.angles)

    def select(self, views: Tensor) -> Self:
        return replace(self, angles=self.angles[views])

    @property
    def has_source(self) -> bool:
        return True

    def positions(self) -> Tensor:
        """(bins,) mm along the detector, from the central ray."""
        return _bin_centres(self.bins, self.bin_size) + self.detector_offset

    def rays(self) -> tuple[Tensor, Tensor]:
        along, across = (axis[:, None] for axis in _axes(self.angles))
        s, distance = self.positions()[:, None], self.source_to_detector
        source = -self.source_to_axis * along - self.rotation_offset * across
        if self.curved:
            direction = distance * (torch.cos(s / distance) * along + torch.sin(s / distance) * across)
        else:
            direction = distance * along + s * across
        return source.expand_as(direction), direction


@dataclass(frozen=True, eq=False)
class ViewVectors(Geometry):
    """Any source or direction and any flat detector, view by view.

    Parameters
    ----------
    detector : (views, 2) mm; the middle of the detector.
    bin_step : (views, 2) mm; from one bin to the next.
    bins : number of detector bins.
    source : (views, 2) mm, for rays that come from a point; or
    direction : (views, 2), for parallel rays.

    Raises
    ------
    ValueError
        If both or none of source and direction are given, shapes differ, or rays lie along the detector.
    """

    detector: Tensor
    bin_step: Tensor
    bins: int
    source: Tensor | None = None
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.source is None) == (self.direction is None):
            raise ValueError("expected either source (rays from a point) or direction (parallel rays)")
        _check_detector(self.bins, 1.0)
        given = {
            "detector": self.detector,
            "bin_step": self.bin_step,
            "source": self.source,
            "direction": self.direction,
        }
        for name, value in given.items():
            if value is not None and (value.ndim != 2 or value.shape != (len(self.detector), 2) or len(value) == 0):
                raise ValueError(
                    f"{name}: expected one (y, x) for each view, shape (views, 2), got {tuple(value.shape)} "
                    f"beside a detector of {tuple(self.detector.shape)}"
                )
            if value is not None and not bool(value.isfinite().all()):
                raise ValueError(f"{name}: expected finite numbers")
        middle = _exact(self.direction) if self.direction is not None else _exact(self.detector) - _exact(self.source)
        square = _cross(_exact(self.bin_step), middle).abs()
        wrong = square <= 1e-9 * _exact(self.bin_step).norm(dim=-1) * middle.norm(dim=-1)
        if bool(wrong.any()):
            raise ValueError(
                f"in view {int(wrong.nonzero()[0])} rays lie along the detector; check bin_step and source"
            )

    @property
    def views(self) -> int:
        return len(self.detector)

    def select(self, views: Tensor) -> Self:
        source, direction = (None if v is None else v[views] for v in (self.source, self.direction))
        return replace(
            self, detector=self.detector[views], bin_step=self.bin_step[views], source=source, direction=direction
        )

    @property
    def has_source(self) -> bool:
        return self.source is not None

    def rays(self) -> tuple[Tensor, Tensor]:
        bins = _exact(self.detector)[:, None] + _bin_centres(self.bins, 1.0)[:, None] * _exact(self.bin_step)[:, None]
        if self.direction is not None:
            return bins, _exact(self.direction)[:, None].expand_as(bins)
        source = _exact(self.source)[:, None].expand_as(bins)
        return source, bins - source


def _exact(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.detach().to("cpu", torch.float64)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _axes(angles: Tensor) -> tuple[Tensor, Tensor]:
    """(views, 2) each: along the central ray, and along the bins."""
    cos, sin = torch.cos(_exact(angles)), torch.sin(_exact(angles))
    return torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)


def _bin_centres(bins: int, bin_size: float) -> Tensor:
    return (torch.arange(bins, dtype=torch.float64) - (bins - 1) / 2) * bin_size


def _check_positive(value: float, name: str, unit: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number of {unit}, got {value}")


def _check_detector(bins: int, bin_size: float) -> None:
    _check_positive(bins, "bins", "bins")
    _check_positive(bin_size, "bin_size", "mm")


def _check_angles(angles: Tensor) -> None:
    if angles.ndim != 1 or len(angles) == 0 or not angles.dtype.is_floating_point or not bool(angles.isfinite().all()):
        raise ValueError(
            f"angles: expected finite floating-point radians of shape (views,), got {angles.dtype} of shape "
            f"{tuple(angles.shape)}"
        )
    largest = float(angles.abs().max())
    if largest > 4 * math.pi:
        warnings.warn(
            f"angles: the largest is {largest:g}, more than two turns in radians; convert degrees with torch.deg2rad",
            stacklevel=4,
        )
