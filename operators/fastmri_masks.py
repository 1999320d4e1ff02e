"""The undersampling patterns of the fastMRI challenge, equal to those of the `fastmri` package sample by sample.

Parameters as in `operators.masks`; `n` is the number of lines along `axis`, `c` the calibration. By default c is the
challenge's own: round(0.08 n) up to acceleration 4, round(0.04 n) above. The c central lines, which begin at
(n - c + 1) // 2, are laid over a pattern that knows nothing of them, so that the true acceleration may differ from the
nominal one: `acceleration(mask)` tells it. The same seed gives the package's mask for the same seed.

References
----------
Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from operators.sampling import budget, check_calibration, lines, spread

if TYPE_CHECKING:
    import numpy as np


def fastmri_random(
    shape: tuple[int, ...], acceleration: float, *, calibration: int | None = None, seed: int = 0, axis: int = -1
) -> Tensor:
    """Lines drawn independently: line k is sampled where u_k < p = (n / R - c) / (n - c), u_k uniform on [0, 1).

    The number of lines is n / R in expectation only.

    Raises
    ------
    ValueError
        If the shape, the acceleration or the calibration is out of range.
    """
    n, c = _lines_and_calibration(shape, acceleration, calibration, axis)
    check_calibration(c, n, n / acceleration)  # p would be below 0
    p = (n / acceleration - c) / (n - c) if c < n else 1.0
    drawn = torch.from_numpy(_random_state(seed).uniform(size=n) < p)
    return spread(drawn | _centre(n, c), shape, (axis,))


def fastmri_equispaced(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    offset: int | None = None,
    axis: int = -1,
) -> Tensor:
    """Every R-th line, o + j R, with R a whole number: the true acceleration is below R.

    offset : first line o >= 0; None draws it from 0 ... R - 1.

    Raises
    ------
    ValueError
        If the acceleration is no whole number, or an argument is out of range.
    """
    n, c = _lines_and_calibration(shape, acceleration, calibration, axis)
    step = _whole(acceleration)
    mask = _centre(n, c)
    mask[_offset(offset, step, seed) :: step] = True
    return spread(mask, shape, (axis,))


def fastmri_equispaced_fraction(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    offset: int | None = None,
    axis: int = -1,
) -> Tensor:
    """Lines round(o + j s) < n - 1/2 with the spacing s = R (c - n) / (c R - n), which brings the total close to n / R.

    offset : first line o >= 0; None draws it from 0 ... round(s) - 1.

    Raises
    ------
    ValueError
        If the calibration leaves no line to space, or an argument is out of range.
    """
    import numpy as np

    n, c = _lines_and_calibration(shape, acceleration, calibration, axis)
    if c * acceleration >= n:
        raise ValueError(
            f"a calibration of {c} lines leaves none of {n} / {acceleration} to be spaced; lower one of the two"
        )
    spacing = (acceleration * (c - n)) / (c * acceleration - n)
    # arange and around in float64: another order of the same sum would round some line to its neighbour
    positions = np.around(np.arange(_offset(offset, round(spacing), seed), n - 1, spacing)).astype(int)
    mask = _centre(n, c)
    mask[torch.from_numpy(positions)] = True
    return spread(mask, shape, (axis,))


def fastmri_magic(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    offset: int | None = None,
    axis: int = -1,
) -> Tensor:
    """Every R-th line with the two halves of k-space offset, so that conjugate symmetry fills lines of the other half.

    Lines k = a + j R of the half k = 0, 1, ... and k = -1 - (b + j R) of the other, k counted from the origin, with
    (a, b) = (o + 1, o + 2) for an even offset o and (o + 2, o - 1) for an odd one; R a whole number.

    offset : o >= 0; None draws it from 0 ... R - 1.

    Raises
    ------
    ValueError
        If the acceleration is no whole number, or an argument is out of range.

    References
    ----------
    Defazio, Offset sampling improves deep learning based accelerated MRI reconstructions by exploiting symmetry,
    arXiv:1912.01101 (2019).
    """
    n, c = _lines_and_calibration(shape, acceleration, calibration, axis)
    step = _whole(acceleration)
    return spread(_centre(n, c) | _offset_halves(n, step, _offset(offset, step, seed)), shape, (axis,))


def fastmri_magic_fraction(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    offset: int | None = None,
    axis: int = -1,
) -> Tensor:
    """`fastmri_magic` with the spacing round(n / (t - c)) in place of R, t = round(n / R) lines being the target.

    The calibration is at least one line.

    offset : as for `fastmri_magic`; None draws it from 0 ... spacing - 1.

    Raises
    ------
    ValueError
        If the calibration leaves no line to space, or an argument is out of range.
    """
    n, c = _lines_and_calibration(shape, acceleration, calibration, axis)
    target = round(n / acceleration)
    c = max(c, 1)
    if c >= target:
        raise ValueError(
            f"a calibration of {c} lines leaves none of {n} / {acceleration} to be spaced; lower one of the two"
        )
    step = round(n / (target - c))
    return spread(_centre(n, c) | _offset_halves(n, step, _offset(offset, step, seed)), shape, (axis,))


def _lines_and_calibration(
    shape: tuple[int, ...], acceleration: float, calibration: int | None, axis: int
) -> tuple[int, int]:
    """Lines of the grid, and calibration lines: those asked for, else the challenge's."""
    n = lines(shape, axis)
    budget(n, acceleration)
    if calibration is None:
        return n, round(n * (0.08 if acceleration <= 4 else 0.04))
    return n, check_calibration(calibration, n, n)  # laid over the pattern, which need not have room for it


def _centre(n: int, c: int) -> Tensor:
    """(n,) bool: the c lines from (n - c + 1) // 2; of an even c on an odd n the larger part lies past the origin."""
    start = (n - c + 1) // 2
    k = torch.arange(n)
    return (k >= start) & (k < start + c)


def _offset_halves(n: int, step: int, offset: int) -> Tensor:
    """(n,) bool: every `step`-th line of each half of k-space, the halves offset against each other."""
    first, mirrored = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[n // 2 + first :: step] = True
    half = torch.zeros(n // 2, dtype=torch.bool)
    half[mirrored::step] = True
    mask[: n // 2] = half.flip(0)
    return mask


def _offset(offset: int | None, high: int, seed: int) -> int:
    """The offset asked for, else one drawn from 0 ... high - 1."""
    if offset is None:
        return int(_random_state(seed).randint(0, high=high))
    if offset < 0:
        raise ValueError(f"expected an offset of 0 or more, got {offset}")
    return offset


def _whole(acceleration: float) -> int:
    if acceleration != int(acceleration):
        raise ValueError(f"expected a whole number as acceleration of this pattern, got {acceleration}")
    return int(acceleration)


def _random_state(seed: int) -> np.random.RandomState:
    """NumPy's legacy generator: its streams are frozen, and the challenge's masks are drawn from them."""
    import numpy as np

    return np.random.RandomState(seed)
