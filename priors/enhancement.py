"""What training a network that enhances images consists of: pairs of images, and their root mean square error."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from priors.supervised import PostProcessing
from priors.train import Player

Pairs = tuple[Tensor, Tensor, Tensor]
"""Poor images (pair, y, x), the standard deviation of their noise (pair,), and good ones (pair, y, x)."""


class Enhancement:
    """The objective of a network that enhances images (see priors.train.Objective); an example is several pairs.

    The loss is the root of the mean square error of an image: images of little noise count as much as those of much.
    """

    opponent: Player | None = None

    def __init__(self, network: PostProcessing) -> None:
        self.model = network

    def draw(self, batch: Pairs, rng: torch.Generator) -> tuple[Tensor, ...]:
        """The pairs of all examples, each pair flipped and transposed at random."""
        poor, sigma, good = (part.flatten(0, 1) for part in batch)
        turned = [turn(torch.stack(pair), rng) for pair in zip(poor, good, strict=True)]
        return torch.stack([pair[0] for pair in turned]), sigma, torch.stack([pair[1] for pair in turned])

    def loss(self, *drawn: Tensor) -> Tensor:
        poor, sigma, good = drawn
        return rms(self.model(poor, sigma) - good).mean()

    @torch.no_grad()
    def errors(self, examples: Sequence[Pairs]) -> dict[float, float]:
        """Root mean square error by noise of the poor images, which is rounded to a factor of two."""
        device = next(self.model.parameters()).device
        found: dict[float, list[Tensor]] = {}
        for example in examples:
            poor, sigma, good = (part.to(device) for part in example)
            for level, error in zip(sigma.tolist(), rms(self.model(poor, sigma) - good), strict=True):
                found.setdefault(2.0 ** round(math.log2(level)), []).append(error.square())
        return {level: float(torch.stack(squares).mean().sqrt()) for level, squares in sorted(found.items())}


def rms(error: Tensor) -> Tensor:
    """(..., y, x) to (...)."""
    return torch.linalg.vector_norm(error, dim=(-2, -1)) / math.sqrt(error.shape[-2] * error.shape[-1])


def turn(images: Tensor, rng: torch.Generator) -> Tensor:
    """(..., y, x), square images, in one of their eight orientations."""
    up, side, swap = (torch.rand(3, generator=rng) < 0.5).tolist()
    images = images.flip(-2) if up else images
    images = images.flip(-1) if side else images
    return images.mT if swap else images
