"""Levels of DDPM within the range of a prior."""

import math

import pytest
import torch

from recon.schedules import check_schedule, ddpm, ddpm_quadratic


def sigma_of(timestep):
    """By the definition: beta from 1e-4 to 0.02 over 1000 timesteps, abar the product of 1 - beta."""
    abar = math.prod(1 - (1e-4 + t * (0.02 - 1e-4) / 999) for t in range(timestep + 1))
    return math.sqrt((1 - abar) / abar)


def levels_of(timesteps):
    return torch.tensor([sigma_of(t) for t in timesteps] + [0.0], dtype=torch.float64)


@pytest.mark.parametrize("levels", [ddpm, ddpm_quadratic])
@pytest.mark.parametrize("steps", [1, 2, 19, 49, 99])
def test_exactly_so_many_levels_within_the_range_of_a_prior(levels, steps):
    sigmas = levels(steps, sigma_min=0.02, sigma_max=10)
    assert sigmas.shape == (steps + 1,)
    check_schedule(sigmas, sigma_min=0.02, sigma_max=10)


def test_even_timesteps_within_the_range():
    last = max(t for t in range(1000) if sigma_of(t) <= 10)
    assert torch.allclose(ddpm(5, sigma_max=10), levels_of(k * (last + 1) // 5 for k in (4, 3, 2, 1, 0)), rtol=1e-12)
    first = min(t for t in range(1000) if sigma_of(t) >= 0.1)
    assert torch.allclose(ddpm(1000 - first, sigma_min=0.1), levels_of(range(999, first - 1, -1)), rtol=1e-12)


def test_timesteps_of_even_squares():
    published = [*(999 - math.isqrt(k * 1000**2 // 19) for k in range(19)), 0]  # as DiffPIR has them
    assert torch.allclose(ddpm_quadratic(20), levels_of(published), rtol=1e-12)
    assert torch.allclose(ddpm_quadratic(1), levels_of([999]), rtol=1e-12)


@pytest.mark.parametrize("levels", [ddpm, ddpm_quadratic])
def test_refuses_steps_that_do_not_fit(levels):
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"1000 of the 1000 timesteps have .* got {steps}"):
            levels(steps)
    with pytest.raises(ValueError, match=r"ddpm: 0 of the 1000 timesteps have a sigma from 0 to 0\.001"):
        levels(5, sigma_max=0.001)
    with pytest.raises(ValueError, match="ddpm: 0 of the 1000 timesteps have a sigma from 10 to 5"):
        levels(5, sigma_min=10, sigma_max=5)


def test_refuses_quadratic_timesteps_that_coincide():
    with pytest.raises(ValueError, match="600 steps fall twice"):
        ddpm_quadratic(600)
