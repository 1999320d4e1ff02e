"""The check of prior against data, on a multi-coil Gaussian problem whose posterior is sampled exactly."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from operators.mri import sense
from recon.datafit import DataFit, _score, data_fit, withhold
from recon.likelihood import Gaussian

C128 = torch.complex128
SIZE, COILS = 16, 2


class White:
    """Seeded white noise."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def randn_like(self, x: Tensor) -> Tensor:
        return math.sqrt(2) * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)


class Prior:
    """N(mean, C) per real component, and its posterior given the kept data of an undersampled acquisition."""

    def __init__(self, *, shift: float = 0.0, spread: float = 6.0) -> None:
        y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
        centres = 2 * math.pi * torch.arange(COILS) / COILS
        maps = torch.stack([torch.exp(-((x - a.cos()) ** 2 + (y - a.sin()) ** 2) / 2 + 1j * a * x) for a in centres])
        maps = (maps / torch.linalg.vector_norm(maps, dim=0)).to(C128)[None]
        sampled = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) < 0.35
        sampled[6:10, 6:10] = True
        self.kept, self.withheld = withhold(sampled, seed=2, fraction=0.25, calibration=4)
        self.A_kept, self.A_withheld = sense(self.kept, maps), sense(self.withheld, maps)

        points = torch.stack((y.ravel(), x.ravel()), -1).double()
        covariance = spread**2 * torch.exp(-torch.cdist(points, points) / 0.6)
        eye = torch.eye(SIZE * SIZE, dtype=C128).reshape(-1, 1, SIZE, SIZE)
        A = self.A_kept(eye)[..., self.kept].flatten(1).mT
        self.mean = (8.0 + shift * torch.sin(7 * x) * torch.cos(6 * y)).ravel().to(C128)
        self.factor = torch.linalg.cholesky(covariance).to(C128)
        # m = mu + K (y - A mu), P = C - K A C
        CAh = covariance.to(C128) @ A.mH
        self.gain = torch.linalg.solve(A @ CAh + torch.eye(len(A)), CAh, left=False)
        P = covariance - self.gain @ CAh.mH
        self.A, self.posterior_factor = A, torch.linalg.cholesky(0.5 * (P + P.mH))

    def draw(self, white: White) -> Tensor:
        return (self.mean + self.factor @ white.randn_like(self.mean)).reshape(1, SIZE, SIZE)

    def posterior(self, data: Tensor, count: int, white: White) -> tuple[Tensor, Tensor]:
        mean = self.mean + self.gain @ (data[..., self.kept].flatten() - self.A @ self.mean)
        noise = white.randn_like(torch.zeros(count, SIZE * SIZE, dtype=C128))
        samples = mean + noise @ self.posterior_factor.mT
        return mean.reshape(1, SIZE, SIZE), samples.reshape(count, 1, SIZE, SIZE)


@pytest.fixture(scope="module")
def right() -> Prior:
    return Prior()


def check(truth: Prior, prior: Prior, *, seed: int, count: int, shrink: float = 1.0, rate: float = 0.01) -> DataFit:
    """Acquire an image of `truth`, sample with `prior`, predict; the fallback is a ridge regression."""
    white = White(seed)
    x = truth.draw(white)
    y = sense(truth.kept | truth.withheld, truth.A_kept.sens_maps)(x)
    y = y + white.randn_like(y)
    mean, samples = prior.posterior(y, count, white)
    fallback = Gaussian(truth.A_kept, y * truth.kept).solve(torch.zeros_like(x), 10.0, iterations=30)
    return data_fit(
        mean + shrink * (samples - mean),
        Gaussian(truth.A_withheld, y * truth.withheld),
        truth.withheld,
        rng=white,
        fallback=fallback,
        false_alarm_rate=rate,
    )


def test_score_of_gaussian_numbers_is_exact() -> None:
    trials, rate = 8000, 0.05
    common = torch.randn(trials, 1, generator=torch.Generator().manual_seed(0))  # exchangeable, not independent
    numbers = common + torch.randn(trials, 5, generator=torch.Generator().manual_seed(1))
    scores = [_score(row) for row in numbers]
    four_errors = 4 * math.sqrt(rate * (1 - rate) / trials)
    assert sum(p < rate for p, _ in scores) / trials == pytest.approx(rate, abs=four_errors)
    assert sum(z > 1.6449 for _, z in scores) / trials == pytest.approx(rate, abs=four_errors)


@pytest.mark.parametrize("count", [4, 8])
def test_false_alarms_come_at_the_stated_rate(right: Prior, count: int) -> None:
    trials, rate = 150, 0.05
    fits = [check(right, right, seed=seed, count=count, rate=rate) for seed in range(trials)]
    alarms = sum(not fit.calibrated for fit in fits)
    # Four standard errors of a binomial.
    assert alarms / trials == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / trials))
    # A wrong shape of the null distribution shows in the whole of it; coils are correlated and it must not matter.
    for z in ([fit.z for fit in fits], [float(fit.z_by_coil[1]) for fit in fits]):
        assert stats.kstest(z, "norm").pvalue > 1e-3
    # The mean of the right posterior predicts better than anything else.
    assert sum(not fit.ok for fit in fits) <= 4 * math.sqrt(trials * rate)
    # Averages of `trials` ratios that scatter by some 10 %.
    assert sum(fit.ratio for fit in fits) / trials == pytest.approx(1, abs=0.03)


def test_too_much_spread_is_no_error_of_the_mean(right: Prior) -> None:
    """The error that more samples would remove may be estimated larger than the error that there is."""
    ratios = [check(right, right, seed=seed, count=3, shrink=20.0).ratio_to_fallback for seed in range(6)]
    assert all(ratio is not None and ratio >= 0 for ratio in ratios)
    assert 0 in ratios  # of a sum of random sign: six positive ones have a chance of 2 %


@pytest.mark.parametrize(
    ("wrong", "count", "least"),
    # A shift of few spatial frequencies is in few of the withheld places: with 8 samples it is seen mostly.
    [
        ({"shift": 40.0}, 8, 7),
        ({"spread": 0.3}, 4, 10),
        ({"spread": 0.3}, 8, 10),
        ({"shift": 15.0, "spread": 2.0}, 4, 10),
    ],
)
def test_a_prior_that_does_not_suit_is_reported(right: Prior, wrong: dict[str, float], count: int, least: int) -> None:
    prior = Prior(**wrong)
    fits = [check(right, prior, seed=seed, count=count) for seed in range(10)]
    assert sum(not fit.ok for fit in fits) >= least
    for fit in fits:
        assert fit.ratio > 1.5
        assert fit.ok or (fit.statement.startswith("WARNING") and "Use l1-wavelet instead" in fit.statement)


def test_too_little_spread_about_a_good_mean_is_told_apart(right: Prior) -> None:
    fits = [check(right, right, seed=seed, count=8, shrink=0.2) for seed in range(20)]
    assert all(not fit.calibrated and fit.ratio > 1.5 for fit in fits)
    # With 24 places the error over that of the ridge is .92 +- .06: above 1, hence a warning, one time in ten.
    assert sum(fit.ok for fit in fits) >= 15
    assert all("smaller than their error" in fit.statement for fit in fits if fit.ok)


def test_without_a_fallback_the_spread_decides(right: Prior) -> None:
    white = White(0)
    _, samples = right.posterior(right.A_kept(right.draw(white)), 8, white)
    data = right.A_withheld(right.draw(white))  # of another image
    fit = data_fit(samples, Gaussian(right.A_withheld, data), right.withheld, rng=white)
    assert fit.ratio_to_fallback is None
    assert fit.p_not_worse is None
    assert not fit.ok
    assert "Compare with l1-wavelet" in fit.statement


def test_the_fallback_is_not_worse_than_itself(right: Prior) -> None:
    x = right.draw(White(0))
    samples = torch.stack([x] * 4)
    data = Gaussian(right.A_withheld, right.A_withheld(x + 1))
    fit = data_fit(samples, data, right.withheld, rng=White(1), fallback=x)
    assert fit.p_not_worse == 1
    assert fit.ratio_to_fallback == 1


def test_scores_point_to_the_bad_coil_and_sector(right: Prior) -> None:
    white = White(0)
    x = right.draw(white)
    y = sense(right.kept | right.withheld, right.A_kept.sens_maps)(x)
    y = y + white.randn_like(y)
    _, samples = right.posterior(y, 8, white)
    data = y * right.withheld
    data[1, : SIZE // 2] += 10 * white.randn_like(data[1, : SIZE // 2]) * right.withheld[: SIZE // 2]  # negative ky
    fit = data_fit(samples, Gaussian(right.A_withheld, data), right.withheld, rng=white, rings=1, angles=4)
    assert fit.z_by_coil[1] > 3 > fit.z_by_coil[0]
    # Angles run from -pi, (ky, kx) = (-0, -1): the first two sectors have negative ky.
    assert fit.z_by_sector.shape == (1, 4)
    assert float(fit.z_by_sector[0, :2].min()) > 2 > float(fit.z_by_sector[0, 2:].max())


def test_slices_are_pooled(right: Prior) -> None:
    white = White(0)
    x = right.draw(white)
    y = sense(right.kept | right.withheld, right.A_kept.sens_maps)(x)
    _, samples = right.posterior(y, 4, white)
    two = sense(right.withheld, right.A_kept.sens_maps.expand(2, -1, -1, -1, -1))
    data = (y * right.withheld).expand(2, -1, -1, -1).clone()
    fit = data_fit(samples[:, None].expand(-1, 2, -1, -1, -1), Gaussian(two, data), right.withheld, rng=white)
    assert fit.z_by_coil.shape == (COILS,)
    assert fit.z_by_sector.shape == (3, 8)


# Choosing what to withhold


def test_withhold_splits_the_mask() -> None:
    mask = torch.zeros(60, 50, dtype=torch.bool)
    mask[::3] = True
    mask[20:40] = True
    kept, withheld = withhold(mask, seed=0)
    assert int(withheld.sum()) == round(0.03 * int(mask.sum()))
    assert torch.equal(kept | withheld, mask)
    assert not bool((kept & withheld).any())
    assert not bool(withheld[18:42, 13:37].any())  # 24 about (30, 25)
    assert bool(withheld[18:42].any())  # but beside the block
    assert torch.equal(withheld, withhold(mask, seed=0)[1])
    assert not torch.equal(withheld, withhold(mask, seed=1)[1])
    volume = torch.ones(6, 30, 30, dtype=torch.bool)
    assert not bool(withhold(volume, seed=0, calibration=20)[1][:, 5:25, 5:25].any())


def test_bad_input_is_refused(right: Prior) -> None:
    mask = torch.ones(30, 30, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"torch\.bool"):
        withhold(mask.float(), seed=0)
    with pytest.raises(ValueError, match="between 0 and 1, got 3"):
        withhold(mask, seed=0, fraction=3)
    with pytest.raises(ValueError, match="cannot withhold 27 of 900"):
        withhold(mask, seed=0, calibration=30)
    samples = torch.zeros(4, *right.A_withheld.domain.shape, dtype=C128)
    data = Gaussian(right.A_withheld, right.A_withheld(samples[0]))
    with pytest.raises(ValueError, match="at least 3 samples, got 2"):
        data_fit(samples[:2], data, right.withheld, rng=White(0))
    with pytest.raises(ValueError, match="0 places"):
        data_fit(samples, data, torch.zeros_like(right.withheld), rng=White(0))
    with pytest.raises(ValueError, match=r"mask of shape \(16, 16\)"):
        data_fit(samples, data, mask, rng=White(0))
