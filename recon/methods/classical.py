"""Compressed sensing and least squares: CG-SENSE, l1-wavelet and total variation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from operators.basic import FiniteDifference, Wavelet

from ..likelihood import Gaussian
from ..solvers import Callback, cg, fista, pdhg, project_ball, soft_threshold


def cg_sense(
    likelihood: Gaussian, *, regularization: float = 0.05, iterations: int = 30, callback: Callback | None = None
) -> Tensor:
    """CG-SENSE: least squares with a Tikhonov penalty, by conjugate gradients.

    min_x 1/2 ||A x - y||^2 + 1/2 (regularization ||A||)^2 ||x||^2.

    Parameters
    ----------
    regularization : weight of ||x||^2 relative to the squared norm of A.

    References
    ----------
    Pruessmann et al., Magn Reson Med 46, 638 (2001).
    """
    A = likelihood.A
    weight = (regularization * A.norm()) ** 2 if regularization > 0 else 0.0
    b = likelihood.backprojection
    return cg(
        lambda x: A.gram(x) + weight * x,
        b,
        torch.zeros_like(b),
        space=A.domain,
        iterations=iterations,
        callback=callback,
    )


def l1_wavelet(
    likelihood: Gaussian,
    *,
    regularization: float = 0.2,
    wavelet: str = "db2",
    iterations: int = 100,
    callback: Callback | None = None,
) -> Tensor:
    r"""l1-wavelet compressed sensing by FISTA, its wavelets shifted at random in every iteration (cycle spinning).

    min_x 1/2 ||A x - y||^2 + regularization ||A|| ||W x||_1, the scaling coefficients left alone.

    Every shift has a minimum of its own and the iterates wander between them: their mean over the last third of the
    iterations is returned, the image of all shifts.

    Parameters
    ----------
    regularization : threshold in units of the noise that a fully sampled image would have (1 / ||A||): the penalty
        follows the measured noise level by itself.
    wavelet : a key of operators.basic.SCALING_FILTERS.

    References
    ----------
    Lustig, Donoho, Pauly, Magn Reson Med 58, 1182 (2007).
    Random shifts: Figueiredo and Nowak, IEEE Trans Image Process 12, 906 (2003).
    """
    A = likelihood.A
    W = Wavelet(A.domain, name=wavelet)
    norm = A.norm()
    axes = A.domain.axes[-A.domain.ndim :]
    generator = torch.Generator().manual_seed(0)

    def prox(v: Tensor, step: float) -> Tensor:
        shift = [int(s) for s in torch.randint(0, 2**W.levels, (len(axes),), generator=generator)]
        coefficients = W.forward(v.roll(shift, axes))
        coarse = W.scaling(coefficients).clone()
        coefficients = soft_threshold(coefficients, step * regularization * norm)
        W.scaling(coefficients).copy_(coarse)
        return W.adjoint(coefficients).roll([-s for s in shift], axes)

    total, count = torch.zeros_like(likelihood.backprojection), 0

    def average(iteration: int, x: Tensor) -> None:
        nonlocal count
        if iteration >= 2 * iterations // 3:
            total.add_(x)
            count += 1
        if callback is not None:
            callback(iteration, total / count if count else x)

    fista(
        likelihood.grad,
        prox,
        torch.zeros_like(total),
        step=1 / norm**2,
        space=A.domain,
        iterations=iterations,
        callback=average,
    )
    return total / max(count, 1)


def total_variation(
    likelihood: Gaussian,
    *,
    regularization: float = 0.1,
    iterations: int = 150,
    tolerance: float = 0.0,
    ratio: float = 0.15,
    callback: Callback | None = None,
) -> Tensor:
    """Isotropic total variation by the primal-dual hybrid gradient method.

    min_x 1/2 ||A x - y||^2 + regularization ||A|| sum_pixels |grad x|; with x >= 0 where images are real (attenuation).

    For these, whose operators are worse conditioned, the steps start from ten of conjugate gradients.

    Parameters
    ----------
    regularization : in units of the noise that a fully sampled image would have, as in `l1_wavelet`.
    ratio : of the dual to the primal step length, see `recon.solvers.pdhg`.

    References
    ----------
    Rudin, Osher, Fatemi, Physica D 60, 259 (1992); Chambolle and Pock, J Math Imaging Vis 40, 120 (2011).
    """
    A = likelihood.A
    D = FiniteDifference(A.domain)
    norm = A.norm()
    x0, is_real = torch.zeros_like(likelihood.backprojection), not A.domain.dtype.is_complex
    return pdhg(
        likelihood.grad,
        norm**2,
        D,
        math.sqrt(4 * A.domain.ndim),
        lambda u: project_ball(u, regularization * norm, -len(A.domain.shape) - 1),
        likelihood.project(x0, iterations=10) if is_real else x0,
        iterations=iterations,
        project=torch.relu if is_real else None,
        ratio=ratio,
        tolerance=tolerance,
        callback=callback,
    )
