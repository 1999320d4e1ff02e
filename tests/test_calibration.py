"""Reliability and conformal calibration: closed forms, and the guarantee by Monte Carlo."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import priors
from operators.linop import Identity, Space
from recon.calibrated import load_calibration
from recon.calibration import (
    bootstrap_interval,
    by_block,
    conformal_factor,
    fewest_images,
    inflate,
    risk,
    scores,
    transfer,
)
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.noise import Noise
from recon.reliability import crps, rank_correlation, reliability, sparsification
from recon.settings import Settings

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=generator(seed))


# Reliability


def test_the_truth_among_samples_of_its_own_distribution_is_covered() -> None:
    values = randn(40, 40000).exp()
    nominal, found = reliability(values[1:], values[0])
    assert nominal == pytest.approx([0.5, 0.8, 0.9, 0.95])
    assert found == pytest.approx(nominal, abs=4 * 0.5 / math.sqrt(40000))  # four standard errors
    assert all(c < n for n, c in zip(*reliability(0.5 * values[1:], values[0]), strict=True))


def test_crps_of_two_and_three_samples_by_hand() -> None:
    samples, truth = torch.tensor([[1.0], [4.0]], dtype=F64), torch.tensor([2.0], dtype=F64)
    assert crps(samples, truth).item() == pytest.approx((1 + 2) / 2 - 3 / 2)
    samples = torch.tensor([[5.0], [1.0], [2.0]], dtype=F64)
    assert crps(samples, truth).item() == pytest.approx((3 + 1 + 0) / 3 - (4 + 3 + 1) / 6)


@pytest.mark.parametrize("count", [2, 5])
def test_crps_is_that_of_the_gaussian_for_any_number_of_samples(count: int) -> None:
    mean, std, truth = 1.0, 0.7, 1.9
    z = (truth - mean) / std
    cdf, density = 0.5 * (1 + math.erf(z / math.sqrt(2))), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    expected = std * (z * (2 * cdf - 1) + 2 * density - 1 / math.sqrt(math.pi))
    found = crps(mean + std * randn(count, 100000), torch.full((100000,), truth, dtype=F64))
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / math.sqrt(100000))


def test_rank_correlation_by_hand() -> None:
    error = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(error, error.exp()) == pytest.approx(1)
    assert rank_correlation(error, -error) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4: covariance 4.5, squares 5 and 4.5 (times n).
    assert rank_correlation(error, torch.tensor([0.0, 7.0, 7.0, 9.0])) == pytest.approx(4.5 / math.sqrt(5 * 4.5))


def test_sparsification_of_uniform_errors() -> None:
    error = torch.linspace(0, 1, 10001, dtype=F64)[1:]
    perfect = sparsification(error * torch.where(torch.arange(10000) % 2 == 0, 1, -1), error, steps=10)
    assert perfect.area == pytest.approx(0, abs=1e-12)
    assert perfect.oracle == pytest.approx([1 - f for f in perfect.fractions], abs=1e-4)  # the grid's step
    useless = sparsification(error, randn(10000).abs(), steps=10)
    assert useless.curve == pytest.approx([1.0] * 10, abs=0.06)  # a tenth of the pixels: 0.45 / sqrt(1000) * 4
    assert useless.area == pytest.approx(0.45, abs=0.02)  # mean of the fractions
    worst = sparsification(error, -error, steps=10)
    assert worst.area > useless.area


def test_measures_refuse_what_has_no_answer() -> None:
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        crps(torch.zeros(1, 3), torch.zeros(3))
    with pytest.raises(InputError, match="expected errors, got zeros only"):
        sparsification(torch.zeros(4), torch.ones(4))


# The factor


def test_scores_are_the_factors_that_hold_the_truth() -> None:
    mean, half = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.0, 0.0])
    truth = torch.tensor([1.25, 0.0, 1.0, 2.0])
    found = scores(mean, mean - half, mean + half, truth)
    assert found.tolist() == [0.5, 2.0, 0.0, math.inf]
    assert [risk(found, f) for f in (0.4, 0.5, 2.0)] == [0.75, 0.5, 0.25]


def test_the_factor_is_the_least_that_meets_the_bound() -> None:
    images = [randn(size, seed=size).abs() for size in (7, 13, 50, 3, 21, 40, 11, 5, 8, 30)]
    factor = conformal_factor(images, alpha=0.3)
    bound = [10 / 11 * sum(risk(i, f) for i in images) / 10 + 1 / 11 for f in (factor, factor * (1 - 1e-9))]
    assert bound[0] <= 0.3 < bound[1]
    assert factor in torch.cat(images)  # where the risk falls


@pytest.mark.parametrize(("alpha", "fewest"), [(0.1, 9), (0.05, 19), (0.5, 1), (0.3, 3)])
def test_fewer_images_than_the_risk_allows_are_refused(alpha: float, fewest: int) -> None:
    assert fewest_images(alpha) == fewest
    images = [randn(50, seed=i).abs() for i in range(fewest)]
    assert conformal_factor(images, alpha=alpha) > 0
    with pytest.raises(InputError, match=f"expected at least {fewest} images for a risk of {alpha:g}"):
        conformal_factor(images[1:], alpha=alpha)


def test_bad_risks_and_pixels_without_spread_are_refused() -> None:
    with pytest.raises(InputError, match="between 0 and 1, got 10"):
        fewest_images(10)
    stuck = torch.cat((torch.full((30,), math.inf), torch.ones(70)))
    with pytest.raises(InputError, match="samples of 30 % of the pixels have no spread"):
        conformal_factor([stuck] * 50, alpha=0.1)
    assert conformal_factor([stuck] * 50, alpha=0.4) == 1


def test_the_guarantee_holds_on_average_and_is_not_wasteful() -> None:
    """Images whose errors differ in size, pixels that go together: exchangeable, and far from independent pixels."""
    n, pixels, trials, alpha = 6, 40, 3000, 0.2
    draw = generator(1)
    size = torch.randn(trials, n + 1, 1, dtype=F64, generator=draw).mul(0.8).exp()
    common = torch.randn(trials, n + 1, 1, dtype=F64, generator=draw)
    values = size * (common + torch.randn(trials, n + 1, pixels, dtype=F64, generator=draw)).abs()
    risks = torch.tensor([risk(v[n], conformal_factor(list(v[:n]), alpha=alpha)) for v in values], dtype=F64)
    error = float(risks.std()) / math.sqrt(trials)
    assert float(risks.mean()) <= alpha + 4 * error
    # Without atoms the risk is not below alpha - 2 / (n + 1) (proposition 2 of the paper).
    assert float(risks.mean()) >= alpha - 2 / (n + 1) - 4 * error
    # What the calibration images alone would suggest, without the correction for their number, is too small.
    plain = torch.tensor([risk(v[n], float(v[:n].flatten().quantile(1 - alpha))) for v in values], dtype=F64)
    assert float(plain.mean()) > alpha + 4 * error


def test_inflated_samples_have_the_same_mean_and_wider_intervals() -> None:
    samples = torch.complex(randn(6, 4), randn(6, 4, seed=1))
    wide = inflate(samples, 1.7)
    torch.testing.assert_close(wide.mean(0), samples.mean(0))
    torch.testing.assert_close(wide.std(0), 1.7 * samples.std(0))


# Transfer


def test_blocks_hold_every_pixel_of_the_object_once() -> None:
    inside = torch.rand(2, 21, 34, generator=generator()) > 0.6
    held = torch.rand(2, 21, 34, generator=generator(1)) > 0.3
    inside[0, :8, :8] = False
    hits, counts = by_block(held, inside, size=8)
    assert counts.sum() == inside.sum()
    assert hits.sum() == (held & inside).sum()
    assert len(counts) == 2 * 3 * 5 - 1  # but the empty one
    assert counts[0] == inside[0, :8, 8:16].sum()


def test_bootstrap_interval_of_a_mean() -> None:
    """Of many units it is the normal interval, and it covers as often as it says."""
    values = (randn(400).sigmoid() * 10).round()
    low, high = bootstrap_interval(values, torch.full((400,), 10.0))
    error = float(values.std()) / 10 / math.sqrt(400)
    mean = float(values.mean()) / 10
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)
    trials = [(torch.rand(60, generator=generator(i)) < 0.8).double() for i in range(300)]
    held = [low <= 0.8 <= high for low, high in (bootstrap_interval(t, torch.ones(60), resamples=300) for t in trials)]
    # The percentile interval of 60 units covers a little less than 95 %; 300 trials know it to 1.3 %.
    assert 0.88 < sum(held) / 300 < 0.98
    with pytest.raises(InputError, match="at least 2 units"):
        bootstrap_interval(torch.ones(1), torch.ones(1))


def test_transfer_covers_what_is_calibrated_and_says_how_sure_that_is() -> None:
    """Samples of half the spread that they should have: a factor of 2 mends them."""
    shape, count = (64, 64), 39
    mean, white = 5 + randn(*shape, seed=1), randn(count + 1, *shape, seed=2)
    truth = mean + white[0]
    reference = Gaussian(Identity(Space(shape, F64, torch.device("cpu"))), truth + randn(*shape, seed=3))
    samples = mean + 0.5 * white[1:]
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[4:60, 2:50] = True

    def found(factor: float) -> tuple[float, float, float]:
        result = transfer(
            samples, reference, inside, factor=factor, rng=Noise(0, range(count)), combine=lambda y: y, block=8
        )
        return result.low, result.coverage, result.high

    low, coverage, high = found(2.0)
    assert coverage == pytest.approx(0.9, abs=4 * 0.3 / math.sqrt(56 * 48))  # four standard errors
    assert low < coverage < high
    assert high - low == pytest.approx(2 * 1.96 * 0.3 / math.sqrt(56 * 48), rel=0.5)  # independent pixels
    assert found(1.0)[2] < 0.9


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
RECORDS = sorted(path for folder in ("calibration", "ct-calibration") for path in (RESULTS / folder).glob("*-*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_calibrations_that_are_kept_serve_runs_as_they_were_made(path: Path) -> None:
    """By default options: a default that changes must not leave them behind."""
    calibration = load_calibration(path)
    given = calibration.arguments
    names = ("method", "mask", "acceleration", "views", "angular_range", "dose", "samples", "precision", "steps")
    settings = Settings(**{name: given[name] for name in names}).resolved(prior=calibration.prior["name"])
    assert calibration.check(settings, priors.load(calibration.prior["name"]).card) == ""
