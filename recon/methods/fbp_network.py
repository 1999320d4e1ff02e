"""Networks that take the noise out of filtered back-projections: one image, quick; good on scans as in training."""

from __future__ import annotations

import torch
from torch import Tensor

from operators.fbp import filtered_back_projection
from operators.geometry import Grid
from priors.supervised import PostProcessing

from ..ct import PreparedCT
from ..errors import InputError
from .fbp import fbp
from .subsets import check_ct


def fbp_unet(scan: PreparedCT, network: PostProcessing) -> Tensor:
    """U-Net on FBP: a filtered back-projection through a residual network, which never looks at the data again.

    Trained on simulated fans of some hundred views at low doses. Nothing makes the image agree with the data: artefacts
    of few views or of a short range, which it has not seen, may stay or turn into anatomy.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError
        If it is no CT scan, has no weights, or the network is for images of another kind or unit.
    ValueError
        As `operators.fbp.filtered_back_projection`.

    References
    ----------
    Jin et al., IEEE Trans Image Process 26, 4509 (2017); Chen et al., IEEE Trans Med Imaging 36, 2524 (2017).
    """
    return _enhanced("fbp-unet", scan, network)


def fbp_gan(scan: PreparedCT, network: PostProcessing) -> Tensor:
    """GAN on FBP: the network of fbp-unet, trained against a discriminator of patches too.

    What holds for fbp-unet holds here. The adversary asks for the look of an image, true or not; it compares with
    images without noise, where that of the publication sees scans at routine dose. The embedded network was trained
    on from that of fbp-unet: a smaller error is that of more training.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError, ValueError
        As `fbp_unet`.

    References
    ----------
    Wolterink et al., IEEE Trans Med Imaging 36, 2536 (2017).
    """
    return _enhanced("fbp-gan", scan, network)


def _enhanced(method: str, scan: PreparedCT, network: PostProcessing) -> Tensor:
    check_ct(scan, method)
    if network.is_complex:
        raise InputError(f"{method}: expected a network of real images, got one of complex images")
    unit = network.card.get("scale_per_mm")
    if unit is None:
        raise InputError(
            f"{method}: expected a network whose card has scale_per_mm, the attenuation in 1/mm that is 1 in its "
            "images, got a card without; write it there"
        )
    return network(*noisy_image(scan, unit)) * (unit / scan.scale)


def noisy_image(scan: PreparedCT, unit: float) -> tuple[Tensor, Tensor]:
    """Filtered back-projections (slice, y, x) and the standard deviation of their noise (slice,).

    The latter is that of one realisation, always the same one, at points all over the image.

    Parameters
    ----------
    unit : 1/mm that is 1 in both.

    Raises
    ------
    InputError
        If a slice has no bin of any weight.
    """
    deviation = scan.weights.rsqrt().where(scan.weights > 0, 0.0)
    if not bool((deviation > 0).flatten(1).any(1).all()):
        raise InputError("scan: expected bins with photons in every slice, got one without")
    normal = torch.randn(deviation.shape[-2:], generator=torch.Generator().manual_seed(0)).to(deviation)
    noise = filtered_back_projection(deviation * normal, scan.geometry, _thinned(scan.grid))
    return fbp(scan) * (scan.scale / unit), noise.square().mean((-2, -1)).sqrt() / unit


def _thinned(grid: Grid) -> Grid:
    """Points over the same field, 64 or a few more along its shorter side."""
    step = max(1, min(grid.shape) // 64)
    y, x = grid.shape
    return Grid((y // step, x // step), (step * grid.pixel_sizes[0], step * grid.pixel_sizes[1]), grid.centre)
