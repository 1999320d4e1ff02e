"""A head in the scanner, for simulations: brightness, texture, shading and phase at any point of a slice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError
from .training_images import TISSUES, Rng, Volume, intensities, phase, smooth_field, texture

# Sub-slices that a slice is the mean of, at most this far apart in mm.
_SUBSLICE = 1.0
# A slice is worth simulating where it shows at least this part of the largest area of brain (or body).
_AREA = 0.5
# Off resonance of a sphere of air at its equator: gamma / (2 pi) B0 delta chi / 3 at 3 T and 9.4 ppm.
_AIR_HZ = 42.577e6 * 3.0 * 9.4e-6 / 3


class Anatomy:
    """A head in the scanner: its tissues' brightness, where it lies, and what disturbs its phase.

    Parameters
    ----------
    volume : labels or magnitude (z, y, x). Labels are given a brightness each, as those of training images are.
    heights : of the slices that will be asked for, in mm; their object is moved to the centre of the field of view.
    rng : draws the contrast, a small turn, the echo time (2 to 8 ms) and three cavities of air below the slices.

    Raises
    ------
    InputError
        If these slices show nothing.
    """

    def __init__(self, volume: Volume, heights: Sequence[float], *, rng: Rng) -> None:
        self.volume = volume
        self.brightness = None if volume.tissues is None else torch.from_numpy(intensities(volume.tissues, rng))
        planes = np.abs(volume.data[[round(h / volume.spacing[0]) for h in heights]])
        seen = planes > 0.05 if self.brightness is None else self.brightness.numpy()[planes] > 0
        if not seen.any():
            raise InputError("simulation: expected slices that show something, got empty ones; change the position")
        ends = [np.flatnonzero(seen.any(axis))[[0, -1]] for axis in ((0, 2), (0, 1))]
        dy, dx = volume.spacing[1:]
        self.centre = float(ends[0].mean()) * dy, float(ends[1].mean()) * dx
        self.half_extent = float(np.ptp(ends[0]) + 1) * dy / 2, float(np.ptp(ends[1]) + 1) * dx / 2
        self.turn = float(rng.normal(0, 0.05))
        self.echo_time = float(rng.uniform(2e-3, 8e-3))
        a, b = self.half_extent
        depths = heights[len(heights) // 2] - rng.uniform(20, 50, 3)
        below = ((0.8 * a, 0.0), (-0.1 * a, 0.85 * b), (-0.1 * a, -0.85 * b))  # behind the forehead, in the ears
        self.cavities = [torch.tensor([z, *yx]).float() for z, yx in zip(depths, below, strict=True)]
        self.radii = [float(radius) for radius in rng.uniform(6, 14, 3)]

    def slice(self, height: float, y: Tensor, x: Tensor, *, thickness: float, rng: Rng) -> Tensor:
        """The object of one slice on cells of a grid, complex: the mean over its sub-slices.

        Parameters
        ----------
        height : of its middle, in mm of the volume.
        y, x : centres of the cells in mm, 0 at the centre of the field of view.
        thickness : in mm.
        rng : draws texture, shading and background phase.
        """
        shape, count = (len(y), len(x)), math.ceil(thickness / _SUBSLICE)
        extent = round(len(y) * float(y[1] - y[0])), round(len(x) * float(x[1] - x[0]))  # fields have a grid of 1 mm
        shading = (1 + texture(extent, rng)) * torch.exp(rng.uniform(0, 0.35) * smooth_field(extent, rng))
        fields = torch.stack((shading, phase(extent, rng)))[None]
        shading, background = F.interpolate(fields, shape, mode="bicubic", align_corners=True)[0]
        total = torch.zeros(shape, dtype=torch.complex64)
        for i in range(count):
            z = torch.full(shape, height + thickness * ((i + 0.5) / count - 0.5))
            points = torch.stack((z, *torch.meshgrid(y, x, indexing="ij")), -1)
            angle = background
            for place, radius in zip(self.cavities, self.radii, strict=True):
                angle = angle + 2 * math.pi * self.echo_time * sphere_field(points, place, radius)
            total += torch.polar(self._magnitude(points), angle)
        return total * shading / count

    def _magnitude(self, points: Tensor) -> Tensor:
        """Brightness at points (y, x, 3); borders between labels are smooth surfaces, and do not mix."""
        z, y, x = points.unbind(-1)
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        turned = torch.stack((z, self.centre[0] + cos * y - sin * x, self.centre[1] + sin * y + cos * x), -1)
        voxels = turned / torch.tensor(self.volume.spacing)
        first, last = math.floor(float(voxels[..., 0].min())) - 1, math.ceil(float(voxels[..., 0].max())) + 1
        first = max(first, 0)
        slab = torch.from_numpy(np.ascontiguousarray(self.volume.data[first : last + 1]))
        voxels = voxels - torch.tensor([float(first), 0.0, 0.0])
        if self.brightness is None:
            return _interpolate(slab.abs().float(), voxels)
        value, best = torch.zeros(voxels.shape[:-1]), torch.zeros(voxels.shape[:-1])
        for label in slab.unique().tolist():  # the label of most weight
            weight = _interpolate(_blur((slab == label).float()), voxels)
            value, best = value.where(weight <= best, self.brightness[label]), best.maximum(weight)
        return value


def _interpolate(values: Tensor, where: Tensor) -> Tensor:
    """Trilinear values of (z, y, x) at voxel coordinates (..., 3); 0 outside."""
    size = torch.tensor(values.shape)
    grid = ((2 * where + 1) / size - 1).flip(-1)  # x, y, z in -1 to 1 from edge to edge
    return F.grid_sample(values[None, None], grid[None, None], mode="bilinear", align_corners=False)[0, 0, 0]


def _blur(values: Tensor) -> Tensor:
    """Binomial weights (1, 2, 1) / 4 along every axis."""
    padded = F.pad(values[None, None], (1,) * 6, mode="replicate")
    return F.avg_pool3d(F.avg_pool3d(padded, 2, stride=1), 2, stride=1)[0, 0]


def slice_heights(volume: Volume, slices: int, position: float, thickness: float) -> list[float]:
    """Heights of adjacent slices in mm, around `position` (0 to 1) of the range that shows half of the largest area.

    Raises
    ------
    InputError
        If the volume shows nothing, or has no room for the slices.
    """
    area = _worth_seeing(volume).sum((1, 2))
    if area.max() == 0:
        raise InputError("simulation: expected a volume that shows something, got zeros only")
    shown = np.flatnonzero(area >= _AREA * area.max()) * volume.spacing[0]
    middle = shown[0] + position * (shown[-1] - shown[0])
    heights = [float(middle) + thickness * (i - (slices - 1) / 2) for i in range(slices)]
    if not 0 <= heights[0] <= heights[-1] <= (len(area) - 1) * volume.spacing[0]:
        raise InputError(
            f"simulation: {slices} slices of {thickness:g} mm around height {middle:g} mm leave the volume of "
            f"{len(area) * volume.spacing[0]:g} mm; take fewer or thinner ones"
        )
    return heights


def _worth_seeing(volume: Volume) -> np.ndarray:
    """The brain in label maps that show one, else the object, bool (z, y, x)."""
    if volume.tissues is None:
        return np.abs(volume.data) > 0.1
    brain = [i for i, tissue in enumerate(volume.tissues) if 0 < tissue < TISSUES.index("other")]
    return np.isin(volume.data, brain)


def sphere_field(points: Tensor, place: Tensor, radius: float) -> Tensor:
    """Off resonance around a sphere of air in tissue at 3 T, in Hz, main field along z; 0 inside.

    df = gamma / (2 pi) B0 (delta chi / 3) (R / r)^3 (3 cos^2 theta - 1).

    Parameters
    ----------
    points : (..., 3) in mm along (z, y, x).
    place : (3,) its centre.

    References
    ----------
    Haacke et al., Magnetic Resonance Imaging (1999), section 25.3.
    """
    r = points - place
    square = r.square().sum(-1).clamp(min=radius**2 / 4)  # of points inside, whose value is not used
    dipole = (3 * r[..., 0].square() / square - 1) * (radius**2 / square) ** 1.5
    return _AIR_HZ * dipole.where(square >= radius**2, torch.zeros_like(dipole))
