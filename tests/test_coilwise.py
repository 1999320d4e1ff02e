"""Samplers coil by coil, on prepared data of three coils that differ in noise."""

import inspect

import pytest
import torch
from oracle import GaussianDenoiser, multicoil_problem

from operators.fourier import ifftc
from recon.methods import inputs_of, options_of, root_sum_of_squares
from recon.methods.coilwise import coil_likelihood, coilwise, measured_coils
from recon.methods.dds import dds, dds_hard
from recon.mri import PreparedMRI
from recon.noise import Noise
from recon.schedules import geometric


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def prepared(*, acceleration=1.0, kept=3):
    """One slice (6, 5) in the intensity 40, of which `kept` virtual coils are whitened by a matrix that mixes them."""
    p = multicoil_problem(acceleration=acceleration)
    measured = 40 * p.y[None]
    mixing = torch.tensor([[3.0, 0, 0], [0.5, 2.0, 0], [0.5j, -0.3, 1.0]], dtype=torch.complex128)
    whitened = torch.einsum("ab,sbyx->sayx", mixing, measured)[:, :kept]
    return PreparedMRI(whitened, p.A.mask, p.A.sens_maps[None], 40.0, (6, 5), measured)


def zero_filled(likelihood, denoiser, sigmas, *, rng, strength=1.0):
    """Stands for a sampler: every sample is the inverse Fourier transform."""
    gain = likelihood.A.sens_maps.flatten()[0]
    return strength * likelihood.backprojection.expand(len(rng), *likelihood.backprojection.shape) / gain.abs() ** 2


def prior(shape=(6, 5)):
    n = shape[0] * shape[1]
    return GaussianDenoiser(torch.zeros(shape, dtype=torch.complex128), torch.eye(n, dtype=torch.complex128), ndim=2)


@pytest.mark.parametrize("acceleration", [1.0, 2.0])
def test_combines_the_coils_as_measured(acceleration):
    """Whitening mixes and weights the coils; the image is that of the measured ones all the same."""
    scan = prepared(acceleration=acceleration)
    x = coilwise(zero_filled)(scan, prior(), torch.tensor([1.0, 0.0]), rng=Noise(0, range(2)))
    expected = root_sum_of_squares(scan)
    assert x.shape == (2, *expected.shape)
    assert torch.allclose(x, expected.expand_as(x), atol=1e-12)  # rounding


def test_with_fewer_virtual_coils_the_matrix_is_that_of_least_squares():
    scan = prepared(kept=2)
    x = coil_likelihood(scan).y[:, :, 0].movedim(1, 0).flatten(1)
    target = scan.measured.movedim(1, 0).flatten(1)
    residual = target - measured_coils(scan) @ x * (torch.linalg.vector_norm(target) / torch.linalg.vector_norm(x))
    assert torch.allclose(residual @ x.mH, torch.zeros(3, 2, dtype=x.dtype), atol=1e-8 * float(target.abs().max()) ** 2)
    assert measured_coils(scan).shape == (3, 2)


def test_coil_images_have_unit_noise_and_the_brightness_of_the_image():
    scan = prepared()
    likelihood = coil_likelihood(scan)
    assert likelihood.A.domain.shape == (1, 3, 1, 6, 5)
    assert torch.equal(likelihood.y[:, :, 0], scan.kspace)  # whitened, hence unit noise
    x = zero_filled(likelihood, None, None, rng=Noise(0, [0]))
    image = ifftc(scan.measured / scan.scale, (-2, -1))
    assert torch.allclose(torch.linalg.vector_norm(x), torch.linalg.vector_norm(image))


def test_every_coil_is_sampled_by_itself():
    """Data of one coil do not change the samples of another."""
    scan = prepared(acceleration=2.0)
    likelihood, sigmas = coil_likelihood(scan), geometric(10, sigma_min=0.01, sigma_max=1)
    x = dds(likelihood, prior(), sigmas, rng=Noise(0, [0]))
    changed = likelihood.y.clone()
    changed[:, 1] *= 2
    y = dds(type(likelihood)(likelihood.A, changed), prior(), sigmas, rng=Noise(0, [0]))
    assert torch.allclose(x[:, :, [0, 2]], y[:, :, [0, 2]], atol=1e-12)  # rounding
    assert not torch.allclose(x[:, :, 1], y[:, :, 1], atol=0.1)


def test_a_sampler_of_full_data_gives_the_root_sum_of_squares():
    scan = prepared()
    scan = PreparedMRI(scan.kspace, torch.ones_like(scan.mask), scan.sens_maps, scan.scale, scan.crop, scan.measured)
    x = coilwise(dds_hard)(scan, prior(), geometric(5, sigma_min=0.01, sigma_max=1), rng=Noise(0, [0]))
    assert torch.allclose(x[0], root_sum_of_squares(scan), atol=1e-10)  # one step of conjugate gradients


def test_signature_is_that_of_the_sampler_for_a_scan():
    method = coilwise(dds)
    assert set(inputs_of(method)) == {"scan", "denoiser", "sigmas", "rng"}
    assert options_of(method) == options_of(dds)
    assert next(iter(inspect.signature(method).parameters)) == "scan"
