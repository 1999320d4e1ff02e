"""Summaries of samples, and coverage on a Gaussian problem whose posterior is known."""

import math

import pytest
import torch
from torch import Tensor

from operators.mri import sense
from recon.likelihood import Gaussian
from recon.posterior import describe_interval, interval, magnitude, predictive_coverage, summarize

F64, C128 = torch.float64, torch.complex128


class White:
    """Seeded white noise, or none."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self.generator, self.scale = torch.Generator().manual_seed(seed), scale

    def randn_like(self, x: Tensor) -> Tensor:
        unit = math.sqrt(2) if x.is_complex() else 1.0
        return self.scale * unit * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)


# Intervals


@pytest.mark.parametrize("count", [2, 4, 8, 38, 39, 100])
def test_interval_covers_the_next_gaussian_draw(count: int) -> None:
    trials = 40000
    values = torch.randn(count + 1, trials, dtype=F64, generator=torch.Generator().manual_seed(count))
    lower, upper = interval(values[:count], level=0.9)
    found = float(((lower <= values[count]) & (values[count] <= upper)).double().mean())
    expected = 0.9 if count < 100 else 91 / 101
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.09 / trials))  # four standard errors


def test_order_statistics_cover_whatever_the_distribution() -> None:
    trials = 40000
    values = torch.randn(40, trials, dtype=F64, generator=torch.Generator().manual_seed(0)).exp() ** 2  # very skewed
    lower, upper = interval(values[:39], level=0.9)
    found = float(((lower <= values[39]) & (values[39] <= upper)).double().mean())
    assert found == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / trials))  # four standard errors
    ordered = values[:39].sort(0).values
    assert torch.equal(lower, ordered[1])
    assert torch.equal(upper, ordered[37])


def test_the_rule_is_said() -> None:
    assert "order statistics 2 and 38 of 39, which covers 90.0 %" in describe_interval(39)
    assert "mean +- 1.89 s sqrt(1 + 1/8)" in describe_interval(8)  # t_{0.95} with 7 degrees of freedom is 1.8946
    assert describe_interval(38).startswith("90 % interval mean +- 1.69 s")


# Summaries


def test_summary_of_complex_samples() -> None:
    samples = torch.randn(8, 2, 5, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    posterior = summarize(samples)
    shown = (samples[:, 0].abs() ** 2 + samples[:, 1].abs() ** 2).sqrt()
    assert len(posterior) == 8
    # float32 rounding
    torch.testing.assert_close(posterior.mean, shown.mean(0))
    torch.testing.assert_close(posterior.std, ((shown - shown.mean(0)) ** 2).sum(0).div(7).sqrt())
    torch.testing.assert_close(posterior.sample_mean, samples.sum(0) / 8)
    assert posterior.std_error == pytest.approx(1 / math.sqrt(14))
    assert "+-27 %" in posterior.statement
    assert "Student t" in posterior.statement
    assert posterior.upper is not None
    torch.testing.assert_close(
        posterior.upper, posterior.mean + 1.8946 * posterior.std * math.sqrt(9 / 8), rtol=1e-4, atol=0
    )  # five digits of t


def test_std_error_is_what_it_says() -> None:
    values = torch.randn(8, 100000, dtype=F64, generator=torch.Generator().manual_seed(0))
    std = summarize(values).std
    assert std is not None
    # 1 / sqrt(2 (K - 1)) is the leading term; the next one is of relative size 1 / (4 (K - 1)).
    assert float(std.std() / std.mean()) == pytest.approx(1 / math.sqrt(14), rel=0.05)


def test_one_sample_has_no_spread() -> None:
    posterior = summarize(torch.ones(1, 1, 4, 4, dtype=torch.complex64))
    assert posterior.std is None
    assert posterior.lower is None
    assert posterior.upper is None
    assert posterior.std_error is None
    assert "undefined" in posterior.statement


def test_real_and_volume_images() -> None:
    real = torch.randn(3, 4, 5)
    assert magnitude(real) is real
    volume = torch.randn(3, 2, 4, 5, 6, dtype=torch.complex64)
    assert magnitude(volume, ndim=3).shape == (3, 4, 5, 6)


def test_bad_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        summarize(torch.ones(0, 1, 4, 4))
    with pytest.raises(ValueError, match="NaN"):
        summarize(torch.full((2, 1, 4, 4), math.nan))
    with pytest.raises(ValueError, match="between 0 and 1, got 90"):
        summarize(torch.ones(2, 4, 4), level=90)
    with pytest.raises(ValueError, match="at least 2"):
        interval(torch.ones(1, 4))
    with pytest.raises(ValueError, match="complex"):
        interval(torch.ones(3, 4, dtype=torch.complex64))


# Predictive coverage: many small slices with one Gaussian prior, whose posterior is sampled exactly

SIZE, SLICES, COILS = 8, 300, 3


class Toy:
    """x ~ N(mu, C) per real component, y = A x + n; exact posterior samples from the rows of `mask`."""

    def __init__(self, *, count: int, shared: bool, seed: int = 0) -> None:
        white = White(seed)
        y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
        centres = 2 * math.pi * torch.arange(COILS) / COILS
        maps = torch.stack([torch.exp(-((x - a.cos()) ** 2 + (y - a.sin()) ** 2) + 1j * a * x) for a in centres])
        maps = (maps / torch.linalg.vector_norm(maps, dim=0)).to(C128)
        points = torch.stack((y.ravel(), x.ravel()), -1).to(F64)
        spread = 1.5 + torch.sin(3 * points[:, 0]) * points[:, 1]  # not stationary
        prior = spread[:, None] * spread * torch.exp(-torch.cdist(points, points) / 0.5)
        prior_mean = torch.full((SIZE * SIZE,), 6.0, dtype=C128)

        self.mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        self.mask[::2] = True
        full = torch.ones_like(self.mask)
        one = sense(self.mask, maps[None])
        eye = torch.eye(SIZE * SIZE, dtype=C128).reshape(-1, 1, SIZE, SIZE)
        A = one(eye).flatten(1).mT  # (data, pixel)
        precision = torch.linalg.inv(prior) + A.mH @ A
        covariance = torch.linalg.inv(precision)
        factor = torch.linalg.cholesky(covariance)

        shape = (SLICES, 1, SIZE, SIZE)
        noise = white.randn_like(torch.zeros(SLICES, SIZE * SIZE, dtype=C128))
        truth = prior_mean + noise @ torch.linalg.cholesky(prior).to(C128).mT
        batch = maps.expand(SLICES, 1, *maps.shape)
        reference = sense(full, batch)
        clean = reference(truth.reshape(shape))
        measured = clean + white.randn_like(clean)
        given = measured if shared else clean + white.randn_like(clean)
        data = (given * self.mask).flatten(1)
        mean = (data @ A.conj() + prior_mean @ torch.linalg.inv(prior).to(C128)) @ covariance.mT
        noise = white.randn_like(torch.zeros(count, *mean.shape, dtype=C128))
        self.mean = mean.reshape(shape)
        self.samples = (mean + noise @ factor.mT).reshape(count, *shape)
        self.reference = Gaussian(reference, measured)
        self.inside = torch.ones(SLICES, SIZE, SIZE, dtype=torch.bool)
        self.inside[:, 0] = False


# Some 20 independent values in each of 300 slices: one standard error of a coverage is about .3 / sqrt(6000) = .004.
MONTE_CARLO = 0.015


@pytest.mark.parametrize("count", [6, 39])
def test_exact_samples_cover_an_independent_reference(count: int) -> None:
    toy = Toy(count=count, shared=False)
    result = predictive_coverage(toy.samples, toy.reference, toy.inside, rng=White(1))
    assert result.coverage == pytest.approx(result.nominal, abs=MONTE_CARLO)
    assert result.nominal == pytest.approx(result.levels)
    # Nothing to scale; noise in the mean of K draws lowers a fitted factor by variance / (K mean^2), here 1 % for 6.
    assert result.scale == pytest.approx(1, abs=0.02)
    assert list(result.width) == sorted(result.width)
    assert "90 %" in result.statement


def test_exact_samples_cover_a_reference_that_holds_their_data() -> None:
    toy = Toy(count=39, shared=True)
    result = predictive_coverage(toy.samples, toy.reference, toy.inside, rng=White(1), acquired=toy.mask)
    assert result.coverage == pytest.approx(result.nominal, abs=MONTE_CARLO)
    # As if the common noise were drawn anew: wider, and more is covered than was promised.
    naive = predictive_coverage(toy.samples, toy.reference, toy.inside, rng=White(1))
    assert all(c > n + 2 * MONTE_CARLO for c, n in zip(naive.coverage[:3], naive.nominal, strict=False))


def test_without_noise_the_reference_is_not_covered() -> None:
    toy = Toy(count=39, shared=False)
    result = predictive_coverage(toy.samples, toy.reference, toy.inside, rng=White(1, scale=0.0))
    assert all(c < n - 5 * MONTE_CARLO for c, n in zip(result.coverage, result.nominal, strict=True))


def test_samples_of_too_little_spread_do_not_cover() -> None:
    toy = Toy(count=39, shared=False)
    narrow = toy.mean + 0.3 * (toy.samples - toy.mean)
    result = predictive_coverage(narrow, toy.reference, toy.inside, rng=White(1))
    assert result.coverage[2] < result.nominal[2] - 2 * MONTE_CARLO


def test_the_reference_sets_the_scale() -> None:
    toy = Toy(count=39, shared=False)
    A, y = toy.reference.A, toy.reference.y
    weak = Gaussian(A, 0.5 * y)  # another receiver gain, and its own combination
    result = predictive_coverage(
        toy.samples, weak, toy.inside, rng=White(1), combine=lambda data: magnitude(A.adjoint(data))
    )
    plain = predictive_coverage(toy.samples, toy.reference, toy.inside, rng=White(1))
    assert result.scale == pytest.approx(0.5 * plain.scale, rel=1e-9)
    assert result.coverage == pytest.approx(plain.coverage, abs=1e-9)


def test_bad_coverage_is_refused() -> None:
    toy = Toy(count=3, shared=False)
    with pytest.raises(ValueError, match="at least 2"):
        predictive_coverage(toy.samples[:1], toy.reference, toy.inside, rng=White(1))
    with pytest.raises(ValueError, match="trailing axes"):
        predictive_coverage(toy.samples[..., :-1], toy.reference, toy.inside, rng=White(1))
    with pytest.raises(ValueError, match="object mask"):
        predictive_coverage(toy.samples, toy.reference, toy.inside[0], rng=White(1))
