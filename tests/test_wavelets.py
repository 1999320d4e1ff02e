"""Wavelets: orthonormal at any size, and those of the literature."""

import numpy as np
import pytest
import torch
from test_operators import C64, C128, dense, randn, space

from operators.basic import SCALING_FILTERS, Wavelet


@pytest.mark.parametrize("name", SCALING_FILTERS)
@pytest.mark.parametrize("shape", [(8, 8), (7, 12), (5, 9), (1, 3), (2, 3, 5)])
@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, C128])
def test_wavelets_are_orthonormal(name: str, shape: tuple[int, ...], levels: int, dtype: torch.dtype) -> None:
    """W^H W = W W^H = I at any size; the filters have the digits of float64."""
    W = Wavelet(space(*shape, dtype=dtype), name=name, levels=levels)
    M = dense(W.forward, W.domain)
    unit = torch.eye(len(M), dtype=dtype)
    assert torch.allclose(M.mH @ M, unit, atol=1e-13)
    assert torch.allclose(M @ M.mH, unit, atol=1e-13)
    assert torch.allclose(dense(W.adjoint, W.domain), M.mH, atol=1e-14)


@pytest.mark.parametrize("name", SCALING_FILTERS)
def test_one_level_agrees_with_pywavelets(name: str) -> None:
    """Up to the circular shift and the order of the taps, which are conventions."""
    pywt = pytest.importorskip("pywt")
    x = randn(16, dtype=torch.float64)
    coefficients = Wavelet(space(16, dtype=torch.float64), name=name, levels=1)(x)
    taps = len(SCALING_FILTERS[name])
    coarse, detail = pywt.dwt(np.roll(x.numpy(), taps // 2 - 1 if taps > 2 else 0), name, mode="periodization")
    for ours, theirs in zip(coefficients.split(8), (coarse, detail), strict=True):
        shifts = [np.abs(np.abs(np.roll(theirs, s)) - np.abs(ours.numpy())).max() for s in range(8)]
        assert min(shifts) < 1e-10  # some tables of filters end at 12 digits


@pytest.mark.parametrize(("name", "moments"), [("haar", 1), ("db2", 2), ("db4", 4)])
def test_polynomials_have_no_detail(name: str, moments: int) -> None:
    """A filter of p vanishing moments sees nothing in polynomials below degree p, away from the periodic border."""
    n, taps = 32, len(SCALING_FILTERS[name])
    t = torch.linspace(-1, 1, n, dtype=torch.float64)
    W = Wavelet(space(n, dtype=torch.float64), name=name, levels=1)
    inside = slice(n // 2, n - taps // 2)
    for degree in range(moments):
        assert W(t**degree)[inside].abs().max() < 1e-10  # 12 digits of a tabulated filter
    assert W(t**moments)[inside].abs().max() > 1e-6


def test_scaling_coefficients_are_the_coarse_image() -> None:
    W = Wavelet(space(3, 13, 10, dtype=C128, ndim=2), levels=2)
    assert W.scaling(W.domain.zeros()).shape == (3, 4, 3)
    constant = torch.ones(3, 12, 8, dtype=C128)
    even = Wavelet(space(3, 12, 8, dtype=C128, ndim=2), levels=2)
    coefficients = even(constant)
    even.scaling(coefficients).zero_()
    assert coefficients.abs().max() < 1e-12  # a constant is coarse altogether
    assert even.gram(constant) is constant


@pytest.mark.parametrize(("size", "levels"), [(8, 1), (32, 1), (63, 1), (64, 2), (256, 4), (320, 4)])
def test_levels_end_at_16_samples(size: int, levels: int) -> None:
    assert Wavelet(space(size, 400, dtype=torch.float32)).levels == levels


def test_bad_wavelets_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of haar, db2, db4, got 'sym4'"):
        Wavelet(space(8, 8, dtype=C64), name="sym4")
    with pytest.raises(ValueError, match="levels: expected 0 or more, got -1"):
        Wavelet(space(8, 8, dtype=C64), levels=-1)
