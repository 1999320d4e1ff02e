"""CSGM: where the generator is affine, the most probable latent is the posterior mean in closed form."""

import math

import pytest
import torch
from oracle import dense, multicoil_problem, reference_problem
from test_generator import affine

from priors import Generator, probability_flow
from recon.apply import prior_inputs
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.methods import METHODS, inputs_of, takes_prior
from recon.methods.csgm import csgm, csgm_levels
from recon.methods.diffusion import NonFiniteError
from recon.noise import Noise
from recon.phantom import head
from recon.pipeline import reconstruct
from recon.settings import Settings

PROBLEMS = pytest.mark.parametrize(
    "p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"]
)
SEARCH = {"iterations": 1500, "learning_rate": 0.05}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


class Affine:
    """G(z) = offset + matrix z, with latents of any number."""

    def __init__(self, offset, matrix, shape):
        self.offset, self.matrix, self.shape = offset, matrix, shape

    def latents(self, images):
        return images.new_zeros(*images.shape[: images.ndim - len(self.shape)], self.matrix.shape[1])

    def __call__(self, z):
        return (self.offset + z @ self.matrix.mT).reshape(*z.shape[:-1], *self.shape)


def gaussian(p):
    """The prior of the problem: offset mu, matrix L with L L^H = C."""
    return Affine(p.mean.flatten(), torch.linalg.cholesky(p.covariance), p.likelihood.A.domain.shape)


def most_probable(p, offset, matrix, weight=1.0):
    """offset + matrix z for z = argmin nll + weight / 2 ||z||^2."""
    A = dense(p.likelihood.A) @ matrix
    rest = p.likelihood.y.flatten() - dense(p.likelihood.A) @ offset
    z = torch.linalg.solve(A.mH @ A + weight * torch.eye(A.shape[1], dtype=A.dtype), A.mH @ rest)
    return offset + matrix @ z


@PROBLEMS
def test_the_image_of_a_gaussian_prior_is_the_posterior_mean(p):
    x = csgm(p.likelihood, gaussian(p), rng=Noise(0, [0, 1]), **SEARCH).flatten(1)
    mean = torch.view_as_complex(p.posterior_mean.reshape(-1, 2)) if x.is_complex() else p.posterior_mean
    # In posterior standard deviations: Adam's last steps are a thousandth of its rate.
    assert float((x - mean).abs().max()) < 1e-3 * math.sqrt(p.trace / x.shape[1])


@PROBLEMS
def test_the_image_of_a_probability_flow(p):
    sigmas = csgm_levels(p.likelihood, p.denoiser)
    x = csgm(p.likelihood, probability_flow(p.denoiser, sigmas), rng=Noise(0, [3]), **SEARCH)
    expected = most_probable(p, *affine(p, sigmas))
    assert torch.allclose(x.flatten(1), expected, atol=1e-4)  # Adam's last steps, of images of size 0.5


def test_the_weight_is_that_of_the_latent():
    p, generator = reference_problem(), gaussian(reference_problem())
    x = csgm(p.likelihood, generator, rng=Noise(0, [0]), weight=7.0, **SEARCH)
    assert torch.allclose(x[0], most_probable(p, generator.offset, generator.matrix, 7.0), atol=1e-4)


class Forked:
    """To a whole signal for z > 0, to half of it for z < 0: a search stays on the side it starts on."""

    def latents(self, images):
        return images.new_zeros(*images.shape[:-1], 1)

    def __call__(self, z):
        half = torch.ones(8, dtype=z.dtype)
        half[4:] = 0
        return torch.where(z > 0, z.tanh() * torch.ones_like(half), -z.tanh() * half)


def test_the_best_of_several_starts_is_kept():
    A = reference_problem().likelihood.A
    likelihood = Gaussian(A, A(torch.full((8,), 0.5, dtype=torch.float64)))
    one = csgm(likelihood, Forked(), rng=Noise(0, range(12)), iterations=150, weight=0.0)
    best = csgm(likelihood, Forked(), rng=Noise(0, range(12)), iterations=150, weight=0.0, restarts=8)
    assert float(one[:, 7].min()) == 0  # some ended on the wrong side
    assert torch.allclose(best, torch.full_like(best, 0.5), atol=1e-2)  # all of 8 do so in one of 256


def test_random_state_and_gradient_mode_are_left_alone():
    p = reference_problem()
    state = torch.get_rng_state()
    with torch.no_grad():
        x = csgm(p.likelihood, gaussian(p), rng=Noise(0, [0]), iterations=3)
        assert not torch.is_grad_enabled()
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_of_the_users_own_gathers_no_gradients():
    p = reference_problem()
    network = torch.nn.Linear(3, 8, dtype=torch.float64)

    class Decoder:
        def latents(self, images):
            return images.new_zeros(len(images), 3)

        def __call__(self, z):
            return network(z)

    csgm(p.likelihood, Decoder(), rng=Noise(0, [0]), iterations=3)
    assert network.weight.grad is None


def test_a_callback_at_every_iteration():
    p, seen = reference_problem(), []
    options = {"iterations": 4, "restarts": 2}
    csgm(p.likelihood, gaussian(p), rng=Noise(0, range(3)), callback=lambda i, x: seen.append((i, x.shape)), **options)
    assert seen == [(i, (3, 8)) for i in range(4)]


# Errors


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"restarts": 0}, {"learning_rate": 0.0}, {"learning_rate": -0.1}, {"weight": -1.0}]
)
def test_refuses_options_without_sense(options):
    p = reference_problem()
    with pytest.raises(ValueError, match=f"at least 1 iteration.*{next(iter(options))}="):
        csgm(p.likelihood, gaussian(p), rng=Noise(0, [0]), **options)


def test_refuses_what_does_not_fit():
    p, q = reference_problem(), multicoil_problem(shape=(4, 3))
    with pytest.raises(ValueError, match="images of the generator: expected trailing axes"):
        csgm(p.likelihood, Affine(torch.zeros(5).double(), torch.eye(5).double(), (5,)), rng=Noise(0, [0]))
    real = Affine(torch.zeros(12).double(), torch.eye(12).double(), (1, 4, 3))
    with pytest.raises(ValueError, match="images of the generator: expected dtype"):
        csgm(q.likelihood, Cast(real), rng=Noise(0, [0]))
    with pytest.raises(ValueError, match="csgm needs a Gaussian likelihood, got Matrix"):
        csgm(p.A, gaussian(p), rng=Noise(0, [0]))


class Cast:
    """Real latents where images are complex."""

    def __init__(self, generator):
        self.generator = generator

    def latents(self, images):
        return self.generator.latents(images.real)

    def __call__(self, z):
        return self.generator(z)


def test_stops_where_the_generator_is_not_finite():
    p = reference_problem()
    broken = Affine(p.mean, torch.full((8, 2), math.inf).double(), (8,))
    with pytest.raises(NonFiniteError, match="csgm: the generator returned NaN or infinity"):
        csgm(p.likelihood, broken, rng=Noise(0, [0]))


# The generator as an input of a method


class Wiener:
    """The posterior mean of pixels that are white noise of unit variance."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, True

    def __call__(self, x, sigma):
        sigma = torch.as_tensor(sigma, dtype=x.real.dtype)
        return x / (1 + sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) ** 2)


class Tile:
    """Images of few numbers: a coarse grid, each of its pixels 8 x 8 of the image."""

    def latents(self, images):
        return images.new_zeros(*images.shape[:-2], images.shape[-2] // 8, images.shape[-1] // 8)

    def __call__(self, z):
        return z.repeat_interleave(8, -2).repeat_interleave(8, -1)


RUN = {"method": "csgm", "mask": "random", "acceleration": 2.0, "check": False, "samples": 2}


def test_a_generator_is_made_of_a_denoiser():
    scan = head((48, 40), coils=3)
    result = reconstruct(scan, prior=Wiener(), steps=3, options={"iterations": 12}, **RUN)
    assert result.samples.shape == (1, 2, 48, 40)
    assert result.run["evaluations"] == 3 * 13
    assert "no uncertainty" in result.statement
    assert result.metrics["psnr_scaled"] > 10


def test_a_generator_of_the_users_own():
    scan = head((48, 40), coils=3)
    seen = []
    result = reconstruct(
        scan, prior=Tile(), options={"iterations": 30}, progress=lambda _, done: seen.append(done), **RUN
    )
    assert isinstance(Tile(), Generator)
    assert result.run["evaluations"] == 31
    assert result.run["arguments"]["prior"] == "Tile"
    assert seen[-1] == 1
    assert seen == sorted(seen)
    with pytest.raises(InputError, match="dds needs a denoiser, and this prior is a generator; use csgm"):
        reconstruct(scan, prior=Tile(), **{**RUN, "method": "dds"})
    with pytest.raises(InputError, match="steps: this prior is a generator"):
        reconstruct(scan, prior=Tile(), steps=3, **RUN)
    with pytest.raises(InputError, match="precision: this prior is a generator"):
        reconstruct(scan, prior=Tile(), precision="bf16", **RUN)


def test_only_what_a_prior_is_used_for_is_asked_of_it():
    p = reference_problem()
    for name in ("dds", "pnp-admm", "csgm"):
        made, counted = prior_inputs(name, p.likelihood, p.denoiser, 5)
        assert len(made["sigmas"]) == 6
        given = {"likelihood": p.likelihood, "rng": Noise(0, [0])} | made
        METHODS[name](**{key: given[key] for key in inputs_of(METHODS[name])})
        assert counted.evaluations == (5 * 101 if name == "csgm" else 5)


# A prior is not a sampler


def test_settings_tell_methods_with_a_prior_from_methods_that_draw_samples():
    assert not takes_prior(METHODS["tv"])
    resolved = Settings(method="pnp-admm", steps=7).resolved()
    assert (resolved.samples, resolved.prior, resolved.steps) == (None, "brain", 7)
    resolved = Settings(method="csgm").resolved()
    assert (resolved.samples, resolved.prior) == (8, "brain")
    assert Settings(method="tv").resolved().prior is None
    for arguments, message in [
        ({"method": "pnp-admm", "samples": 4}, "samples: pnp-admm draws no samples"),
        ({"method": "pnp-hqs", "calibrated": "a.json"}, "calibrated: pnp-hqs draws no samples"),
        ({"method": "tv", "prior": "brain"}, "prior: tv uses no prior"),
        ({"method": "tv", "steps": 4}, "steps: tv has no noise levels"),
        ({"method": "rss", "samples": 4}, "samples: rss draws no samples"),
    ]:
        with pytest.raises(InputError, match=message):
            Settings(**arguments).resolved()


def test_a_prior_without_samples_in_the_whole_line(tmp_path):
    scan = head((48, 40), coils=3)
    arguments = {"method": "pnp-admm", "mask": "random", "acceleration": 2.0, "prior": Wiener(), "steps": 4}
    result = reconstruct(scan, out=tmp_path, **arguments)  # with the check, which is for samplers
    assert result.samples is None
    assert result.std is None
    assert result.statement == ""
    assert result.data_fit is None
    assert result.run["evaluations"] == 4
    assert result.run["arguments"]["prior"] == "Wiener"
    assert result.run["arguments"]["samples"] is None
    assert torch.equal(reconstruct(scan, seed=0, **arguments).mean, result.mean)
    with pytest.raises(InputError, match="draws no samples"):
        reconstruct(scan, samples=2, **arguments)
