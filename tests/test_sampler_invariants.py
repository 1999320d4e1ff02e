"""What holds for every method with a prior, whatever its algorithm, and why some are exempt."""

import math
import random
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from oracle import exact_moments, multicoil_problem, reference_problem

from operators.fourier import ifftc
from operators.linop import Matrix
from recon import mri
from recon.apply import prior_inputs
from recon.likelihood import Gaussian
from recon.methods import METHODS, inputs_of, options_of, root_sum_of_squares, takes_prior
from recon.methods.daps import daps
from recon.methods.ddrm import ddrm
from recon.methods.dds import dds
from recon.methods.diffpir import diffpir
from recon.methods.dps import dps, dps_norm
from recon.methods.mcg import mcg
from recon.methods.pigdm import pigdm
from recon.methods.score_ald import score_ald
from recon.methods.score_mri import score_mri
from recon.methods.song import song
from recon.methods.split_gibbs import split_gibbs
from recon.mri import PreparedMRI
from recon.noise import Noise
from recon.phantom import head
from recon.pipeline import reconstruct
from recon.schedules import geometric, karras

WITH_PRIOR = [  # and by iteration: networks that reconstruct directly have neither levels nor random numbers
    name for name, method in METHODS.items() if takes_prior(method) and {"sigmas", "rng"} & {*inputs_of(method)}
]
SAMPLERS = [name for name in WITH_PRIOR if "rng" in inputs_of(METHODS[name])]
COILS = 3
STEPS = 6
OPTIONS = {
    "csgm": {"iterations": 10, "restarts": 2},
    "daps-published": {"langevin_steps": 5},
    "score-ald-published": {"mse": 0.3},  # at 5 it diverges, as is known
}

PROJECTIONS = ("dds-hard", "mcg-published", "score-mri-single-coil", "song-published")

# Full data with noise of 1e-6: how far the images may be from the inverse Fourier transform, in units of the image.
# Where a step is weighted by the noise it is of the order of the noise; projections leave rounding.
NOISE = 1e-6
FULL = {
    **dict.fromkeys(("dds", "dds-hard", "dds-warm", "pigdm", "diffpir", "dps", "mcg", "pnp-admm", "pnp-hqs"), 1e-5),
    **dict.fromkeys(("score-mri", "score-mri-rss", "song"), 1e-7),
    **dict.fromkeys(("score-mri-single-coil", "score-mri-ssos", "song-published", "mcg-published"), 1e-10),
    **dict.fromkeys(("split-gibbs", "daps"), 1e-4),  # with the spread of their last level, some 1 / ||A||
    "ddrm": 1e-2,  # its last step to 0 returns the denoised image, which differs from the data by that step's level
}
EXEMPT = {
    **dict.fromkeys(("dds-19", "dds-49", "dds-99"), "a fixed weight of the data, whatever their noise, 5 iterations"),
    **dict.fromkeys(("diffpir-20", "diffpir-100"), "a weight of the data relative to a level where its schedule ends"),
    "dps-published": "a step in proportion to the norm of the residual, fixed in size",
    "score-mri-hybrid": "a part of the way to the data at each level",
    **dict.fromkeys(("score-ald", "score-ald-published"), "Langevin steps end with noise of the last level"),
    "daps-published": "Langevin steps end with noise of the last level",
    **dict.fromkeys(("red-diff", "red-diff-published", "csgm"), "a search that ends before it arrives"),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


@cache
def prepared(sigma_y=0.02, acceleration=2.0):
    """A slice of (4, 3) pixels in three coils, and its prior."""
    p = multicoil_problem(sigma_y, shape=(4, 3), acceleration=acceleration)
    maps = p.A.sens_maps[None]
    return PreparedMRI(p.y[None] / sigma_y, p.A.mask, maps / sigma_y, 1.0, (4, 3), p.y[None]), p.denoiser


def run(name, scan, denoiser, rng):
    method, likelihood = METHODS[name], mri.likelihood(scan)
    made, _ = prior_inputs(name, likelihood, denoiser, STEPS)
    given = {"likelihood": likelihood, "scan": scan, "rng": rng} | made
    return method(**{key: given[key] for key in inputs_of(method)}, **OPTIONS.get(name, {}))


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_seed_and_nothing_else(name):
    """Whatever the batch; and global random states are left alone."""
    scan, denoiser = prepared()
    before = random_states()
    together, alone = (run(name, scan, denoiser, Noise(1, ids)) for ids in ([3, 5, 8], [5]))
    assert random_states() == before
    # Matrix products round by the size of the batch; projections by conjugate gradients amplify that.
    assert torch.allclose(together[1], alone[0], rtol=0, atol=1e-7 if name in PROJECTIONS else 1e-10)
    if name not in PROJECTIONS:  # three coils x2 settle these small images: projections leave no freedom
        assert not torch.allclose(together[0], together[1], atol=1e-6)
    assert not alone.requires_grad


BY_LIKELIHOOD = [  # coil by coil, two iterations arrive
    name
    for name in WITH_PRIOR
    if "likelihood" in inputs_of(METHODS[name]) and options_of(METHODS[name]).get("iterations", 1) == 0
]


@pytest.mark.parametrize("name", BY_LIKELIHOOD)
def test_conjugate_gradients_take_the_iterations_of_the_likelihood(name):
    """Unless others are asked for: they are what its operator needs."""
    p = multicoil_problem(shape=(4, 3))
    likelihood = Gaussian(p.likelihood.A, p.likelihood.y, iterations=2)
    made, _ = prior_inputs(name, likelihood, p.denoiser, STEPS)
    made = {key: value for key, value in made.items() if key in inputs_of(METHODS[name])}

    def image(**options):
        rng = {"rng": Noise(1, [5])} if name in SAMPLERS else {}
        return METHODS[name](likelihood, **made, **rng, **options)

    assert torch.equal(image(), image(iterations=2))
    assert not torch.equal(image(), image(iterations=3))


class Permuted(Noise):
    """Noise that is drawn for coils follows them."""

    order = torch.tensor([2, 0, 1])

    def randn_like(self, x):
        noise = super().randn_like(x)
        coil_axes = [axis for axis in range(1, x.ndim - 2) if x.shape[axis] == COILS]
        return noise.index_select(coil_axes[0], self.order) if coil_axes else noise


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_coil_order_does_not_matter(name):
    scan, denoiser = prepared()
    order = Permuted.order
    permuted = replace(
        scan, kspace=scan.kspace[:, order], sens_maps=scan.sens_maps[:, :, order], measured=scan.measured[:, order]
    )
    x, other = run(name, scan, denoiser, Noise(1, [5])), run(name, permuted, denoiser, Permuted(1, [5]))
    assert torch.allclose(x, other, rtol=0, atol=1e-10)  # sums over coils round by their order


@pytest.mark.parametrize("name", FULL)
def test_full_data_without_noise_give_the_inverse_fourier_transform(name):
    scan, denoiser = prepared(sigma_y=NOISE, acceleration=1.0)
    assert bool(scan.mask.all())
    x = run(name, scan, denoiser, Noise(0, range(2)))
    maps = NOISE * scan.sens_maps[:, 0]  # of sum of squares 1
    expected = (maps.conj() * ifftc(scan.measured, (-2, -1))).sum(1, keepdim=True)
    if "scan" in inputs_of(METHODS[name]):
        expected = root_sum_of_squares(scan)
    assert torch.allclose(x, expected.expand_as(x), rtol=0, atol=FULL[name])


def test_every_method_is_held_to_full_data_or_says_why_not():
    assert {*FULL, *EXEMPT} == {*WITH_PRIOR}
    assert not FULL.keys() & EXEMPT.keys()


# Without data an exact sampler of the prior remains: what steps and start leave, of first order in the step. Others
# keep spreads that are not the prior's: DDS and PiGDM with eta, DiffPIR with zeta, the corrector of Score-MRI; RED-diff
# and CSGM search for its mode, and plug-and-play for its mean.
FLOW, FALLING = geometric(300, sigma_min=0.005, sigma_max=30.0), geometric(300, sigma_min=0.01, sigma_max=3.0)


@pytest.mark.parametrize(
    ("sampler", "sigmas", "cov"),
    [
        # The probability flow, which starts at mean 0: ||mu|| sqrt(c / (c + 30^2)) = 1.5 * 0.2 / 30 remains of that.
        (partial(dds, eta=0.0), FLOW, 0.03),
        (partial(ddrm, eta=0.0), FLOW, 0.03),
        (partial(diffpir, zeta=0.0), FLOW, 0.03),
        (partial(pigdm, eta=0.0), FLOW, 0.03),
        # Ancestral steps lose the variance of p(x0 | x) in each.
        (dps, FLOW, 0.04),
        (dps_norm, FLOW, 0.04),
        (mcg, FLOW, 0.04),
        # Reverse diffusion is too wide by the relative step.
        (partial(score_mri, corrector_steps=0), FLOW, 0.04),
        (partial(song, corrector_steps=0), FLOW, 0.04),
        (score_ald, karras(200, sigma_min=0.005, sigma_max=3.0, rho=-3.0), 0.02),
        (partial(daps, spread=math.inf), FALLING, 0.05),  # it trails a falling level
        (split_gibbs, FALLING[::4], 0.015),  # the last coupling, rho^2 / c = 0.01 for c = 0.01
    ],
)
def test_without_data_it_samples_the_prior(sampler, sigmas, cov):
    p = reference_problem()
    nothing = Gaussian(Matrix(torch.zeros(4, 8, dtype=torch.float64)), torch.zeros(4, dtype=torch.float64))
    mean, covariance = exact_moments(lambda rng: sampler(nothing, p.denoiser, sigmas, rng=rng))
    assert torch.allclose(mean, p.mean, atol=0.01)
    assert float(covariance.trace() / p.covariance.trace()) == pytest.approx(1, abs=cov)


class White:
    """E[x0 | x] of white images of variance 0.1."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, True

    def __call__(self, x, sigma):
        variance = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return 0.1 / (0.1 + variance) * x


@cache
def scan_of(factor):
    scan = head((24, 20), coils=COILS)
    return replace(scan, kspace=factor * scan.kspace)


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_scaled_data_give_scaled_images(name):
    options = {"options": OPTIONS[name]} if name in OPTIONS else {}
    draws = {"samples": 1} if name in SAMPLERS else {}
    dim, bright = (
        reconstruct(
            scan_of(factor), method=name, prior=White(), mask="random", steps=STEPS, check=False, **options, **draws
        ).mean
        for factor in (1.0, 1024.0)
    )
    assert float(dim.max()) > 0
    # A power of two: float32 rounds alike but for what eigenvalue routines do with it.
    assert torch.allclose(bright, 1024 * dim, rtol=1e-4, atol=1e-4 * float(bright.max()))
