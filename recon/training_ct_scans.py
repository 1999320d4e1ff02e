"""Training pairs for networks that enhance CT: filtered back-projections of few photons, and the image behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from priors.enhancement import Pairs

from .ct import prepare
from .ct_heads import FIELD, scan_of
from .methods.fbp_network import noisy_image
from .training_ct import WATER, HeadImages, render
from .training_images import Rng, Volume

_PIXEL = (0.9, 1.4)  # mm, log-uniform
_VIEWS = (180, 480)
# Photons that a bin counts without object, log-uniform: 2e5 is a head at its usual dose.
_PHOTONS = (8e3, 2.5e5)
_ELECTRONIC = 10.0  # photons
_KEPT = 128  # scans

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

    See `recon.ct_heads.scan_of`.

    A scan takes longer than a step of training on it. So it may come again, with other patches: one example in
    `repeats` is of a new scan, the others are of any of the last 128.

    Parameters
    ----------
    volumes : label maps of heads, see `recon.training_ct.HeadImages`.
    repeats : how often a scan comes on average.
    patches, size : how many of a scan, and how many pixels a side.
    seed : of the whole series.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        repeats: int = 1,
        patches: int = 4,
        size: int = 128,
        seed: int = 0,
    ) -> None:
        self.heads, self.repeats = HeadImages(volumes), repeats
        self.patches, self.size, self.seed = patches, size, seed
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, index: int) -> Pairs:
        rng = np.random.default_rng((self.seed, 1, index))
        newest, again = divmod(index, self.repeats)
        oldest = max(0, newest + 1 - _KEPT)
        number = int(rng.integers(oldest, newest, endpoint=True)) if again else newest
        if number not in self._kept:  # of an old one, after a training was continued
            self._kept[number] = self._scan(number)
        self._kept = {i: scan for i, scan in self._kept.items() if i >= oldest}
        both, sigma = self._kept[number]
        pairs = torch.stack([_patch(both, self.size, rng) for _ in range(self.patches)])
        return pairs[:, 0], sigma.expand(self.patches), pairs[:, 1]

    def _scan(self, number: int) -> tuple[Tensor, Tensor]:
        """Its back-projection and its object (2, y, x), and the noise of the former (1,); in units of WATER."""
        rng = np.random.default_rng((self.seed, 0, number))
        pixel = math.exp(rng.uniform(*np.log(_PIXEL)))
        n = round(FIELD / pixel)
        scan = scan_of(
            render(self.heads.head(rng), (2 * n, 2 * n), pixel / 2, rng),
            pixel,
            views=int(rng.integers(*_VIEWS, endpoint=True)),
            photons=math.exp(rng.uniform(*np.log(_PHOTONS))),
            electronic=_ELECTRONIC,
            seed=(self.seed, number),
            sub_bins=2,
        )
        assert scan.reference is not None
        poor, sigma = noisy_image(prepare(scan), WATER)
        return torch.cat((poor, torch.as_tensor(scan.reference[:]) / WATER)), sigma


def _patch(images: Tensor, size: int, rng: Rng) -> Tensor:
    """The same size x size pixels of all images (..., y, x)."""
    top, left = (int(rng.integers(n - size, endpoint=True)) for n in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
