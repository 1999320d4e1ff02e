"""Where the samplers of a diffusion start."""

import pytest
import torch
from oracle import dense, multicoil_problem, reference_problem

from recon.methods.diffusion import noisy_start
from recon.noise import Noise


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem()], ids=["real", "multicoil"])
@pytest.mark.parametrize("sigma", [0.05, 3.0])
def test_start_is_the_image_of_the_data_under_noise(p, sigma):
    A, y = dense(p.likelihood.A), p.likelihood.y.flatten()
    identity = torch.eye(A.shape[1], dtype=A.dtype)
    mean = torch.linalg.solve(identity / sigma**2 + A.mH @ A, A.mH @ y).reshape(p.likelihood.A.domain.shape)
    found = noisy_start(p.likelihood, Noise(0, range(3)), sigma, iterations=60)
    noise = Noise(0, range(3)).randn_like(p.likelihood.A.domain.zeros(3))
    assert torch.allclose(found, mean + sigma * noise, atol=1e-9)  # of converged iterations
