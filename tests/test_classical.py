"""The classical methods on the analytic head: better than zero-filled, whatever the units and the order of coils."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from operators.basic import FiniteDifference
from operators.linop import Matrix
from operators.masks import MASKS
from operators.mri import sense
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.methods import METHODS, inputs_of
from recon.methods.classical import cg_sense, l1_wavelet, total_variation
from recon.methods.zero_filled import zero_filled
from recon.metrics import object_mask, psnr_scaled
from recon.mri import MRIScan, PreparedMRI, likelihood, prepare, undersample
from recon.phantom import head

ITERATIVE = [cg_sense, l1_wavelet, total_variation]
each = pytest.mark.parametrize("method", ITERATIVE, ids=lambda method: method.__name__)


@pytest.fixture(scope="module")
def scan() -> MRIScan:
    return head((96, 96), coils=6)


@pytest.fixture(scope="module")
def reference(scan: MRIScan) -> Tensor:
    prepared = prepare(scan)
    return shown(prepared, zero_filled(likelihood(prepared)))


def accelerated(scan: MRIScan, kind: str = "random") -> MRIScan:
    return undersample(scan, MASKS[kind](scan.shape, 4, seed=0))


def shown(prepared: PreparedMRI, x: Tensor) -> Tensor:
    """(slice, y, x) magnitude."""
    return prepared.image(x)[:, 0].abs()


def small(noise: float = 0.02) -> Gaussian:
    """A problem on which a thousand iterations are cheap."""
    prepared = prepare(undersample(head((40, 36), coils=4, noise=noise), MASKS["random"]((40, 36), 2, seed=0)))
    return likelihood(prepared)


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("kind", ["random", "poisson"])
def test_every_method_beats_zero_filled(scan: MRIScan, reference: Tensor, kind: str) -> None:
    prepared = prepare(accelerated(scan, kind))
    problem, inside = likelihood(prepared), object_mask(reference)
    decibels = {
        method.__name__: psnr_scaled(reference, shown(prepared, method(problem)), inside)
        for method in [zero_filled, *ITERATIVE]
    }
    start = decibels.pop("zero_filled")
    # 4 dB at least on lines, 9 dB on points, whose aliasing is noise-like.
    assert min(decibels.values()) > start + {"random": 3, "poisson": 7}[kind], decibels


@each
def test_units_come_out_as_they_went_in(scan: MRIScan, method) -> None:
    """Data and noise a thousand times as large give an image a thousand times as large, with the same defaults."""
    part, images = accelerated(scan), []
    for factor in (1.0, 1000.0):
        prepared = prepare(replace(part, kspace=factor * part.kspace))
        images.append(prepared.image(method(likelihood(prepared))) / factor)
    assert relative(images[1], images[0]) < 1e-3  # float32 rounding, amplified by the iterations


@pytest.mark.parametrize("method", [l1_wavelet, total_variation])
def test_more_noise_is_regularised_more(method) -> None:
    """The same data, said to be noisier, give a smoother image with the same defaults."""
    problem = small()
    noisier = Gaussian(0.1 * problem.A, 0.1 * problem.y)
    D = FiniteDifference(problem.A.domain)
    assert D(method(noisier)).abs().sum() < 0.9 * D(method(problem)).abs().sum()


@each
def test_the_order_of_coils_does_not_matter(scan: MRIScan, method) -> None:
    part = accelerated(scan)
    prepared = prepare(part)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = method(likelihood(prepared))
    problem = Gaussian(sense(prepared.mask, prepared.sens_maps[:, :, order]), prepared.kspace[:, order])
    assert relative(method(problem), expected) < 1e-3  # sums in another order, amplified by the iterations
    again = prepare(replace(part, kspace=part.kspace[:, order]))  # whitened by another factor, mapped again
    assert relative(again.image(method(likelihood(again))).abs(), prepared.image(expected).abs()) < 0.01


@each
def test_results_repeat_and_leave_the_global_generator_alone(method) -> None:
    problem = small()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = method(problem)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(method(problem), first)


@each
def test_callbacks_see_every_iteration(method) -> None:
    problem, seen = small(), []
    result = method(problem, iterations=7, callback=lambda step, x: seen.append((step, x)))
    assert [step for step, _ in seen] == list(range(7))
    assert torch.equal(seen[-1][1], result)
    assert torch.equal(method(problem, iterations=0), torch.zeros_like(result))


@each
def test_without_regularization_it_is_least_squares(method) -> None:
    problem = small()
    start, result = problem.backprojection, method(problem, regularization=0.0, iterations=500)
    assert torch.isfinite(result).all()
    assert problem.grad(result).norm() < 1e-3 * start.norm()  # the slowest directions, and float32


def test_huge_regularization_leaves_the_simplest_image() -> None:
    problem = small()
    D = FiniteDifference(problem.A.domain)
    size = problem.backprojection.norm() / problem.A.norm() ** 2
    assert cg_sense(problem, regularization=1e3).norm() < 1e-5 * size  # 1 / (1 + 1e6)
    for method, part in [(total_variation, 0.2), (l1_wavelet, 0.8)]:  # after 500 iterations; coarse pixels have edges
        simple = method(problem, regularization=1e3, iterations=500)
        assert torch.isfinite(simple).all()
        assert simple.norm() > 0.1 * size
        assert D(simple).norm() < part * D(method(problem)).norm()


def test_the_wavelet_threshold_is_counted_in_noise() -> None:
    """Full data of one coil with noise of level sigma: the first step takes regularization sigma off every detail."""
    generator, sigma = torch.Generator().manual_seed(0), 0.01
    A = (1 / sigma) * sense(torch.ones(32, 32, dtype=torch.bool), torch.ones(1, 1, 32, 32, dtype=torch.complex64))
    image = A.domain.randn(generator=generator)  # details far above the threshold
    removed = l1_wavelet(Gaussian(A, A(image)), regularization=2.0, iterations=1) - image
    rms = float(removed.abs().square().mean().sqrt())
    assert rms == pytest.approx(2.0 * sigma * (3 / 4) ** 0.5, rel=0.01)  # a quarter are scaling coefficients


def test_total_variation_comes_near_its_minimum() -> None:
    problem = small()
    weight = inspect.signature(total_variation).parameters["regularization"].default * problem.A.norm()
    D = FiniteDifference(problem.A.domain)

    def objective(x: Tensor) -> float:
        return float(problem.nll(x) + weight * D(x).abs().square().sum(0).sqrt().sum())

    by_default, converged = objective(total_variation(problem)), objective(total_variation(problem, iterations=1500))
    assert converged < by_default < 1.02 * converged


def test_cg_sense_solves_its_normal_equations() -> None:
    problem = small()
    x = cg_sense(problem, regularization=0.2, iterations=60)
    residual = problem.grad(x) + (0.2 * problem.A.norm()) ** 2 * x
    assert residual.norm() < 1e-4 * problem.backprojection.norm()  # float32, condition 25


def test_several_sets_of_maps_and_slices() -> None:
    """(slice, set, y, x) in one call."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 3, 16, 20, dtype=torch.complex64, generator=generator)
    A = sense(MASKS["random"]((16, 20), 2, calibration=4, seed=0), maps)
    problem = Gaussian(A, A.codomain.randn(generator=generator))
    for method in [zero_filled, *ITERATIVE]:
        assert method(problem).shape == (2, 2, 16, 20)


def test_zero_filled_is_the_image_of_least_variance() -> None:
    """Of full data: the least-squares solution, and 0 outside the maps."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 1, 3, 8, 7, dtype=torch.complex128, generator=generator)
    maps[..., :2] = 0
    A = sense(torch.ones(8, 7, dtype=torch.bool), maps)
    problem = Gaussian(A, A.codomain.randn(generator=generator))
    x = zero_filled(problem)
    assert (x[..., :2] == 0).all()
    assert problem.grad(x).norm() < 1e-12 * problem.backprojection.norm()  # float64 rounding
    with pytest.raises(InputError, match=r"zero-filled: is for MRI with maps .SENSE., got Matrix"):
        zero_filled(Gaussian(Matrix(torch.eye(3)), torch.ones(3)))


def test_the_table_of_methods_names_what_each_needs() -> None:
    assert inputs_of(METHODS["l1-wavelet"]) == ("likelihood",)
    assert inputs_of(METHODS["rss"]) == ("scan",)
    for method in METHODS.values():
        assert inputs_of(method)
        assert (method.__doc__ or "").strip()
