"""Networks that reconstruct directly, trained on pairs of data and image; they are no denoisers and draw no samples."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from priors.denoiser import EDM
from priors.networks import UNet


class Supervised(nn.Module):
    """What such networks share; they are made for 2-D images.

    Attributes
    ----------
    task : the method that it was trained for.
    ndim, is_complex : of the images.
    evaluations : of its U-Net for one image.
    arguments : that make one like it.
    card : the model card, where it was loaded from one.
    """

    ndim = 2

    def __init__(self, task: str, evaluations: int, arguments: dict[str, Any], *, is_complex: bool = True) -> None:
        super().__init__()
        self.task, self.is_complex = task, is_complex
        self.evaluations, self.arguments = evaluations, arguments
        self.card: dict[str, Any] = {}


class PostProcessing(Supervised):
    """x0 + U(x0): a U-Net that mends an image, and never looks at the data again.

    It takes the aliasing out of a zero-filled image, or the noise out of a filtered back-projection.

    Parameters
    ----------
    task : the method that it is for.
    is_complex : whether images are complex.
    widths, blocks, features : of the U-Net, see priors.networks.UNet.

    References
    ----------
    Zbontar et al., fastMRI, arXiv:1811.08839 (2018), section 6.2 (for magnitude images).
    """

    def __init__(
        self,
        *,
        task: str = "unet",
        is_complex: bool = True,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        blocks: tuple[int, ...] = (2, 2, 1, 1),
        features: int = 64,
    ) -> None:
        unet: dict[str, Any] = {"widths": list(widths), "blocks": list(blocks), "features": features}
        arguments = {"task": task, "is_complex": is_complex, **unet}
        super().__init__(task, 1, arguments, is_complex=is_complex)
        self.unet = UNet(is_complex=is_complex, widths=widths, blocks=blocks, features=features)

    def for_task(self, task: str) -> "PostProcessing":
        """A network for another method that starts from this one."""
        other = PostProcessing(**self.arguments | {"task": task})
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, x0: Tensor, sigma: Tensor | float) -> Tensor:
        """(..., y, x) images to images.

        Parameters
        ----------
        sigma : of the noise, per real component, one for each leading index or one for all; of zero-filled images what
            it would be with all the data.
        """
        label = torch.as_tensor(sigma, dtype=x0.real.dtype, device=x0.device).log() / 4
        result: Tensor = x0 + self.unet(x0, label)
        return result


class VarNet(Supervised):
    """An unrolled network: steps towards the data and a denoiser in turn, trained as a whole.

    z = x_k + b_k (x_k - x_{k-1}),    z <- z - a_kj g(z) for j = 1 ... J,    x_{k+1} = D(z, sigma_k),

    with g the gradient of the misfit; steps a_kj and momenta b_k are learned. All cascades share the denoiser D, which
    is told a noise level that falls geometrically from 0.1 to that of the data. Untrained it is plug and play: start it
    from a denoiser that was trained as one.

    Parameters
    ----------
    cascades : how many, at least 2.
    inner : steps towards the data in each, J.
    widths, blocks, features : of the denoiser's U-Net, see priors.networks.UNet.
    sigma_min, sigma_max, sigma_data : of the denoiser, see priors.denoiser.EDM.

    References
    ----------
    Hammernik et al., Magn Reson Med 79, 3055 (2018); Sriram et al., MICCAI (2020) (with U-Nets);
    Aggarwal, Mani, Jacob, IEEE Trans Med Imaging 38, 394 (2019) (shared weights).
    """

    first_level = 0.1

    def __init__(
        self,
        *,
        cascades: int = 8,
        inner: int = 4,
        widths: tuple[int, ...] = (32, 64, 96),
        blocks: tuple[int, ...] = (2, 2, 3),
        features: int = 128,
        sigma_min: float = 0.002,
        sigma_max: float = 10.0,
        sigma_data: float = 0.3,
    ) -> None:
        if cascades < 2:
            raise ValueError(f"expected at least 2 cascades, got {cascades}")
        noise = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        unet = {"widths": list(widths), "blocks": list(blocks), "features": features}
        super().__init__("varnet", cascades, {"cascades": cascades, "inner": inner, **unet, **noise})
        self.denoiser = EDM(UNet(widths=widths, blocks=blocks, features=features), **noise)
        self.steps = nn.Parameter(torch.full((cascades, inner), 1.3))
        self.momenta = nn.Parameter(torch.full((cascades,), 0.7))

    @classmethod
    def unrolled(cls, denoiser: EDM) -> Self:
        """One that starts from a denoiser of complex 2-D images with the U-Net of this package.

        Raises
        ------
        ValueError
            If it is another denoiser.
        """
        network = denoiser.network
        if not (isinstance(network, UNet) and network.is_complex and network.fold == 2):
            raise ValueError("expected a denoiser of complex images, its network a UNet with fold 2")
        unet: dict[str, Any] = {key: network.arguments[key] for key in ("widths", "blocks", "features")}
        noise: dict[str, Any] = {key: getattr(denoiser, key) for key in ("sigma_min", "sigma_max", "sigma_data")}
        result = cls(**unet, **noise)
        result.denoiser.load_state_dict(denoiser.state_dict())
        return result

    def forward(self, x0: Tensor, gradient: Callable[[Tensor], Tensor], sigma: float) -> Tensor:
        """Images (..., y, x) from zero-filled ones.

        Parameters
        ----------
        x0 : (..., y, x) complex.
        gradient : of the data misfit at an image, scaled such that a step of 1 solves the fully sampled problem.
        sigma : noise of fully sampled images, standard deviation per real component.
        """
        last = max(sigma, self.denoiser.sigma_min)  # below it the denoiser does nothing
        levels = torch.logspace(math.log10(self.first_level), math.log10(last), len(self.steps)).tolist()
        before = x = x0
        for steps, momentum, level in zip(self.steps, self.momenta, levels, strict=True):
            z = x + momentum * (x - before)
            for step in steps:
                z = z - step * gradient(z)
            before, x = x, self.denoiser(z, level)
        return x
