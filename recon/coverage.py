"""Do the intervals of a run's samples hold what was left out of the data? Known where all the data are there."""

from __future__ import annotations

from torch import Tensor

from . import mri
from .likelihood import Gaussian, Randn
from .methods.zero_filled import zero_filled
from .metrics import object_mask
from .mri import MRIScan, PreparedMRI
from .noise_level import NoiseEstimate
from .posterior import Coverage, magnitude, predictive_coverage


def retrospective_coverage(
    x: Tensor, prepared: PreparedMRI, scan: MRIScan, *, noise: NoiseEstimate, rng: Randn, sets: int = 1
) -> Coverage:
    """Coverage of the image of all the data by samples that were given a part of them.

    Parameters
    ----------
    x : (sample, slice, set, *spatial), at least 2 samples, of one slice.
    prepared : the part that was given.
    scan : all the data of that slice, its readout cropped as that of `prepared` was (the same `readout_axis`).
    noise : of the scan.
    rng : a stream for each sample.
    sets : map sets.

    Raises
    ------
    InputError
        If nothing in the image of all the data can be told from its background.

    See Also
    --------
    recon.posterior.predictive_coverage : what is compared, and why the samples are given noise.
    """
    full = mri.prepare(scan, noise=noise, sets=sets)
    reference, ndim = mri.likelihood(full), full.mask.ndim

    def combine(data: Tensor) -> Tensor:
        image = full.image(zero_filled(Gaussian(reference.A, data)))
        return magnitude(image, ndim=ndim).squeeze(-ndim - 1)  # the slice

    return predictive_coverage(
        x * (prepared.scale / full.scale),
        reference,
        object_mask(combine(reference.y)),
        rng=rng,
        acquired=prepared.mask,
        combine=combine,
    )
