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
    curvature : (*A.domain.shape), of separable quadratics above the data term (diag(curvature) - A^H A >= 0), such as
        A^T A 1 of an A without negative entries. It preconditions `solve` and `draw`, and gives steps to gradient
        methods (TV, DPS). None for none.
    iterations : of conjugate gradients that a sampler may take for `solve`: a few where A is well conditioned.

    Raises
    ------
    ValueError
        If y is not of the operator's codomain, or not finite.
    """

    def __init__(self, A: LinearOperator, y: Tensor, *, curvature: Tensor | None = None, iterations: int = 5) -> None:
        A.codomain.check(y, "data of a Gaussian likelihood")
        if not bool(torch.isfinite(y).all()):
            raise ValueError(
                "data of a Gaussian likelihood: expected finite values, got NaN or infinity; mask or repair them first"
            )
        self.A = A
        self.y = y
        self.curvature, self.iterations = curvature, iterations
        self.backprojection = A.adjoint(y)

    def nll(self, x: Tensor) -> Tensor:
        """Negative log-likelihood 1/2 ||A x - y||^2 up to a constant, shape (batch...)."""
        residual = self.A.forward(x) - self.y
        return 0.5 * self.A.codomain.inner(residual, residual)

    def grad(self, x: Tensor) -> Tensor:
        """A^H (A x - y)."""
        return self.A.gram(x) - self.backprojection

    def solve(
        self,
        v: Tensor,
        tau: float,
        *,
        iterations: int,
        x0: Tensor | None = None,
        y: Tensor | None = None,
        tolerance: float = 0.0,
    ) -> Tensor:
        """argmin_x tau nll(x) + 1/2 ||x - v||^2, by conjugate gradients from x0 (v by default).

        The system is (I + tau A^H A) x = v + tau A^H y; `y` replaces the data (noisy data of a diffusion level, say).

        Stopped early it is the data consistency step of DDS.
        """
        return cg(
            lambda x: x + tau * self.A.gram(x),
            v + tau * self._backprojected(y),
            v if x0 is None else x0,
            space=self.A.domain,
            iterations=iterations,
            tolerance=tolerance,
            diagonal=self._diagonal(tau),
        )

    def project(self, v: Tensor, *, iterations: int, y: Tensor | None = None, tolerance: float = 0.0) -> Tensor:
        """The least-squares solution of A x = y nearest to v, by conjugate gradients on A^H A x = A^H y from v.

        `y` replaces the data.
        """
        return cg(
            self.A.gram, self._backprojected(y), v, space=self.A.domain, iterations=iterations, tolerance=tolerance
        )

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
            diagonal=self._diagonal(tau),
        )

    def _backprojected(self, y: Tensor | None) -> Tensor:
        return self.backprojection if y is None else self.A.adjoint(y)

    def _diagonal(self, tau: float) -> Tensor | None:
        """Near I + tau A^H A."""
        return None if self.curvature is None else 1 + tau * self.curvature


class PoissonTransmission:
    """counts ~ Poisson(blank exp(-A x) + background), independent of each other: photons that an object lets through.

    Parameters
    ----------
    A : operator from images to line integrals.
    counts, blank, background : (batch..., *A.codomain.shape); what was counted, what is expected without object, and
        what is added to it on the way (scatter, dark current).

    Raises
    ------
    ValueError
        If they are not of the operator's codomain, not finite, negative, or something was counted where nothing is
        expected.

    References
    ----------
    Erdogan and Fessler, IEEE Trans Med Imaging 18, 801 (1999).
    """

    def __init__(self, A: LinearOperator, counts: Tensor, blank: Tensor, background: Tensor) -> None:
        for name, value in {"counts": counts, "blank": blank, "background": background}.items():
            A.codomain.check(value, f"{name} of a transmission likelihood")
            if not bool((value.isfinite() & (value >= 0)).all()):
                raise ValueError(f"{name} of a transmission likelihood: expected finite values, 0 or more")
        if bool(((counts > 0) & (blank + background <= 0)).any()):
            raise ValueError("transmission likelihood: expected a blank or background > 0 where something was counted")
        self.A = A
        self.counts, self.blank, self.background = counts, blank, background

    def nll(self, x: Tensor) -> Tensor:
        """Negative log-likelihood up to a constant, which is such that it is 0 for a perfect fit; shape (batch...)."""
        mean = self._mean(self.A.forward(x))
        seen = self.counts > 0
        ratio = torch.where(seen, mean / self.counts.where(seen, 1.0), 1.0)
        return (mean - self.counts - self.counts * ratio.log()).sum(self.A.codomain.axes)

    def grad(self, x: Tensor) -> Tensor:
        """A^H h'(A x)."""
        return self.A.adjoint(self.slope(self.A.forward(x)))

    def slope(self, lines: Tensor) -> Tensor:
        """h'(l) = blank exp(-l) (counts / mean - 1), the derivative of the nll by each line integral."""
        mean = self._mean(lines)
        ratio = self.counts / mean.where(mean > 0, 1.0)
        return (mean - self.background) * (ratio - 1)

    def curvature(self, lines: Tensor) -> Tensor:
        """The least of parabolas that touch h at l >= 0 and lie above it on all l >= 0: monotone surrogates.

        2 (h(0) - h(l) + l h'(l)) / l^2, and h''(0) near l = 0; never below 0.
        """
        empty = self.blank + self.background
        at_zero = self.blank * (1 - self.counts * self.background / empty.where(empty > 0, 1.0) ** 2)
        above = lines.clamp(min=0.05)  # below, the difference would be rounding
        mean = self._mean(above)
        seen = self.counts > 0
        ratio = torch.where(seen, empty / mean.where(mean > 0, 1.0), 1.0)
        fall = empty - mean - self.counts * ratio.log()  # h(0) - h(l)
        curvature = 2 * (fall + above * self.slope(above)) / above**2
        return torch.where(lines >= 0.05, curvature, at_zero).clamp(min=0)

    def _mean(self, lines: Tensor) -> Tensor:
        return self.blank * torch.exp(-lines) + self.background
