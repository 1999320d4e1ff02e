"""RED-diff against its published form, and against the closed-form posterior of Gaussian priors."""

import math

import pytest
import torch
from oracle import (
    GaussianDenoiser,
    OneStream,
    multicoil_problem,
    reference_problem,
    sample_moments,
)

from recon.methods.diffusion import Counted
from recon.methods.red_diff import red_diff, red_diff_levels, red_diff_published_levels
from recon.noise import Noise
from recon.schedules import ddpm, karras


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
def test_it_is_the_published_algorithm(p):
    """In the variance-preserving coordinates of the paper, by autograd, data and operator as measured, Adam by hand."""
    rate, weight, sigmas, rng = 0.02, 0.25, ddpm(30), Noise(3, [0, 1])
    norm = (1 / p.sigma_y * p.A).norm() * p.sigma_y
    A, y = (1 / norm) * p.A, p.y / norm
    numbers_y, numbers_x = A.codomain.size, A.domain.size
    mu = A.adjoint(y) + A.domain.zeros(2)
    first, second = torch.zeros_like(mu), torch.zeros_like(mu.abs())
    if mu.is_complex():
        second = torch.zeros_like(torch.view_as_real(mu))
    for step, sigma in enumerate(sigmas.tolist()[:-1], start=1):
        abar = 1 / (1 + sigma**2)
        noise = rng.randn_like(mu)
        x = math.sqrt(abar) * mu + math.sqrt(1 - abar) * noise
        epsilon = (x / math.sqrt(abar) - p.denoiser(x / math.sqrt(abar), sigma)) / sigma
        mu = mu.clone().requires_grad_()
        fit = A.codomain.inner(A(mu) - y, A(mu) - y).sum() / 2 / numbers_y
        prior = weight * sigma * A.domain.inner(epsilon - noise, mu).sum() / numbers_x
        (g,) = torch.autograd.grad(fit + prior, mu)
        mu = mu.detach()
        first = 0.9 * first + 0.1 * g
        square = torch.view_as_real(g) ** 2 if g.is_complex() else g**2
        second = 0.99 * second + 0.01 * square
        move = torch.view_as_real(first) if g.is_complex() else first
        move = move / (1 - 0.9**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
        mu = mu - rate * (torch.view_as_complex(move) if g.is_complex() else move)
    found = red_diff(
        p.likelihood,
        p.denoiser,
        sigmas,
        rng=Noise(3, [0, 1]),
        learning_rate=rate,
        regularization=weight * numbers_y / numbers_x,
    )
    # Both add a small number to the root of the mean square of the gradient, which is above 1 and .001.
    assert torch.allclose(found, mu, atol=1e-6)


def test_published_setting_has_the_published_moments():
    p = reference_problem()
    levels = red_diff_published_levels(p.likelihood, p.denoiser)
    assert len(levels) == 1001
    x = red_diff(
        p.likelihood, p.denoiser, levels, rng=OneStream(0, 1000), learning_rate=0.1, regularization=0.25 * 4 / 8
    )
    error, ratio = p.error(*sample_moments(x))
    assert error == pytest.approx(0.03, abs=0.03)  # 4000 chains there; here 1 / sqrt(1000) of the spread, .02
    assert ratio == pytest.approx(0.48, abs=0.05)


def test_spread_is_not_that_of_the_posterior():
    """A documented limit, with its own levels."""
    for p, mean, spread in [
        (reference_problem(), 0.02, 0.35),
        (multicoil_problem(), 0.39, 0.21),
        (multicoil_problem(acceleration=4.0), 0.25, 0.32),
        (multicoil_problem(sigma_y=0.1), 0.87, 0.07),
    ]:
        x = red_diff(p.likelihood, p.denoiser, red_diff_levels(p.likelihood, p.denoiser), rng=OneStream(0, 400))
        error, ratio = p.error(*sample_moments(x))
        assert error == pytest.approx(mean, abs=0.04)  # chance: 1 / sqrt(400) of a spread of .6
        assert ratio == pytest.approx(spread, abs=0.04)


def test_without_a_prior_it_fits_the_data():
    p = reference_problem()
    levels = karras(800, sigma_min=0.01, sigma_max=1)
    x = red_diff(p.likelihood, p.denoiser, levels, rng=Noise(0, [0]), learning_rate=0.02, regularization=0.0)
    assert float(p.likelihood.nll(x)) < 0.01  # of a chi-squared of 4: what the last steps of Adam are from the minimum
    assert torch.allclose(p.A.adjoint(p.y) - x[0], torch.zeros(8, dtype=torch.float64), atol=0.02)  # from where it came


def test_a_prior_alone_gives_its_own_image():
    p = reference_problem()
    levels = karras(400, sigma_min=0.01, sigma_max=1)
    options = {"learning_rate": 0.005, "regularization": 1e4}  # the data weigh nothing
    x = red_diff(p.likelihood, GaussianDenoiser(p.mean, 1e-6 * p.covariance, 1), levels, rng=Noise(0, [0]), **options)
    assert torch.allclose(x[0], p.mean, atol=0.01)  # two steps of Adam


def test_one_evaluation_per_step_and_a_callback_each():
    p, steps = reference_problem(), []
    counted = Counted(p.denoiser)
    levels = red_diff_levels(p.likelihood, p.denoiser, 7)
    red_diff(
        p.likelihood, counted, levels, rng=Noise(0, range(2)), callback=lambda step, x: steps.append((step, x.shape))
    )
    assert counted.evaluations == 7
    assert steps == [(step, (2, 8)) for step in range(7)]


def test_levels_stay_in_the_range_of_the_prior():
    p = reference_problem()
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.05, 0.5
    for make in (red_diff_levels, red_diff_published_levels):
        for steps in (None, 12):
            levels = make(p.likelihood, p.denoiser, steps)
            assert float(levels[0]) <= 0.5 * (1 + 1e-12)  # rounding
            assert float(levels[-2]) >= 0.05 * (1 - 1e-12)
            assert float(levels[-1]) == 0
            assert steps is None or len(levels) == 13
    assert len(red_diff_levels(p.likelihood, p.denoiser)) == 101


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"learning_rate": -1.0}, {"regularization": -0.1}])
def test_refuses_rates_without_sense(options):
    p = reference_problem()
    with pytest.raises(ValueError, match="learning_rate above 0 and a regularization of 0 or more"):
        red_diff(p.likelihood, p.denoiser, torch.tensor([1.0, 0.0]), rng=Noise(0, [0]), **options)
