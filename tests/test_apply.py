"""Where no coil sees anything the image is 0, whatever the prior imagines there."""

import pytest
import torch
from torch import Tensor

from recon import mri
from recon.apply import apply_method
from recon.methods import METHODS, inputs_of
from recon.partial import PartialResults
from recon.phantom import head
from recon.settings import Settings

# They end with a draw about the last denoised image, which has the width of the last level everywhere.
NOISY = ("daps", "daps-published")


class Tissue:
    """E[x0 | x] for white images of mean 0.5 and variance 0.1: tissue everywhere."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, True

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        variance = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return (0.5 * variance + 0.1 * x) / (0.1 + variance)


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, method in METHODS.items()
        if {"likelihood", "denoiser"} <= set(inputs_of(method)) and name not in NOISY
    ],
)
def test_nothing_is_where_no_coil_sees(method: str) -> None:
    scan = mri.prepare(head((32, 32), coils=4))
    support = mri.likelihood(scan).A.support
    assert 0.2 < float((~support).float().mean()) < 0.5
    draws = "rng" in inputs_of(METHODS[method])
    settings = Settings(method=method, samples=2 if draws else None, steps=6)
    parts = PartialResults(None, {})
    x = apply_method(scan, settings, Tissue(), stream=(0,), parts=parts, name="x", report=lambda _: None).x
    assert not (x * ~support).any()
    assert (x * support).abs().mean() > 0.1


def test_methods_without_maps_go_without_support() -> None:
    scan = mri.prepare(head((32, 32), coils=4))
    settings, parts = Settings(method="score-mri-rss", samples=1, steps=6), PartialResults(None, {})
    x = apply_method(scan, settings, Tissue(), stream=(0,), parts=parts, name="x", report=lambda _: None).x
    assert x.shape == (1, 1, 1, 32, 32)
    assert (x.real > 0).all()
