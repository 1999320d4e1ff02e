"""Compressed sensing and least squares: CG-SENSE, l1-wavelet and total variation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from operators.basic import FiniteDifference, Wavelet
from operators.linop import Space

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
    """Isotropic total variation; of attenuation (real images), with x >= 0.

    min_x 1/2 ||A x - y||^2 + regularization / s sum_pixels |grad x|, s as `image_noise`.

    Complex images by the primal-dual hybrid gradient method, real ones by FISTA, whose momentum the badly conditioned
    operators of CT need. Every pixel has a step of its own where the likelihood knows its curvature.

    Parameters
    ----------
    regularization : in units of `image_noise`, hence of the measured noise.
    ratio : of the dual to the primal step length, see `recon.solvers.pdhg`; of complex images.

    References
    ----------
    Rudin, Osher, Fatemi, Physica D 60, 259 (1992); Chambolle and Pock, J Math Imaging Vis 40, 120 (2011); Beck and
    Teboulle, IEEE Trans Image Process 18, 2419 (2009).
    """
    A = likelihood.A
    norm, x0 = A.norm(), torch.zeros_like(likelihood.backprojection)
    weight = regularization / image_noise(likelihood)
    if not A.domain.dtype.is_complex:
        return fista(
            likelihood.grad,
            attenuation_denoiser(A.domain, weight),
            x0,
            step=_steps(likelihood, norm),
            space=A.domain,
            iterations=iterations,
            tolerance=tolerance,
            callback=callback,
        )
    return pdhg(
        likelihood.grad,
        norm**2,
        FiniteDifference(A.domain),
        math.sqrt(4 * A.domain.ndim),
        lambda u: project_ball(u, weight, -len(A.domain.shape) - 1),
        x0,
        iterations=iterations,
        ratio=ratio,
        tolerance=tolerance,
        callback=callback,
    )


def image_noise(likelihood: Gaussian) -> float:
    """The unit of penalties: 1 / ||A||, the noise that a fully sampled image of MRI would have.

    Where the likelihood knows its curvature c it is c^(-1/2), c the mean in the object (`object_curvature`), of the
    data that are given: in CT rays that miss the object decide on ||A||.
    """
    if likelihood.curvature is None:
        return 1 / likelihood.A.norm()
    return object_curvature(likelihood.curvature, likelihood.backprojection) ** -0.5


def object_curvature(curvature: Tensor, backprojection: Tensor) -> float:
    """Harmonic mean over the object, which the back-projection over the curvature shows, blurred; over all if nothing.

    Parameters
    ----------
    curvature, backprojection : A^T A 1 and A^T y, of the same shape.
    """
    curvature = curvature.clamp(min=1e-3 * float(curvature.max()))
    seen = backprojection.abs() if backprojection.is_complex() else backprojection.clamp(min=0)
    there = seen / curvature
    there = there if float(there.sum()) > 0 else torch.ones_like(there)
    return float(there.sum() / (there / curvature).sum())


def _steps(likelihood: Gaussian, norm: float) -> float | Tensor:
    """1 over the curvature of quadratics above the data term: of separable ones, or of the same for all pixels."""
    curvature = likelihood.curvature
    if curvature is None:
        return 1 / (1.02 * norm**2)  # the norm is known from below
    return 1 / curvature.clamp(min=1e-3 * float(curvature.max()))  # pixels that hardly a ray meets


def attenuation_denoiser(
    space: Space, weight: float, *, iterations: int = 5
) -> Callable[[Tensor, float | Tensor], Tensor]:
    """prox(v, step), near argmin_{x >= 0} weight sum_pixels |grad x| + ||x - v||^2 / (2 step), nearer with every call.

    x = max(0, v - step D^H u) with the dual variable u, by a few steps of accelerated projected gradient from that of
    the call before; step is a number, or one for each pixel.

    References
    ----------
    Beck and Teboulle, IEEE Trans Image Process 18, 2419 (2009).
    """
    D = FiniteDifference(space)
    u: Tensor | None = None

    def prox(v: Tensor, step: float | Tensor) -> Tensor:
        nonlocal u
        largest = torch.as_tensor(step, dtype=v.dtype, device=v.device)
        if largest.ndim:  # of the pixels that a difference meets
            for axis in range(-space.ndim, 0):
                largest = largest.maximum(largest.roll(-1, axis))
            largest = largest.unsqueeze(-len(space.shape) - 1)
        ascent = 1 / (4 * space.ndim * largest)  # ||D||^2 <= 4 ndim
        u = torch.zeros_like(D.forward(v)) if u is None else u
        z, t = u, 1.0
        for _ in range(iterations):
            u_before, t_before, t = u, t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            u = z + ascent * D.forward(torch.relu(v - step * D.adjoint(z)))
            u = project_ball(u, weight, -len(space.shape) - 1)
            z = u + (t_before - 1) / t * (u - u_before)
        return torch.relu(v - step * D.adjoint(u))

    return prox
