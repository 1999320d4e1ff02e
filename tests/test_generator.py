"""The probability flow as a generator: of a Gaussian prior it is an affine map that is known in closed form."""

from itertools import pairwise

import pytest
import torch
from oracle import multicoil_problem, reference_problem
from torch import nn

from priors import Generator, chunked, probability_flow
from recon.schedules import karras

SIGMAS = karras(6, sigma_min=0.02, sigma_max=2.0)
PROBLEMS = pytest.mark.parametrize(
    "p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"]
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def affine(p, sigmas):
    """Offset and matrix of the flow through sigmas: x <- mu + F (x - mu), F = K + (t / s) (I - K)."""
    C, mu = p.covariance, p.mean.flatten()
    identity = torch.eye(len(C), dtype=C.dtype)
    total = identity
    for s, t in pairwise(sigmas.tolist()):
        K = C @ torch.linalg.inv(C + s**2 * identity)
        total = (K + t / s * (identity - K)) @ total
    return mu - total @ mu, sigmas[0] * total


@PROBLEMS
def test_the_flow_of_a_gaussian_prior(p):
    generator = probability_flow(p.denoiser, SIGMAS)
    offset, matrix = affine(p, SIGMAS)
    z = p.likelihood.A.domain.randn(3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(generator(z).flatten(1), offset + z.flatten(1) @ matrix.mT, atol=1e-12)  # rounding


def test_many_steps_make_images_as_the_prior_has_them():
    p = reference_problem()
    trace = float(p.covariance.trace())
    found = []
    for steps in (4, 10, 400):
        offset, matrix = affine(p, karras(steps, sigma_min=0.01, sigma_max=20.0))
        found.append(float((matrix @ matrix.mT).trace()) / trace)
        assert torch.allclose(offset, p.mean, atol=0.05)  # of images of size 0.5: the start is at 0, not at the mean
    assert found == sorted(found)  # few steps fall short
    assert found[-1] == pytest.approx(1, abs=0.02)  # first-order steps


def test_its_latents_are_images_of_noise():
    p = multicoil_problem(shape=(4, 3))
    generator = probability_flow(p.denoiser, SIGMAS)
    images = torch.ones(2, 1, 4, 3, dtype=torch.complex128)
    assert torch.equal(generator.latents(images), torch.zeros_like(images))
    assert isinstance(generator, Generator)
    assert not isinstance(p.denoiser, Generator)


class Smooth(nn.Module):
    """A network that is no linear map."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, False

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)

    def forward(self, x, sigma):
        s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return self.network(torch.tanh(x / (1 + s)).reshape(-1, 1, *x.shape[-2:])).reshape(x.shape)


def test_gradients_are_right_and_the_same_when_computed_piece_by_piece():
    torch.manual_seed(0)
    denoiser = Smooth()
    z = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    plain, pieces = (probability_flow(d, SIGMAS) for d in (denoiser, chunked(denoiser, 20)))
    assert torch.autograd.gradcheck(plain, (z,))
    gradients = [torch.autograd.grad((generator(z) ** 3).sum(), z)[0] for generator in (plain, pieces)]
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("sigmas", [[1.0, 0.5], [0.5, 1.0, 0.0], [0.0], [1.0, 1.0, 0.0]])
def test_levels_that_do_not_fall_to_zero_are_refused(sigmas):
    with pytest.raises(ValueError, match="decreasing to a final 0"):
        probability_flow(reference_problem().denoiser, torch.tensor(sigmas))
