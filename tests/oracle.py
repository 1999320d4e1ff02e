"""Gaussian priors, whose denoisers and posteriors are known in closed form: the truth for every sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from operators.linop import LinearOperator, Matrix, Space
from operators.mri import sense
from recon.likelihood import Gaussian
from recon.noise import Noise


class GaussianDenoiser:
    """D(x, sigma) = mu + C (C + sigma^2 I)^-1 (x - mu), for x0 ~ N(mu, C).

    Parameters
    ----------
    mean : (*shape), real or complex.
    covariance : (n, n) of the flattened image, per real component: E (x0 - mu)(x0 - mu)^H is 2 C for complex images.
    """

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, mean: Tensor, covariance: Tensor, ndim: int) -> None:
        self.mean, self.ndim, self.is_complex = mean, ndim, mean.is_complex()
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        shrink = self.eigenvalues / (self.eigenvalues + torch.as_tensor(sigma) ** 2)
        deviation = (x - self.mean).flatten(-self.mean.ndim)
        return self.mean + ((deviation @ self.eigenvectors.conj() * shrink) @ self.eigenvectors.mT).reshape(x.shape)


@dataclass(frozen=True)
class Problem:
    """A Gaussian prior, noisy data, and the posterior N(posterior_mean, posterior_covariance) that follows.

    Covariances are those of the real components: for complex images, of the vector (Re, Im, Re, Im, ...).
    """

    A: LinearOperator
    mean: Tensor
    covariance: Tensor
    y: Tensor
    sigma_y: float
    denoiser: GaussianDenoiser | MixtureDenoiser
    likelihood: Gaussian
    posterior_mean: Tensor
    posterior_covariance: Tensor

    @property
    def trace(self) -> float:
        return float(self.posterior_covariance.trace())

    def error(self, mean: Tensor, covariance: Tensor) -> tuple[float, float]:
        """||mean - m|| / sqrt(tr P) and tr Cov / tr P: the columns of the tables; 0 and 1 for a perfect sampler."""
        distance = float(torch.linalg.vector_norm(mean - self.posterior_mean))
        return distance / math.sqrt(self.trace), float(covariance.trace()) / self.trace

    def draws(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact samples of the posterior, (count, real components)."""
        values, vectors = torch.linalg.eigh(self.posterior_covariance)
        white = torch.randn(count, len(values), dtype=values.dtype, generator=generator)
        return self.posterior_mean + white * values.clamp(min=0).sqrt() @ vectors.mT


def problem(A: LinearOperator, mean: Tensor, covariance: Tensor, y: Tensor, sigma_y: float, ndim: int) -> Problem:
    """The problem y = A x + sigma_y n, solved densely; sigma_y = 0 is the limit without noise, A of full row rank."""
    matrix = dense(A)
    gram = matrix @ covariance @ matrix.mH + sigma_y**2 * torch.eye(len(matrix), dtype=matrix.dtype)
    gain = torch.linalg.lstsq(gram, matrix @ covariance, driver="gelsd").solution.mH  # C A^H (A C A^H + sigma_y^2)^-1
    prior_mean = mean.flatten()
    posterior_mean = prior_mean + gain @ (y.flatten() - matrix @ prior_mean)
    posterior = covariance - gain @ matrix @ covariance
    scale = 1 / sigma_y if sigma_y > 0 else 1.0
    return Problem(
        A,
        mean,
        covariance,
        y,
        sigma_y,
        GaussianDenoiser(mean, covariance, ndim),
        Gaussian(scale * A, scale * y),
        real_vector(posterior_mean),
        real_matrix(posterior),
    )


def reference_problem(sigma_y: float = 0.02) -> Problem:
    """Eight numbers, four rows of the orthonormal DCT-II; float64."""
    n = 8
    i = torch.arange(n, dtype=torch.float64)
    s = 0.1 + 0.1 * i / 7
    covariance = s[:, None] * s * torch.exp(-(i[:, None] - i).abs() / 2)
    mean = 0.5 + 0.3 * torch.cos(2 * math.pi * i / n)
    dct = torch.cos(math.pi * i[:, None] * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    dct[0] /= math.sqrt(2)
    A = Matrix(dct[[0, 1, 2, 5]])
    x = mean + 0.15 * torch.tensor([1, -1, 1, -1, 0.5, -0.5, 1, 1], dtype=torch.float64)
    y = A(x) + sigma_y * torch.tensor([1, -1, 0.5, -0.5], dtype=torch.float64)
    return problem(A, mean, covariance, y, sigma_y, ndim=1)


def multicoil_problem(
    sigma_y: float = 0.02, *, shape: tuple[int, int] = (6, 5), acceleration: float = 2.0, seed: int = 0
) -> Problem:
    """A complex image (1, y, x) seen by three coils at random points of k-space; its prior is not stationary."""
    (ny, nx), coils = shape, 3
    generator = torch.Generator().manual_seed(seed)
    space = Space((1, ny, nx), torch.complex128, torch.device("cpu"))
    row, column = (g.flatten().double() for g in torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij"))
    distance = torch.hypot(row[:, None] - row, column[:, None] - column)
    s = (0.1 + 0.1 * row / ny) * torch.exp(0.3j * column)  # phases make the covariance complex
    covariance = s[:, None] * s.conj() * torch.exp(-distance / 2)
    mean = (0.5 + 0.3 * torch.cos(2 * math.pi * row / ny) + 0.2j * column / nx).reshape(space.shape)
    mask = torch.rand(ny, nx, generator=generator) < 1 / acceleration
    return problem(*_measure(space, mask, _maps(ny, nx, coils), mean, covariance, sigma_y, generator), ndim=2)


def _maps(ny: int, nx: int, coils: int) -> Tensor:
    """Smooth complex maps (1, coil, y, x) around the image, sum of squares 1."""
    angle = 2 * math.pi * torch.arange(coils, dtype=torch.float64)[:, None, None] / coils
    y, x = torch.linspace(-1, 1, ny, dtype=torch.float64)[:, None], torch.linspace(-1, 1, nx, dtype=torch.float64)
    maps = torch.exp(-((y - angle.cos()) ** 2 + (x - angle.sin()) ** 2) / 2 + 1j * (angle + x * y))
    return (maps / torch.linalg.vector_norm(maps, dim=0)).unsqueeze(0)


def _measure(
    space: Space,
    mask: Tensor,
    maps: Tensor,
    mean: Tensor,
    covariance: Tensor,
    sigma_y: float,
    generator: torch.Generator,
) -> tuple[LinearOperator, Tensor, Tensor, Tensor, float]:
    A = sense(mask, maps)
    root = torch.linalg.cholesky(covariance)
    x = mean + (root @ space.randn(generator=generator).flatten()).reshape(space.shape)
    y = A(x) + sigma_y * A.codomain.randn(generator=generator) * mask
    return A, mean, covariance, y, sigma_y


def dense(A: LinearOperator) -> Tensor:
    """The matrix of A, (codomain.size, domain.size)."""
    basis = torch.eye(A.domain.size, dtype=A.domain.dtype).reshape(-1, *A.domain.shape)
    return A(basis).flatten(1).mT


def real_vector(x: Tensor) -> Tensor:
    """The trailing axis as real components (Re, Im, Re, Im, ...)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def real_matrix(C: Tensor) -> Tensor:
    """The covariance of the real components of a circular complex vector with E x x^H = 2 C."""
    if not C.is_complex():
        return C
    blocks = torch.stack([torch.stack([C.real, -C.imag], -1), torch.stack([C.imag, C.real], -1)], -2)  # (n, n, 2, 2)
    return blocks.transpose(1, 2).reshape(2 * len(C), -1)


class Silence(Noise):
    """A single sample without noise, that counts the real components it was asked for."""

    def __init__(self) -> None:
        super().__init__(0, [0])
        self.components = 0

    def randn_like(self, x: Tensor) -> Tensor:
        self.components += x[0].numel() * (1 + x.is_complex())
        return torch.zeros_like(x)


class Impulses(Noise):
    """Sample 0 has no noise; sample k has a one in the k-th real component that is asked for, and zeros elsewhere."""

    def __init__(self, components: int) -> None:
        super().__init__(0, range(components + 1))
        self.position = 1

    def randn_like(self, x: Tensor) -> Tensor:
        noise = torch.zeros_like(x)
        flat = (torch.view_as_real(noise) if x.is_complex() else noise).view(len(x), -1)
        size = flat.shape[1]
        flat[self.position : self.position + size] = torch.eye(size, dtype=flat.dtype)
        self.position += size
        return noise


class OneStream(Noise):
    """One stream for all samples: quick where there are thousands of small ones."""

    def __init__(self, seed: int, samples: int) -> None:
        super().__init__(seed, range(samples))
        self.generator = torch.Generator().manual_seed(seed)

    def randn_like(self, x: Tensor) -> Tensor:
        scale = math.sqrt(2) if x.is_complex() else 1.0
        return scale * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)


def exact_moments(sampler: Callable[[Noise], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a sampler that is affine in its noise, by feeding it basis vectors."""
    silence = Silence()
    sampler(silence)
    samples = real_vector(sampler(Impulses(silence.components)).flatten(1))
    response = samples[1:] - samples[0]
    return samples[0], response.mT @ response


def sample_moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (n_samples, *shape)."""
    vectors = real_vector(samples.flatten(1))
    return vectors.mean(0), torch.cov(vectors.mT)


class MixtureDenoiser:
    """D(x, sigma) for x0 ~ sum_k weights_k N(means_k, spread^2 I), a prior that is not Gaussian.

    Parameters
    ----------
    weights, means : (components,) and (components, n).
    """

    sigma_min, sigma_max, ndim, is_complex = 0.0, math.inf, 1, False

    def __init__(self, weights: Tensor, means: Tensor, spread: float) -> None:
        self.weights, self.means, self.spread = weights, means, spread

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        variance = self.spread**2 + torch.as_tensor(sigma) ** 2
        deviation = x.unsqueeze(-2) - self.means  # (..., component, n)
        responsibility = torch.softmax(self.weights.log() - deviation.square().sum(-1) / (2 * variance), -1)
        given = self.means + self.spread**2 / variance * deviation
        return (responsibility.unsqueeze(-1) * given).sum(-2)


@dataclass(frozen=True)
class MixtureProblem(Problem):
    """A prior of two clusters, seen through one number: the posterior has two modes, which the data weigh."""

    weights: Tensor
    means: Tensor
    spread: float

    def draws(self, count: int, generator: torch.Generator) -> Tensor:
        odds, means, covariance = self._posterior()
        which = torch.multinomial(odds, count, replacement=True, generator=generator)
        root = torch.linalg.cholesky(covariance)
        return means[which] + torch.randn(count, len(root), dtype=root.dtype, generator=generator) @ root.mT

    def _posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        return mixture_posterior(dense(self.A), self.y, self.sigma_y, self.weights, self.means, self.spread)


def mixture_problem(distance: float = 0.5, spread: float = 0.1, sigma_y: float = 0.3) -> MixtureProblem:
    """Clusters at (-d, -d) and (d, d), of which the first number is measured to be 0.1."""
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    means = torch.tensor([[-distance, -distance], [distance, distance]], dtype=torch.float64)
    A, y = Matrix(torch.tensor([[1.0, 0.0]], dtype=torch.float64)), torch.tensor([0.1], dtype=torch.float64)
    odds, given, covariance = mixture_posterior(dense(A), y, sigma_y, weights, means, spread)
    posterior_mean = odds @ given
    deviation = given - posterior_mean
    return MixtureProblem(
        A,
        weights @ means,
        spread**2 * torch.eye(2, dtype=torch.float64) + (means.mT * weights) @ means,
        y,
        sigma_y,
        MixtureDenoiser(weights, means, spread),
        Gaussian((1 / sigma_y) * A, y / sigma_y),
        posterior_mean,
        covariance + (deviation.mT * odds) @ deviation,
        weights,
        means,
        spread,
    )


def mixture_posterior(
    A: Tensor, y: Tensor, sigma_y: float, weights: Tensor, means: Tensor, spread: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means (components, n) and the common covariance of the posterior of a mixture of Gaussians."""
    gram = spread**2 * A @ A.mT + sigma_y**2 * torch.eye(len(A), dtype=A.dtype)
    gain = spread**2 * A.mT @ torch.linalg.inv(gram)
    residual = y - means @ A.mT
    fit = -0.5 * (residual @ torch.linalg.inv(gram) * residual).sum(-1)
    covariance = spread**2 * (torch.eye(means.shape[1], dtype=A.dtype) - gain @ A)
    return torch.softmax(weights.log() + fit, 0), means + residual @ gain.mT, covariance


def coverage(samples: Tensor, draws: Tensor, level: float = 0.9) -> float:
    """Part of exact draws (count, components) within the central `level` interval of samples (n_samples, *shape)."""
    tail = (1 - level) / 2
    vectors = real_vector(samples.flatten(1))
    low, high = torch.quantile(vectors, torch.tensor([tail, 1 - tail], dtype=vectors.dtype), dim=0)
    return float(((draws >= low) & (draws <= high)).double().mean())
