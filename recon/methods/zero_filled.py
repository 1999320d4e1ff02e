"""What the data show without a model: the inverse Fourier transform, its coils combined."""

from __future__ import annotations

import torch
from torch import Tensor

from operators.fourier import ifftc
from operators.mri import Sense

from ..errors import InputError
from ..likelihood import Gaussian
from ..mri import PreparedMRI


def zero_filled(likelihood: Gaussian) -> Tensor:
    """Zero-filled inverse Fourier transform, the coils combined with their maps: S^H F^H y / (S^H S).

    For fully sampled data it is the image of least variance; Roemer et al., Magn Reson Med 16, 192 (1990).

    Returns
    -------
    (slice, set, y, x) complex, zero outside the maps. Map sets are orthogonal, so that each has its own S^H S.

    Raises
    ------
    InputError
        If the operator is not SENSE.
    """
    return combination(likelihood) * likelihood.backprojection


def combination(likelihood: Gaussian) -> Tensor:
    """(S^H S)^-1, real (slice, set, y, x); 0 outside the maps.

    Raises
    ------
    InputError
        If the operator is not SENSE.
    """
    if not isinstance(likelihood.A, Sense):
        raise InputError(
            f"zero-filled: is for MRI with maps (SENSE), got {type(likelihood.A).__name__}; take fbp for CT"
        )
    energy = likelihood.A.sens_maps.abs().square().sum(-likelihood.A.mask.ndim - 1)
    return torch.where(energy > 0, 1 / energy.where(energy > 0, 1.0), 0.0)


def root_sum_of_squares(scan: PreparedMRI) -> Tensor:
    """Zero-filled inverse Fourier transform, the coils combined by the root of their sum of squares; needs no maps.

    Returns
    -------
    (slice, 1, y, x) complex with zero imaginary part, in the intensity scale of `scan`.
    """
    axes = tuple(range(-scan.mask.ndim, 0))
    coil_images = ifftc(scan.measured / scan.scale, axes)
    image = torch.linalg.vector_norm(coil_images, dim=-scan.mask.ndim - 1, keepdim=True)
    return image.to(coil_images.dtype)
