"""Linear operators and their algebra.

An operator maps tensors whose trailing axes are ``domain.shape`` to tensors whose trailing axes are ``codomain.shape``;
every axis before them is batch. Operators are plain objects built from tensors that already sit on their device.
The inner product is Re<x, y>, so that complex images may have real data and the other way round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Space:
    """The trailing axes of a tensor: shape, dtype and device.

    The last `ndim` of them are spatial (all by default); those before are channels: map sets, coils, slices.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    ndim: int = -1

    def __post_init__(self) -> None:
        if self.ndim == -1:
            object.__setattr__(self, "ndim", len(self.shape))

    @classmethod
    def of(cls, x: Tensor, ndim: int | None = None) -> Space:
        """The space of the trailing `ndim` axes of x (of all its axes by default)."""
        shape = tuple(x.shape) if ndim is None else tuple(x.shape[x.ndim - ndim :])
        return cls(shape, x.dtype, x.device)

    @property
    def axes(self) -> tuple[int, ...]:
        """The trailing axes, as negative numbers."""
        return tuple(range(-len(self.shape), 0))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def check(self, x: Tensor, name: str) -> None:
        """Raise ValueError unless the trailing axes, dtype and device of x are those of this space."""
        if tuple(x.shape[max(x.ndim - len(self.shape), 0) :]) != self.shape:
            raise ValueError(
                f"{name}: expected trailing axes {self.shape} (leading axes are batch), got shape {tuple(x.shape)}"
            )
        if x.dtype != self.dtype:
            raise ValueError(f"{name}: expected dtype {self.dtype}, got {x.dtype}; convert it with x.to({self.dtype})")
        if x.device != self.device:
            raise ValueError(
                f"{name}: expected a tensor on {self.device}, got one on {x.device}; move the data, not the operator"
            )

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Re<x, y> over the trailing axes, shape (batch...)."""
        if x.is_complex():
            x, y = (torch.view_as_real(z.resolve_conj()).flatten(-2) for z in (x, y))
        return (x * y).sum(self.axes)

    def expand(self, value: Tensor) -> Tensor:
        """Append singleton axes, so that a value per batch entry multiplies tensors of this space."""
        return value.reshape(value.shape + (1,) * len(self.shape))

    def zeros(self, *batch: int) -> Tensor:
        return torch.zeros(*batch, *self.shape, dtype=self.dtype, device=self.device)

    def randn(self, *batch: int, generator: torch.Generator) -> Tensor:
        """White noise of unit variance per real component."""
        scale = math.sqrt(2) if self.dtype.is_complex else 1.0
        shape = (*batch, *self.shape)
        return scale * torch.randn(shape, dtype=self.dtype, device=self.device, generator=generator)


class LinearOperator:
    """A linear map with its exact adjoint.

    Subclasses implement `forward` and `adjoint`, and `gram` where A^H A is cheaper than A followed by A^H.

    Parameters
    ----------
    domain, codomain : the spaces of x and of A x.
    """

    def __init__(self, domain: Space, codomain: Space) -> None:
        self.domain = domain
        self.codomain = codomain

    def forward(self, x: Tensor) -> Tensor:
        """A x, without checks."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y, without checks."""
        raise NotImplementedError(f"{type(self).__name__} must define adjoint")

    def gram(self, x: Tensor) -> Tensor:
        """A^H A x, without checks."""
        return self.adjoint(self.forward(x))

    def __call__(self, x: Tensor) -> Tensor:
        """A x.

        Raises
        ------
        ValueError
            If the trailing axes, dtype or device of x are not those of the domain.
        """
        self.domain.check(x, f"input of {self!r}")
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:
        """The adjoint operator."""
        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, -1.0 * other)

    def __mul__(self, scalar: float | complex) -> LinearOperator:
        return Scaled(scalar, self)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return Scaled(-1.0, self)

    def svd(self) -> SVD:
        """The singular value decomposition, where one is known.

        Raises
        ------
        ValueError
            If none is: it takes a structure that only some operators have.
        """
        raise ValueError(
            f"no singular value decomposition is known of {self!r}; one is of dense matrices, single-coil Cartesian "
            "MRI, identities, and multiples of these"
        )

    def norm(self, *, iterations: int = 30, seed: int = 0) -> float:
        """Spectral norm, by the power method on A^H A: a lower bound that tightens with the iterations."""
        generator = torch.Generator(self.domain.device).manual_seed(seed)
        x = self.domain.randn(generator=generator)
        eigenvalue = x.new_zeros((), dtype=x.real.dtype)
        for _ in range(iterations):
            length = self.domain.inner(x, x).sqrt()
            if length == 0:
                return 0.0
            x = self.gram(x / length)
            eigenvalue = self.domain.inner(x, x).sqrt()
        return math.sqrt(float(eigenvalue))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_arrow(self)})"


@dataclass(frozen=True)
class SVD:
    """A = U diag(values) V^H.

    Parameters
    ----------
    U, V : operators with orthonormal columns, from spectral coefficients to the codomain and to the domain of A.
    values : singular values, 0 or more, in no order; they broadcast against the coefficients. What V does not reach, A
        takes to 0.
    """

    U: LinearOperator
    values: Tensor
    V: LinearOperator


def _arrow(operator: LinearOperator) -> str:
    return f"{operator.domain.shape} -> {operator.codomain.shape}"


class Adjoint(LinearOperator):
    """A^H."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.codomain, operator.domain)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.forward(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class Composition(LinearOperator):
    """A B: first B, then A."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.domain != inner.codomain:
            raise ValueError(f"cannot compose: {outer!r} expects {outer.domain}, got {inner.codomain} from {inner!r}")
        super().__init__(inner.domain, outer.codomain)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def gram(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.gram(self.inner.forward(x)))


class Sum(LinearOperator):
    """A + B."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        if (first.domain, first.codomain) != (second.domain, second.codomain):
            raise ValueError(f"cannot add {first!r} and {second!r}: domains and codomains must be equal")
        super().__init__(first.domain, first.codomain)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first.forward(x) + self.second.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y) + self.second.adjoint(y)


class Scaled(LinearOperator):
    """c A, for a number c."""

    def __init__(self, scalar: float | complex, operator: LinearOperator) -> None:
        number = complex(scalar)  # numbers of any library
        if number.imag and not (operator.domain.dtype.is_complex and operator.codomain.dtype.is_complex):
            raise ValueError(
                f"cannot scale {operator!r} by the complex number {scalar}: its domain or codomain is real"
            )
        super().__init__(operator.domain, operator.codomain)
        self.scalar, self.operator = number if number.imag else number.real, operator

    def forward(self, x: Tensor) -> Tensor:
        return self.scalar * self.operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.scalar.conjugate() * self.operator.adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        return abs(self.scalar) ** 2 * self.operator.gram(x)

    def svd(self) -> SVD:
        svd, size = self.operator.svd(), abs(self.scalar)
        phase = self.scalar / size if size > 0 else 1.0
        return SVD(svd.U if phase == 1 else phase * svd.U, size * svd.values, svd.V)


class Stack(LinearOperator):
    """(A_1; ...; A_n): several operators of one domain, their results stacked on a new first trailing axis.

    Raises
    ------
    ValueError
        If domains or codomains differ.
    """

    def __init__(self, *operators: LinearOperator) -> None:
        first = operators[0]
        for other in operators[1:]:
            if (other.domain, other.codomain) != (first.domain, first.codomain):
                raise ValueError(f"cannot stack {first!r} and {other!r}: domains and codomains must be equal")
        part = first.codomain
        super().__init__(first.domain, replace(part, shape=(len(operators), *part.shape)))
        self.operators = operators

    @property
    def _axis(self) -> int:
        return -len(self.codomain.shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([operator.forward(x) for operator in self.operators], self._axis)

    def adjoint(self, y: Tensor) -> Tensor:
        parts = [operator.adjoint(part) for operator, part in zip(self.operators, y.unbind(self._axis), strict=True)]
        return torch.stack(parts).sum(0)

    def gram(self, x: Tensor) -> Tensor:
        return torch.stack([operator.gram(x) for operator in self.operators]).sum(0)


class Weighted(LinearOperator):
    """W A: what an operator gives, times real weights, which may differ from slice to slice.

    Parameters
    ----------
    weights : (..., *operator.codomain.shape) real; its leading axes lead domain and codomain too.

    Raises
    ------
    ValueError
        If the weights do not have the trailing axes of the codomain, or are complex.
    """

    def __init__(self, weights: Tensor, operator: LinearOperator) -> None:
        inner = operator.codomain
        if weights.is_complex() or tuple(weights.shape[weights.ndim - len(inner.shape) :]) != inner.shape:
            raise ValueError(
                f"weights: expected real of trailing shape {inner.shape} as {operator!r} gives, got {weights.dtype} of "
                f"shape {tuple(weights.shape)}"
            )
        batch = tuple(weights.shape[: weights.ndim - len(inner.shape)])
        domain, codomain = (
            replace(space, shape=(*batch, *space.shape), ndim=space.ndim) for space in (operator.domain, inner)
        )
        super().__init__(domain, codomain)
        self.weights, self.operator = weights, operator

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * self.operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(self.weights * y)

    def gram(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(self.weights.square() * self.operator.forward(x))


class Identity(LinearOperator):
    """I on a space."""

    def __init__(self, space: Space) -> None:
        super().__init__(space, space)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def svd(self) -> SVD:
        return SVD(self, torch.ones((), dtype=self.domain.dtype.to_real(), device=self.domain.device), self)


class Matrix(LinearOperator):
    """A dense matrix acting on the flattened domain; for small problems and tests.

    Parameters
    ----------
    matrix : (rows, columns).
    """

    def __init__(self, matrix: Tensor) -> None:
        rows, columns = matrix.shape
        super().__init__(
            Space((columns,), matrix.dtype, matrix.device),
            Space((rows,), matrix.dtype, matrix.device),
        )
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.conj()

    def svd(self) -> SVD:
        U, values, Vh = torch.linalg.svd(self.matrix, full_matrices=False)
        return SVD(Matrix(U), values, Matrix(Vh.mH))
