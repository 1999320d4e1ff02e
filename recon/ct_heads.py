"""CT scans of heads, simulated from label maps: for calibrations, and for networks to be trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from operators.geometry import Grid

from .ct import CTScan
from .ct_simulation import clinical_fan, simulate
from .errors import InputError
from .training_ct import WATER, HeadImages, render
from .training_images import Volume

FIELD = 224.0
"""Of view, in mm."""
_RIM = 0.93  # of the field: air must be seen on both sides


@dataclass(frozen=True)
class HeadScans:
    """Where simulated CT scans of one slice of a head are drawn from: what varies from scan to scan.

    The slice, its tilt and the attenuation of tissues are drawn as those of training images are; the number of photons
    is log-uniform.

    Parameters
    ----------
    shape : (y, x) of the image; its shorter side is 224 mm.
    views : over a turn.
    photons : least and largest number in a bin without object.
    electronic : standard deviation of the detector's own noise, in photons.
    """

    shape: tuple[int, int] = (192, 192)
    views: int = 240
    photons: tuple[float, float] = (1e5, 4e5)
    electronic: float = 10.0

    def draw(self, volume: Volume, *, seed: int, index: int, name: str) -> CTScan:
        """Scan `index` of the series that the seed names, of a label map.

        Raises
        ------
        InputError
            As `recon.ct_simulation.simulate`; if the volume is no label map of a head, the shape has less than 16
            pixels a side, or the range of photons is empty or not positive.
        """
        low, high = self.photons
        if not 0 < low <= high < math.inf:
            raise InputError(f"photons: expected a range LOW,HIGH of positive numbers, got {low:g},{high:g}")
        if min(self.shape) < 16:
            raise InputError(f"shape: expected (y, x) of at least 16 pixels, got {self.shape}")
        rng = np.random.default_rng((seed, 3, index))
        pixel = FIELD / min(self.shape)
        fine = (2 * self.shape[0], 2 * self.shape[1])
        return scan_of(
            render(HeadImages([volume]).head(rng), fine, pixel / 2, rng),
            pixel,
            views=self.views,
            photons=math.exp(rng.uniform(math.log(low), math.log(high))),
            electronic=self.electronic,
            seed=int(rng.integers(2**32)),
            name=name,
        )


def scan_of(
    image: Tensor,
    pixel: float,
    *,
    views: int,
    photons: float,
    electronic: float,
    seed: int | tuple[int, ...],
    sub_bins: int = 4,
    name: str = "head",
) -> CTScan:
    """A scan by a clinical fan of an image that `recon.training_ct.render` made; its reference is the object.

    The object is on pixels half as large as those that are reconstructed, and every bin is a bundle of rays: nothing is
    projected by what reconstructs. Beyond the circle that every view sees, less a rim, all is air.

    Parameters
    ----------
    image : (2 y, 2 x) in units of water.
    pixel : of the reconstruction, (y, x), in mm.
    views ... sub_bins : see `recon.ct_simulation.simulate`.
    """
    shape = image.shape[0] // 2, image.shape[1] // 2
    down, across = (((torch.arange(2 * n) + 0.5) - n) / min(shape) for n in shape)
    image = image * (down[:, None].hypot(across) < _RIM)
    grid = Grid(shape, pixel)
    return simulate(
        1000 * (image[None] - 1),
        clinical_fan(grid, views=views),
        grid,
        photons=photons,
        electronic=electronic,
        water=WATER,
        sub_bins=sub_bins,
        seed=seed,
        name=name,
    )
