"""The noise level where no samples hold noise alone."""

import pytest
import torch

from operators.masks import MASKS
from recon.mri import noise_of, undersample
from recon.phantom import head
from recon.residual_noise import scan_noise

NOISE = 0.02


def level(estimate: object) -> float:
    return float(estimate.covariance.diagonal().real.sqrt().mean())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "acceleration"), [("poisson", 4), ("gaussian2d", 4)])
def test_residual_is_nearer_to_the_noise_than_the_bound(kind: str, acceleration: float) -> None:
    scan = head((128, 128), coils=6, noise=NOISE)
    scan = undersample(scan, MASKS[kind](scan.shape, acceleration, seed=0))
    bound, estimate = level(noise_of(scan)) / NOISE, level(scan_noise(scan)) / NOISE
    assert bound > 1.2  # signal at the edge of k-space
    assert 0.8 < estimate < 1.3  # what is fitted of the noise and missed of the signal balance so far
    assert abs(estimate - 1) < abs(bound - 1)


def test_noise_of_whole_readout_lines_is_left_alone() -> None:
    scan = head((96, 96), coils=4, noise=NOISE)
    scan = undersample(scan, MASKS["random"](scan.shape, 2, seed=0))
    assert torch.equal(scan_noise(scan).covariance, noise_of(scan).covariance)
