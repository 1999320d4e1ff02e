"""Iterative solvers and proximal functions; every leading axis is a problem of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from operators.linop import LinearOperator, Space

from .errors import InputError

Callback = Callable[[int, Tensor], None]
"""Called after each iteration with its index and the current estimate."""

Step = TypeVar("Step", bound=float | Tensor)
"""One for all pixels, or one for each."""


def cg(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor,
    *,
    space: Space,
    iterations: int,
    tolerance: float = 0.0,
    diagonal: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Conjugate gradients for a Hermitian positive semidefinite system, each batch entry with its own step lengths.

    Parameters
    ----------
    apply : the system matrix.
    b, x0 : (batch..., *space.shape); right-hand side and start.
    space : the trailing axes over which inner products run.
    iterations : at most so many; 0 returns x0.
    tolerance : stop when every residual is below tolerance * ||b||, or below rounding.
    diagonal : positive; near the system, whose inverse preconditions it. Residuals are then measured in that inverse.

    References
    ----------
    Hestenes and Stiefel, J Res Natl Bur Stand 49, 409 (1952).
    """
    if iterations < 0 or not tolerance >= 0:
        raise InputError(
            f"conjugate gradients: expected iterations and a tolerance of 0 or more, got {iterations} and {tolerance}"
        )
    x = x0
    r = b - apply(x)
    z = r if diagonal is None else r / diagonal
    p = z
    rr = space.inner(r, z)
    bb = space.inner(b, b if diagonal is None else b / diagonal)
    rounding = torch.finfo(rr.dtype).eps ** 2 * (bb + rr)  # below it, a singular system would be solved for noise
    limit = torch.maximum(tolerance**2 * bb, rounding)
    for iteration in range(iterations):
        if bool((rr <= limit).all()):
            break
        q = apply(p)
        alpha = torch.where(rr > limit, _ratio(rr, space.inner(p, q)), 0.0)  # converged problems stand still
        x = x + space.expand(alpha) * p
        r = r - space.expand(alpha) * q  # residual b - A x
        z = r if diagonal is None else r / diagonal
        rr, rr_before = space.inner(r, z), rr
        p = z + space.expand(_ratio(rr, rr_before)) * p
        if callback is not None:
            callback(iteration, x)
    return x


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where a problem has already converged to machine precision."""
    return torch.where(denominator > 0, numerator / denominator.where(denominator > 0, 1.0), 0.0)


def fista(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, Step], Tensor],
    x0: Tensor,
    *,
    step: Step,
    space: Space,
    iterations: int,
    tolerance: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """Accelerated proximal gradient for min f(x) + g(x), restarted when the momentum points uphill.

    Parameters
    ----------
    gradient : of f, Lipschitz with constant at most 1 / step; where pixels have steps of their own, in that metric.
    prox : prox(v, step) = argmin g(x) + ||x - v||^2 / (2 step).
    tolerance : stop when every update is below tolerance * ||x||.

    References
    ----------
    Beck and Teboulle, SIAM J Imaging Sci 2, 183 (2009).
    Restart: O'Donoghue and Candes, Found Comput Math 15, 715 (2015).
    """
    x, z = x0, x0
    t = torch.ones_like(space.inner(x0, x0))
    for iteration in range(iterations):
        x_before = x
        x = prox(z - step * gradient(z), step)
        change = x - x_before
        t = torch.where(space.inner((z - x) / step, change) > 0, 1.0, t)  # momentum points uphill
        t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
        z = x + space.expand((t - 1) / t_next) * change
        t = t_next
        if callback is not None:
            callback(iteration, x)
        if tolerance > 0 and _settled(change, x, space, tolerance):
            break
    return x


def pdhg(
    gradient: Callable[[Tensor], Tensor],
    lipschitz: float,
    K: LinearOperator,
    K_norm: float,
    prox_dual: Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    iterations: int,
    project: Callable[[Tensor], Tensor] | None = None,
    ratio: float = 1.0,
    tolerance: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """Primal-dual hybrid gradient for min f(x) + g(K x) over a convex set, f smooth, in the form of Condat and Vu.

    Parameters
    ----------
    gradient, lipschitz : of f, and its Lipschitz constant.
    K, K_norm : linear operator and its spectral norm.
    prox_dual : projection on the dual ball of g (the proximal map of g's conjugate, for a norm g).
    project : on the convex set; None where x is free.
    ratio : dual over primal step length, in units where both make equal progress.
    tolerance : stop when the update of x is below tolerance * ||x||, and that of the dual variable u likewise.

    References
    ----------
    Chambolle and Pock, J Math Imaging Vis 40, 120 (2011); Condat, J Optim Theory Appl 158, 460 (2013).
    """
    # 1 / primal - dual ||K||^2 >= lipschitz / 2
    dual = ratio * lipschitz / (2 * K_norm**2)
    primal = 1 / (lipschitz / 2 + dual * K_norm**2)
    x, u = x0, torch.zeros_like(K.forward(x0))
    for iteration in range(iterations):
        x_before, u_before = x, u
        x = x - primal * (gradient(x) + K.adjoint(u))
        x = x if project is None else project(x)
        u = prox_dual(u + dual * K.forward(2 * x - x_before))
        if callback is not None:
            callback(iteration, x)
        # x may stand still while u moves
        if (
            tolerance > 0
            and _settled(x - x_before, x, K.domain, tolerance)
            and _settled(u - u_before, u, K.codomain, tolerance)
        ):
            break
    return x


def _settled(change: Tensor, x: Tensor, space: Space, tolerance: float) -> bool:
    """Whether every update is below tolerance * ||x||."""
    return bool((space.inner(change, change) <= tolerance**2 * space.inner(x, x)).all())


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """argmin_u threshold |u| + 1/2 |u - x|^2, elementwise; shrinks the magnitude of complex numbers."""
    magnitude = x.abs()
    return x * ((magnitude - threshold).clamp_min(0) / magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny))


def project_ball(u: Tensor, radius: float, axis: int) -> Tensor:
    """Nearest point with norm at most `radius` along `axis`: the dual step of isotropic total variation."""
    length = torch.linalg.vector_norm(u, dim=axis, keepdim=True)
    return u * (radius / length.clamp_min(max(radius, torch.finfo(length.dtype).tiny)))
