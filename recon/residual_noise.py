"""The noise of a scan whose samples nowhere hold noise alone: what a reconstruction cannot explain."""

from __future__ import annotations

from . import mri
from .methods.classical import l1_wavelet
from .mri import MRIScan
from .noise_level import NoiseEstimate

_ITERATIONS = 40


def scan_noise(scan: MRIScan) -> NoiseEstimate:
    """Noise covariance between the coils of a scan: as `recon.mri.noise_of`, but an upper bound is brought down.

    Where only an upper bound can be had, an l1-wavelet reconstruction with it leaves a residual, whose root mean square
    scales it: what the reconstruction fits of the noise and what it misses of the signal nearly balance where noise is
    not far below the detail (tests/test_residual_noise.py holds it to 0.8 to 1.3 times the truth). Otherwise detail is
    still taken for noise, but never more than by the bound.

    References
    ----------
    Morozov, Soviet Math Dokl 7, 414 (1966), the discrepancy principle, read the other way round.
    """
    noise = mri.noise_of(scan)
    if not noise.upper_bound:
        return noise
    middle = len(scan) // 2
    likelihood = mri.likelihood(mri.prepare(scan[middle : middle + 1], noise=noise))
    x = l1_wavelet(likelihood, iterations=_ITERATIONS)
    measured = scan.coils * int(scan.mask.sum())
    variance = float(likelihood.nll(x)) / measured  # ||residual||^2 / 2 over complex samples: per real component
    factor = min(1.0, variance)
    return NoiseEstimate(
        factor * noise.covariance, "noise from what an l1-wavelet reconstruction leaves unexplained", upper_bound=True
    )
