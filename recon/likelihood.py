"""What was measured, as a function of the image: operator, data and noise model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from operators.linop import LinearOperator

from .solvers import cg


class Randn(Protocol):
    """A source of white noise of unit variance per real component (see `recon.noise.Noise`)."""

    def randn_like(self, x: Tensor) -> Tensor: ...


class Gaussian:
    """y = A x + n with white noise of standard deviation 1 per real component (E|n|^2 = 2 for complex data).

    Data of noise level s enters as Gaussian((1 / s) * A, y / s): weights live in A and y.

    Parameters
    ----------
    A : operator from images to data.
    y : (batch..., *A.codomain.shape); the data, of the operator's codomain.

    Raises
    ------
    ValueError
        If y is not of the operator's codomain, or not finite.
    """

    def __init__(self, A: LinearOperator, y: Tensor) -> None:
        A.codomain.check(y, "data of a Gaussian likelihood")
        if not bool(torch.isfinite(y).all()):
            raise ValueError(
                "data of a Gaussian likelihood: expected finite values, got NaN or infinity; mask or repair them first"
            )
        self.A = A
        self.y = y
        self.backprojection = A.adjoint(y)

    def nll(self, x: Tensor) -> Tensor:
        """Negative log-likelihood 1/2 ||A x - y||^2 up to a constant, shape (batch...)."""
        residual = self.A.forward(x) - self.y
        return 0.5 * self.A.codomain.inner(residual, residual)

    def grad(self, x: Tensor) -> Tensor:
        """A^H (A x - y)."""
        return self.A.gram(x) - self.backprojection

    def solve(
        self, v: Tensor, tau: float, *, iterations: int, x0: Tensor | None = None, tolerance: float = 0.0
    ) -> Tensor:
        """argmin_x tau nll(x) + 1/2 ||x - v||^2, by conjugate gradients from x0 (v by default).

        The system is (I + tau A^H A) x = v + tau A^H y.

        Stopped early it is the data consistency step of DDS.
        """
        return cg(
            lambda x: x + tau * self.A.gram(x),
            v + tau * self.backprojection,
            v if x0 is None else x0,
            space=self.A.domain,
            iterations=iterations,
            tolerance=tolerance,
        )

    def project(self, v: Tensor, *, iterations: int, y: Tensor | None = None, tolerance: float = 0.0) -> Tensor:
        """The least-squares solution of A x = y nearest to v, by conjugate gradients on A^H A x = A^H y from v.

        `y` replaces the data (noisy data of a diffusion level, say).
        """
        b = self.backprojection if y is None else self.A.adjoint(y)
        return cg(self.A.gram, b, v, space=self.A.domain, iterations=iterations, tolerance=tolerance)

    def draw(self, v: Tensor, tau: float, rng: Randn, *, iterations: int = 200, tolerance: float = 1e-5) -> Tensor:
        """An exact sample of p(x) ~ exp(-nll(x) - ||x - v||^2 / (2 tau)), by perturbation and conjugate gradients.

        References
        ----------
        Orieux, Feron, Giovannelli, IEEE Signal Process Lett 19, 251 (2012).
        """
        y = self.y.expand(*v.shape[: v.ndim - len(self.A.domain.shape)], *self.A.codomain.shape)
        target = v + tau**0.5 * rng.randn_like(v)
        b = target + tau * self.A.adjoint(y + rng.randn_like(y))
        return cg(
            lambda x: x + tau * self.A.gram(x),
            b,
            target,
            space=self.A.domain,
            iterations=iterations,
            tolerance=tolerance,
        )
