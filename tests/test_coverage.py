"""Coverage as a part of every run that leaves data out: nominal where the samples are the truth."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from operators.fourier import ifftc
from recon.methods import METHODS
from recon.mri import MRIScan, PreparedMRI
from recon.noise import Noise
from recon.phantom import head
from recon.pipeline import reconstruct

SHAPE, SIGMA = (64, 64), 0.05


def noisy_head(**changes: object) -> MRIScan:
    """One coil, whose map is 1, and a noise-only acquisition."""
    noise = SIGMA * 2**0.5 * torch.randn(1, 20000, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    return replace(head(SHAPE, coils=1, noise=SIGMA), noise=noise, **changes)


@pytest.fixture
def the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose every sample is the image without noise."""
    image = ifftc(head(SHAPE, coils=1, noise=0).kspace, (-2, -1))

    def truth(scan: PreparedMRI, rng: Noise) -> Tensor:
        return (image / scan.scale).expand(len(rng), *image.shape)

    monkeypatch.setitem(METHODS, "truth", truth)


def run(scan: MRIScan, **arguments: object) -> dict:
    arguments = {"method": "truth", "mask": "random", "samples": 39, "check": False, **arguments}
    return reconstruct(scan, **arguments).run["coverage"]


@pytest.mark.usefixtures("the_truth")
@pytest.mark.parametrize("mask", ["random", "poisson"])
def test_samples_that_are_the_truth_cover_what_they_should(mask: str) -> None:
    (found,) = run(noisy_head(), mask=mask)
    assert found["samples"] == 39
    assert found["levels"] == (0.5, 0.8, 0.9, 0.95)
    # about 1500 pixels of the object, less than 0.5 / sqrt(1500) = 0.013 each if they were independent: 4 of these
    assert found["coverage"] == pytest.approx(found["nominal"], abs=0.05)


@pytest.mark.usefixtures("the_truth")
def test_an_oversampled_readout_is_cropped_in_both_or_in_neither() -> None:
    """Lines along the readout are cropped, points are not: the reference must follow."""
    for mask in ("random", "poisson"):
        scan = noisy_head(recon_shape=(48, 64))
        image = reconstruct(scan, method="zero-filled", mask=mask)
        assert image.mean.shape == (1, 48, 64)
        assert image.run["coverage"] == [None]
    (found,) = run(noisy_head(recon_shape=(48, 64)), mask="poisson")
    assert found["coverage"] == pytest.approx(found["nominal"], abs=0.05)


@pytest.mark.usefixtures("the_truth")
def test_where_there_is_nothing_to_compare_with_there_is_no_coverage() -> None:
    assert run(noisy_head(), samples=1) == [None]
    assert run(noisy_head(), mask=None) == [None]
    assert run(noisy_head(fully_sampled=False)) == [None]
