"""An analytic head as a scan: it makes the demonstration independent of measured data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from operators.fourier import fftc

from .mri import MRIScan, centre


class Shape(NamedTuple):
    """A filled ellipse, its border folded `lobes` times to a relative depth: y, x, radii, turn and brightness.

    Lengths are fractions of half the field of view, turn is in radians; later shapes cover earlier ones.
    """

    y: float
    x: float
    radius_y: float
    radius_x: float
    turn: float
    brightness: float
    lobes: int = 0
    depth: float = 0.0


# A T1-weighted axial slice: scalp, skull, fluid, cortex, white matter, ventricles, deep grey matter, a lesion, vessels.
HEAD = (
    Shape(0.00, 0.00, 0.90, 0.72, 0.0, 0.95),
    Shape(0.00, 0.00, 0.85, 0.67, 0.0, 0.45),
    Shape(0.00, 0.00, 0.83, 0.65, 0.0, 0.06),
    Shape(0.00, 0.00, 0.77, 0.59, 0.0, 0.18),
    Shape(0.01, 0.00, 0.745, 0.565, 0.0, 0.52, lobes=19, depth=0.02),
    Shape(0.01, 0.00, 0.67, 0.49, 0.0, 0.78, lobes=19, depth=0.13),
    Shape(-0.42, 0.00, 0.36, 0.012, 0.0, 0.18),
    Shape(0.52, 0.00, 0.26, 0.012, 0.0, 0.18),
    Shape(-0.10, -0.10, 0.20, 0.045, 0.30, 0.16),
    Shape(-0.10, 0.10, 0.20, 0.045, -0.30, 0.16),
    Shape(0.24, -0.13, 0.13, 0.035, -0.45, 0.16),
    Shape(0.24, 0.13, 0.13, 0.035, 0.45, 0.16),
    Shape(0.06, -0.15, 0.11, 0.065, 0.20, 0.56),
    Shape(0.06, 0.15, 0.11, 0.065, -0.20, 0.56),
    Shape(-0.02, -0.27, 0.15, 0.05, 0.15, 0.60),
    Shape(-0.02, 0.27, 0.15, 0.05, -0.15, 0.60),
    Shape(-0.38, 0.26, 0.035, 0.028, 0.4, 0.40),
    Shape(0.40, -0.28, 0.012, 0.012, 0.0, 1.00),
    Shape(0.44, 0.27, 0.010, 0.010, 0.0, 1.00),
    Shape(-0.55, -0.13, 0.008, 0.022, 0.6, 0.95),
)

_OVERSAMPLING = 4
_COIL_RADIUS = 1.9


def head(shape: tuple[int, int] = (256, 256), *, coils: int = 8, noise: float = 0.01, seed: int = 0) -> MRIScan:
    """A fully sampled multi-coil scan of an analytic head.

    The head, its phase and the coils are rasterised on a grid four times finer than that of the image, and k-space
    is the centre of that grid's: edges ring and mix within pixels as measured ones do, and no method inverts the
    model that made its data.

    Parameters
    ----------
    shape : (y, x) of k-space.
    coils : around the head, each with the field of a magnetic dipole.
    noise : standard deviation per real component, relative to the brightest tissue.
    seed : of the noise.
    """
    fine = tuple(_OVERSAMPLING * n for n in shape)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n + 1)[:-1] for n in fine), indexing="ij")
    phase = 0.8 * y - 0.5 * x + 0.9 * torch.cos(2.0 * x + 1.0) * torch.sin(1.5 * y)
    image = torch.polar(rasterise(y, x), phase)
    sensitivities = dipoles(y, x, coils)
    low = torch.stack([centre(fftc(image * s, (-2, -1)), shape) for s in sensitivities]) / _OVERSAMPLING
    generator = torch.Generator().manual_seed(seed)
    kspace = low + noise * math.sqrt(2) * torch.randn(low.shape, dtype=low.dtype, generator=generator)
    return MRIScan(
        kspace=kspace[None],
        mask=torch.ones(shape, dtype=torch.bool),
        mask_source="an analytic head, fully sampled",
        readout_axis=-2,
        fully_sampled=True,
        name="head",
    )


def rasterise(y: Tensor, x: Tensor) -> Tensor:
    """Brightness of the head at points of the field of view, -1 to 1."""
    image = torch.zeros_like(y)
    for s in HEAD:
        cos, sin = math.cos(s.turn), math.sin(s.turn)
        v = (cos * (y - s.y) + sin * (x - s.x)) / s.radius_y
        u = (cos * (x - s.x) - sin * (y - s.y)) / s.radius_x
        angle = torch.atan2(v, u)
        border = 1 + s.depth * (torch.cos(s.lobes * angle) + 0.7 * torch.cos((s.lobes + 14) * angle + 1)) / 1.7
        image = torch.where(torch.hypot(u, v) <= border, s.brightness, image)
    return image


def dipoles(y: Tensor, x: Tensor, coils: int) -> Tensor:
    """Receive fields B_x - i B_y of dipoles around the head that point at its centre; (coil, y, x).

    Normalised to a sum of squares of 1 at the centre.
    """
    fields = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        my, mx = math.sin(angle), math.cos(angle)
        ry, rx = y - _COIL_RADIUS * my, x - _COIL_RADIUS * mx
        distance = (ry**2 + rx**2).sqrt()
        along = 3 * (my * ry + mx * rx) / distance**2
        fields.append(torch.complex(along * rx - mx, -(along * ry - my)) / distance**3)
    field = torch.stack(fields)
    middle = field[:, y.shape[0] // 2, y.shape[1] // 2]
    return field / torch.linalg.vector_norm(middle)
