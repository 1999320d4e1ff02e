"""Enhancement by a GAN: an error, and what a discriminator of patches makes of the image."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from priors.enhancement import Enhancement, rms
from priors.supervised import PostProcessing


class PatchDiscriminator(nn.Module):
    """How good each patch of a real image looks: 1 for a good image, 0 for one that was made.

    Strided convolutions without normalisation; with three widths a patch has 38 x 38 pixels.

    Parameters
    ----------
    widths : channels of the strided layers.

    References
    ----------
    Isola et al., CVPR (2017).
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96)) -> None:
        super().__init__()
        self.strided = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise((1, *widths)))
        self.tail = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(image, y, x) to (image, y', x')."""
        h = x[:, None]
        for layer in self.strided:
            h = F.leaky_relu(layer(h), 0.2)
        scores: Tensor = self.tail(h)[:, 0]
        return scores


class Critic:
    """The discriminator's side of least squares: (D(good) - 1)^2 / 2 + D(made)^2 / 2 (see priors.train.Player)."""

    def __init__(self, discriminator: nn.Module, generator: PostProcessing) -> None:
        self.model, self.generator = discriminator, generator

    def loss(self, *drawn: Tensor) -> Tensor:
        poor, sigma, good = drawn
        with torch.no_grad():
            made = self.generator(poor, sigma)
        return ((self.model(good) - 1).square().mean() + self.model(made).square().mean()) / 2


class AdversarialEnhancement(Enhancement):
    """Enhancement that must also look good: rms error + weight (D(made) - 1)^2, D trained in turn by least squares.

    Parameters
    ----------
    network : the generator, on the device to train on.
    discriminator : of real images (image, y, x), on the same device.
    weight : of the adversarial loss; the rms error is in units of the images.

    References
    ----------
    Wolterink et al., IEEE Trans Med Imaging 36, 2536 (2017), by cross entropy.
    Mao et al., Least squares generative adversarial networks, ICCV (2017).
    """

    def __init__(self, network: PostProcessing, discriminator: nn.Module, *, weight: float = 5e-3) -> None:
        super().__init__(network)
        self.discriminator, self.weight = discriminator, weight
        self.opponent = Critic(discriminator, network)

    def loss(self, *drawn: Tensor) -> Tensor:
        poor, sigma, good = drawn
        made = self.model(poor, sigma)
        doubt = (self.discriminator(made) - 1).square().mean()
        return rms(made - good).mean() + self.weight * doubt
