"""Networks trained on pairs of undersampled data and image: one image, quick; good where data are as in training."""

from __future__ import annotations

from torch import Tensor

from operators.masks import readout_axes
from priors.supervised import PostProcessing, Supervised, VarNet

from ..errors import InputError
from ..likelihood import Gaussian
from .zero_filled import combination, zero_filled


def unet(likelihood: Gaussian, network: PostProcessing) -> Tensor:
    """U-Net: the zero-filled, coil-combined image through a network; it never looks at the data again.

    Trained on lines left out at random along one axis, fourfold and eightfold, in 8,845 steps: on two measured heads
    it gains 0.6 to 1.8 dB on the zero-filled image there (benchmarks/results/grid/table.md). Nothing makes the image
    agree with the data: on points left out in two dimensions it is below the zero-filled image at x4.

    Returns
    -------
    (*domain) complex.

    Raises
    ------
    InputError
        If the operator is not SENSE, or the images are of another kind than the network's.

    References
    ----------
    Ronneberger et al., MICCAI 2015; Zbontar et al., fastMRI, arXiv:1811.08839 (2018).
    """
    check_images("unet", likelihood, network)
    x0, sigma = zero_filled(likelihood), noise_of_full_data(likelihood)
    if _columns(likelihood):
        return network(x0.mT, sigma).mT
    return network(x0, sigma)


def varnet(likelihood: Gaussian, network: VarNet) -> Tensor:
    """VarNet: an unrolled network, steps towards the data and a small U-Net in turn, trained as a whole.

    The gradient is (S^H S)^-1 A^H (A x - y): whatever weights whitening has put into the maps, a step of 1 solves the
    fully sampled problem. Each step is followed by a denoiser, see `priors.VarNet`.

    Trained on lines left out at random along one axis, fourfold and eightfold, with 4 to 8 coils. On two measured heads
    it is 2.3 dB above to 0.04 dB below l1-wavelet there, below it on equispaced lines x4, and within 0.7 dB of it where
    points are left out in two dimensions (benchmarks/results/grid/table.md).

    Returns
    -------
    (*domain) complex.

    Raises
    ------
    InputError
        If the operator is not SENSE, or the images are of another kind than the network's.

    References
    ----------
    Hammernik et al., Magn Reson Med 79, 3055 (2018); Sriram et al., MICCAI 2020.
    """
    check_images("varnet", likelihood, network)
    x0, sigma = zero_filled(likelihood), noise_of_full_data(likelihood)
    inverse = combination(likelihood)
    if _columns(likelihood):
        return network(x0.mT, lambda x: (inverse * likelihood.grad(x.mT)).mT, sigma).mT
    return network(x0, lambda x: inverse * likelihood.grad(x), sigma)


def check_images(method: str, likelihood: Gaussian, network: Supervised) -> None:
    """Raise InputError unless the network is for images as the likelihood has them."""
    domain = likelihood.A.domain
    kinds = (network.ndim, network.is_complex), (domain.ndim, domain.dtype.is_complex)
    if kinds[0] != kinds[1]:
        expected, got = (f"{ndim}-D {'complex' if is_complex else 'real'} images" for ndim, is_complex in kinds)
        raise InputError(
            f"{method}: the network is for {expected}, got {got}; choose another method, or train on slices and "
            "reconstruct slices"
        )


def noise_of_full_data(likelihood: Gaussian) -> float:
    """Noise that the image of fully sampled data would have where there are maps, per real component: (S^H S)^-1/2."""
    inverse = combination(likelihood)
    return float(1 / (1 / inverse[inverse > 0]).mean().sqrt())


def _columns(likelihood: Gaussian) -> bool:
    """Whether the lines left out are along the other axis than in training."""
    return readout_axes(likelihood.A.mask) == (-1,)  # type: ignore[attr-defined]
