"""What no method with a prior can use is refused in one line, which says what was expected and what came."""

import math
from functools import cache

import pytest
import torch
from oracle import GaussianDenoiser, multicoil_problem

from operators.linop import Matrix
from recon.errors import InputError
from recon.methods import METHODS, inputs_of, options_of
from recon.methods.csgm import csgm
from recon.methods.ddrm import ddrm
from recon.methods.diffusion import NonFiniteError
from recon.mri import PreparedMRI
from recon.noise import Noise

ITERATIVE = [name for name, method in METHODS.items() if "sigmas" in inputs_of(method)]
GAUSSIAN = [name for name in ITERATIVE if "likelihood" in inputs_of(METHODS[name])]
LEVELS = torch.tensor([1.0, 0.3, 0.1, 0.0])
# Options at which 0 has a meaning: no noise of that kind, no correction, no limit.
MAY_BE_ZERO = ("eta", "eta_data", "zeta", "gamma", "regularization", "tolerance", "corrector_steps")
OF_THE_LIKELIHOOD = [(name, "iterations") for name in ITERATIVE if options_of(METHODS[name]).get("iterations", 1) == 0]


@cache
def problem():
    return multicoil_problem(shape=(4, 3))


def call(name, *, likelihood=None, denoiser=None, sigmas=LEVELS, **options):
    p = problem()
    scan = PreparedMRI(p.y[None] / p.sigma_y, p.A.mask, p.A.sens_maps[None] / p.sigma_y, 1.0, (4, 3), p.y[None])
    given = {"likelihood": likelihood or p.likelihood, "scan": scan, "rng": Noise(0, [0])}
    given |= {"denoiser": denoiser or p.denoiser, "sigmas": sigmas}
    return METHODS[name](**{key: given[key] for key in inputs_of(METHODS[name])}, **options)


def limited(smallest, largest):
    denoiser = GaussianDenoiser(problem().denoiser.mean, torch.eye(12, dtype=torch.complex128), 2)
    denoiser.sigma_min, denoiser.sigma_max = smallest, largest
    return denoiser


def refused(name, message, **arguments):
    with pytest.raises(InputError, match=message) as found:
        call(name, **arguments)
    assert "\n" not in str(found.value)


class Counts:
    """A likelihood with another noise model."""

    A, y = Matrix(torch.eye(12, dtype=torch.float64)), torch.ones(12, dtype=torch.float64)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_another_noise_model(name):
    refused(name, r"^\w+ needs a Gaussian likelihood, got Counts; choose", likelihood=Counts())


def test_another_noise_model_in_a_latent_search():
    with pytest.raises(InputError, match="csgm needs a Gaussian likelihood, got Counts; choose"):
        csgm(Counts(), lambda z: z, rng=Noise(0, [0]))


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_real_prior_for_complex_images(name):
    real = GaussianDenoiser(torch.zeros(4, 3).double(), torch.eye(12).double(), 2)
    refused(name, r"^\w+: the prior is for real images .* wrap it: priors\.real_imag", denoiser=real)


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize(
    ("smallest", "largest", "levels"), [(0.0, 0.5, "0.5 to 0"), (0.2, 10.0, "10 to 0.2")], ids=["above", "below"]
)
def test_levels_outside_the_range_of_the_prior(name, smallest, largest, levels):
    if name == "dds-warm" and largest == 0.5:
        pytest.skip("it leaves out the upper levels")
    message = rf"^\w+: sigmas: the levels run from .* trained for {levels}; choose"
    refused(name, message, denoiser=limited(smallest, largest))


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("sigmas", [[0.3, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.3], [1.0, math.nan, 0.0]])
def test_levels_that_do_not_decrease_to_0(name, sigmas):
    if name == "dds-warm":
        pytest.skip("it takes the levels from its start on, and refuses those; see test_dds")
    refused(name, r"^\w+: sigmas: expected strictly decreasing levels that end in 0, got", sigmas=torch.tensor(sigmas))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in ITERATIVE
        for option, default in options_of(METHODS[name]).items()
        if isinstance(default, int | float) and not isinstance(default, bool)
    ],
)
def test_steps_that_are_not_positive(name, option):
    refused(name, option, **{option: -1})
    if (
        option not in MAY_BE_ZERO
        and (name, option) not in OF_THE_LIKELIHOOD
        and "generator" not in inputs_of(METHODS[name])
    ):
        refused(name, option, **{option: 0})


class Broken(GaussianDenoiser):
    def __call__(self, x, sigma):
        return super().__call__(x, sigma) * (math.nan if sigma < 0.5 else 1.0)


@pytest.mark.parametrize("name", [name for name in ITERATIVE if "denoiser" in inputs_of(METHODS[name])])
def test_a_network_that_is_not_finite(name):
    """Stops with the step and the sigma."""
    p = problem()
    broken = Broken(p.mean, p.covariance, 2)
    with pytest.raises(NonFiniteError, match=r"returned NaN or infinity at step \d \(sigma = 0\.[0-4]"):
        call(name, denoiser=broken)


def test_no_samples():
    with pytest.raises(InputError, match="expected seed, draws and at least one sample id"):
        Noise(0, [])


def test_ddrm_without_a_singular_value_decomposition():
    p = problem()
    with pytest.raises(InputError, match=r"^ddrm: .* got 1 sets of 3 coils .* reconstruct coil by coil"):
        ddrm(p.likelihood, p.denoiser, LEVELS, rng=Noise(0, [0]))
