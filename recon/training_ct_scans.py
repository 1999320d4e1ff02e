"""Training pairs for networks that enhance CT: filtered back-projections of few photons, and the image behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from operators.geometry import Grid
from priors.enhancement import Pairs

from .ct import prepare
from .ct_simulation import clinical_fan, simulate
from .methods.fbp_network import noisy_image
from .training_ct import WATER, HeadImages, render
from .training_images import Rng, Volume

_FIELD = 224.0  # mm
_RIM = 0.93  # of the field: air must be seen on both sides
_PIXEL = (0.9, 1.4)  # mm, log-uniform
_VIEWS = (180, 480)
# Photons that a bin counts without object, log-uniform: 2e5 is a head at its usual dose.
_PHOTONS = (8e3, 2.5e5)
_ELECTRONIC = 10.0  # photons

FACTS = {
    "scans": "simulated: a clinical fan of 180 to 480 views a turn, strips of 2 rays through pixels half as large, "
    "8,000 to 250,000 photons a bin (2e5 is taken for a usual dose), electronic noise of 10 photons; pixels of 0.9 to "
    "1.4 mm, ram-lak filter",
    "intended_use": "baseline for research, for low doses and anatomy as in training; trained on renderings of label "
    "maps and on no measured CT; not validated for diagnosis",
}
"""For the card."""


class LowDoseScans:
    """scans[i] is an example of priors.enhancement: patches of a filtered back-projection, and of what was scanned.

    The object is on pixels half as large as those of the image, and every bin is a bundle of rays; nothing is projected
    by what reconstructs. Beyond the circle that every view sees, less a rim, all is air.

    Parameters
    ----------
    volumes : label maps of heads, see `recon.training_ct.HeadImages`.
    scans_per_image : how many follow each other of one object.
    patches, size : how many of a scan, and how many pixels a side.
    seed : of the whole series.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        scans_per_image: int = 1,
        patches: int = 4,
        size: int = 128,
        seed: int = 0,
    ) -> None:
        self.heads, self.scans_per_image = HeadImages(volumes), scans_per_image
        self.patches, self.size, self.seed = patches, size, seed
        self._last: tuple[int, Tensor, Grid] | None = None

    def __getitem__(self, index: int) -> Pairs:
        rng = np.random.default_rng((self.seed, 1, index))
        image, grid = self._object(index // self.scans_per_image)
        geometry = clinical_fan(grid, views=int(rng.integers(*_VIEWS, endpoint=True)))
        scan = simulate(
            1000 * (image[None] - 1),
            geometry,
            grid,
            photons=math.exp(rng.uniform(*np.log(_PHOTONS))),
            electronic=_ELECTRONIC,
            water=WATER,
            sub_bins=2,
            seed=(self.seed, index),
        )
        poor, sigma = noisy_image(prepare(scan), WATER)
        assert scan.reference is not None
        both = torch.cat((poor, torch.as_tensor(scan.reference[:]) / WATER))
        pairs = torch.stack([_patch(both, self.size, rng) for _ in range(self.patches)])
        return pairs[:, 0], sigma.expand(self.patches), pairs[:, 1]

    def _object(self, index: int) -> tuple[Tensor, Grid]:
        """An image in units of WATER, and the grid of pixels twice as large; the last one is kept."""
        if self._last is None or self._last[0] != index:
            rng = np.random.default_rng((self.seed, 0, index))
            pixel = math.exp(rng.uniform(*np.log(_PIXEL)))
            n = round(_FIELD / pixel)
            image = render(self.heads.head(rng), (2 * n, 2 * n), pixel / 2, rng)
            at = (torch.arange(2 * n) + 0.5) / n - 1
            self._last = index, image * (at[:, None].hypot(at) < _RIM), Grid((n, n), pixel)
        return self._last[1:]


def _patch(images: Tensor, size: int, rng: Rng) -> Tensor:
    """The same size x size pixels of all images (..., y, x)."""
    top, left = (int(rng.integers(n - size, endpoint=True)) for n in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
