"""Iterative methods for CT against dense matrices, conditions of optimality, and astra."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from operators.basic import FiniteDifference
from operators.ct import Grid, ParallelBeam, ViewVectors, XRay
from operators.linop import Matrix
from recon.ct import PreparedCT, likelihood
from recon.errors import InputError
from recon.likelihood import Gaussian, PoissonTransmission
from recon.methods import METHODS, scan_of
from recon.methods.classical import image_noise, object_curvature, total_variation
from recon.methods.fbp import fbp, fill
from recon.methods.penalised import EdgePreserving, penalty_of, pwls, transmission
from recon.methods.sart import os_sart, sirt
from recon.methods.subsets import bit_reversed, ordered_subsets
from recon.solvers import pdhg, project_ball

F64 = torch.float64
CT = ["fbp", "sirt", "os-sart", "pwls", "transmission"]


def scan(n: int = 6, views: int = 9, *, photons: float = 2e4, background: float = 0.0, seed: int = 0) -> PreparedCT:
    """Two slices of a rough object that takes most of the photons, seen by as many views; in double precision."""
    generator = torch.Generator().manual_seed(seed)
    geometry = ParallelBeam(math.pi * torch.arange(views, dtype=F64) / views, n + 4, 1.0, 0.2)
    grid = Grid((n, n))
    x = torch.rand(2, n, n, dtype=F64, generator=generator)
    x[:, :2] = 0.0
    expected = photons * torch.exp(-0.4 * XRay(geometry, grid, dtype=F64)(x))
    counts = torch.poisson(expected + background, generator=generator)
    net = (counts - background).clamp(min=0.5)
    return PreparedCT(
        line_integrals=torch.log(photons / net),
        weights=net**2 / counts.clamp(min=1),
        geometry=geometry,
        grid=grid,
        scale=0.4,
        counts=counts,
        blank=torch.full_like(counts, photons),
        background=torch.full_like(counts, background),
    )


def dense(given: PreparedCT) -> Tensor:
    """(rays, pixels), scale included."""
    n = math.prod(given.grid.shape)
    pixels = torch.eye(n, dtype=F64).reshape(n, *given.grid.shape)
    return given.scale * XRay(given.geometry, given.grid, dtype=F64)(pixels).flatten(1).T


def test_cgls_goes_to_weighted_least_squares() -> None:
    given = scan()
    A, root = dense(given), given.weights.sqrt().flatten(1)
    expected = torch.stack(
        [
            torch.linalg.lstsq(w[:, None] * A, w * p).solution
            for w, p in zip(root, given.line_integrals.flatten(1), strict=True)
        ]
    )
    found = METHODS["cgls"](likelihood(given), iterations=300)
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)  # the condition number squared, in double precision


def test_sirt_goes_to_least_squares_weighted_by_its_rows() -> None:
    given = replace(scan(4, 12), grid=Grid((4, 4)))
    A, p = dense(given), given.line_integrals.flatten(1)
    rows = A.sum(1)
    root = torch.where(rows > 0, 1 / rows.clamp(min=1e-9), 0.0).sqrt()
    expected = torch.linalg.lstsq(root[:, None] * A, (root * p).T).solution.T
    found = sirt(given, iterations=2000, nonnegative=False)
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)
    free, kept = (sirt(given, iterations=20, nonnegative=flag) for flag in (False, True))
    assert free.min() < 0
    assert kept.min() == 0


def test_os_sart_is_its_formula() -> None:
    given = scan(views=8)
    A, p = dense(given).unflatten(0, (8, -1)), given.line_integrals
    x = torch.zeros(2, 36, dtype=F64)
    for step in (0.9, 0.9 / 1.2):
        for first in (0, 2, 1, 3):  # bit-reversed
            part, data = A[first::4].flatten(0, 1), p[:, first::4].flatten(1)
            rows, columns = part.sum(1), part.sum(0)
            scaled = torch.where(rows > 0, (data - x @ part.T) / rows, 0.0)
            x = (x + step * (scaled @ part) / columns).clamp(min=0)
    found = os_sart(given, subset_views=2, relaxation=0.9, decay=0.2, iterations=2)
    assert torch.allclose(found.flatten(1), x, atol=1e-12)
    once = os_sart(given, subset_views=0, decay=0.0, iterations=7)
    assert torch.allclose(once, sirt(given, iterations=7), atol=1e-12)


def test_dead_bins_do_not_count() -> None:
    given = scan()
    weights = given.weights.clone()
    weights[:, :, 5] = 0
    spoiled = given.line_integrals.clone()
    spoiled[:, :, 5] = 77.0
    zeroed = replace(given, weights=weights)
    for method in (sirt, os_sart, pwls, fbp):
        expected, found = method(zeroed), method(replace(zeroed, line_integrals=spoiled))
        assert torch.allclose(found, expected, atol=1e-12), method.__name__


def test_subsets_share_out_the_views() -> None:
    assert bit_reversed(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert sorted(bit_reversed(11)) == list(range(11))
    given = scan(views=23)
    subsets = ordered_subsets(given, 5)
    assert len(subsets) == 5
    assert torch.cat([s.views for s in subsets]).sort().values.tolist() == list(range(23))
    x = torch.rand(2, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    (whole,) = ordered_subsets(given, 0)
    for s in subsets:
        assert torch.allclose(s.A(x), s.of(whole.A(x)), atol=1e-14)
    assert len(ordered_subsets(given, 100)) == 1


def test_the_penalty_its_gradient_and_its_parabolas() -> None:
    penalty = EdgePreserving(0.7, 0.1)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 5, 4, dtype=F64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(penalty.value, x)
    (gradient,) = torch.autograd.grad(penalty.value(x).sum(), x)
    assert torch.allclose(penalty.grad(x.detach()), gradient, atol=1e-12)
    above = penalty.value(x) + ((y - x) * gradient).sum((1, 2)) + (penalty.curvature(x) * (y - x) ** 2 / 2).sum((1, 2))
    assert (penalty.value(y) <= above).all()
    pair = torch.tensor([[1.0, 3.0]], dtype=F64)  # two pixels, one pair
    assert penalty.value(pair) == pytest.approx(0.7 * 0.01 * (math.sqrt(1 + 400) - 1))


def unmet(x: Tensor, gradient: Tensor, size: Tensor) -> float:
    """How far from a minimum over x >= 0: the gradient where x > 0, its negative part where x = 0."""
    return float(torch.where(x > 0, gradient.abs(), (-gradient).clamp(min=0)).max() / size.max())


@pytest.mark.parametrize("subset_views", [0, 3])
def test_pwls_ends_at_its_minimum(subset_views: int) -> None:
    given = scan()
    x = pwls(given, iterations=1500, subset_views=subset_views)
    term, penalty = likelihood(given), penalty_of(given, 0.02, 0.005)
    assert unmet(x, term.grad(x) + penalty.grad(x), term.backprojection) < 1e-6
    assert 0 < int((x == 0).sum()) < x.numel() / 2


def problem(given: PreparedCT) -> PoissonTransmission:
    A = given.scale * XRay(given.geometry, given.grid, dtype=F64)
    return PoissonTransmission(A, given.counts, given.blank, given.background)


def test_transmission_likelihood_and_its_gradient() -> None:
    """The nll is that of Poisson's law but for a constant, and its gradient its derivative."""
    given = scan(4, 5, photons=200.0, background=3.0)
    term = problem(given)
    x, y = (
        torch.rand(2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in (1, 2)
    )

    def law(z: Tensor) -> Tensor:
        mean = given.blank * torch.exp(-term.A(z)) + given.background
        return -torch.distributions.Poisson(mean).log_prob(given.counts).sum((1, 2))

    assert torch.allclose(term.nll(x) - term.nll(y), law(x) - law(y), rtol=1e-9)
    assert torch.autograd.gradcheck(term.nll, x)
    (gradient,) = torch.autograd.grad(term.nll(x).sum(), x)
    assert torch.allclose(term.grad(x), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("background", [0.0, 20.0])
def test_parabolas_touch_and_lie_above(background: float) -> None:
    """Of curvature(l), at any l >= 0, over all l' >= 0; 1e-9 is rounding."""
    lines = torch.linspace(0, 9, 91, dtype=F64)
    for count in (0.0, 1.0, 50.0, 1000.0, 3000.0):
        full = torch.full_like(lines, 1000.0)
        A = XRay(ParallelBeam(torch.zeros(1, dtype=F64), 91), Grid((1, 91)), dtype=F64)
        term = PoissonTransmission(A, *(v[None] for v in (full * 0 + count, full, full * 0 + background)))

        def h(t: Tensor, count: float = count) -> Tensor:
            mean = 1000 * torch.exp(-t) + background
            return mean - torch.xlogy(torch.full_like(mean, count), mean)

        slope, curvature = term.slope(lines[None])[0], term.curvature(lines[None])[0]
        step = lines[:, None] - lines
        assert (h(lines)[:, None] <= h(lines) + slope * step + curvature * step**2 / 2 + 1e-9 * 3e4).all()


def test_transmission_never_gets_worse_and_ends_at_its_minimum() -> None:
    given = scan(photons=300.0, background=5.0)
    term, penalty = problem(given), penalty_of(given, 0.02, 0.005)
    objective: list[float] = []
    x = transmission(
        given, iterations=600, callback=lambda _, x: objective.append(float((term.nll(x) + penalty.value(x)).sum()))
    )
    assert (np.diff(objective) <= 1e-9 * objective[0]).all()
    assert unmet(x, term.grad(x) + penalty.grad(x), (term.A.adjoint(given.counts))) < 1e-4  # steps get short
    subsets = transmission(given, iterations=30, subset_views=3)
    assert (subsets - x).norm() < 0.2 * x.norm()  # beside the minimum


def test_transmission_counts_what_logarithms_lose() -> None:
    """Where 2 photons of a bin are left, with no noise put in: counts are their own mean, and the truth is the best."""
    given = scan(4, 12, photons=5.0)
    truth = torch.rand(2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(3))
    term = problem(given)
    exact = PoissonTransmission(term.A, given.blank * torch.exp(-term.A(truth)), given.blank, given.background)
    assert exact.nll(truth).abs().max() < 1e-12
    assert exact.grad(truth).abs().max() < 1e-12


def test_the_unit_of_the_penalties_is_the_noise_in_the_object() -> None:
    """Pixels without an object do not count, those of it by the inverse of their curvature."""
    curvature = torch.tensor([1.0, 4.0, 100.0])
    assert object_curvature(curvature, torch.tensor([0.0, 4.0, 0.0])) == pytest.approx(4)
    assert object_curvature(curvature, torch.tensor([1.0, 4.0, -9.0])) == pytest.approx(2 / (1 + 1 / 4))
    assert object_curvature(curvature, torch.zeros(3)) == pytest.approx(3 / (1 + 1 / 4 + 1 / 100))
    prepared = scan(16, 8)
    given, dtype = likelihood(prepared), prepared.weights.dtype
    data = XRay(prepared.geometry, prepared.grid, dtype=dtype)
    of_pixels = data.adjoint(prepared.weights * data(torch.ones(prepared.grid.shape, dtype=dtype)))
    expected = object_curvature(of_pixels, data.adjoint(prepared.weights * prepared.line_integrals))
    expected *= prepared.scale**2
    assert image_noise(given) ** -2 == pytest.approx(expected, rel=1e-4)
    assert image_noise(given) > 1.1 / given.A.norm()
    assert penalty_of(prepared, 0.5, 0.1).weight == pytest.approx(0.5 * expected, rel=1e-5)
    # Three times as loud data have a third of the noise.
    louder = Gaussian(3.0 * given.A, 3.0 * given.y, curvature=9.0 * given.curvature)  # type: ignore[operator]
    assert image_noise(given) == pytest.approx(3 * image_noise(louder), rel=1e-5)


def test_total_variation_of_complex_images_may_know_their_curvature() -> None:
    A = Matrix(torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.complex128))
    y = torch.tensor([2.0, 2.0j], dtype=torch.complex128)
    known = Gaussian(A, y, curvature=torch.tensor([4.0, 4.0]).double())
    assert torch.allclose(total_variation(known), total_variation(Gaussian(A, y)), rtol=1e-6)


def test_total_variation_of_attenuation_ends_at_its_minimum_and_is_not_negative() -> None:
    """The primal-dual method, which splits the problem in another way, finds nothing lower."""
    given = likelihood(scan(16, 8))
    D, weight = FiniteDifference(given.A.domain), 0.1 / image_noise(given)
    x = total_variation(given)
    assert x.min() == 0
    other = pdhg(
        given.grad,
        given.A.norm() ** 2,
        D,
        math.sqrt(8),
        lambda u: project_ball(u, weight, -4),
        torch.zeros_like(x),
        iterations=1000,
        project=torch.relu,
        ratio=0.15,
    )
    by_default, expected = (
        float((given.nll(image) + weight * D(image).norm(dim=-4).sum((-3, -2, -1))).sum()) for image in (x, other)
    )
    assert by_default < 1.001 * expected


def test_the_curvature_of_the_likelihood_preconditions_its_solve() -> None:
    """The same image in the end, and much nearer to it after few iterations."""
    given = likelihood(scan(16, 8))
    plain = Gaussian(given.A, given.y)
    v = torch.zeros_like(given.backprojection)
    expected = plain.solve(v, 1.0, iterations=3000, tolerance=1e-12)
    assert torch.allclose(given.solve(v, 1.0, iterations=3000, tolerance=1e-12), expected, atol=1e-6)
    few, without = (likely.nll(likely.solve(v, 1.0, iterations=5)).sum() for likely in (given, plain))
    assert few < 0.8 * without


def test_unknown_bins_are_interpolated() -> None:
    values = torch.tensor([[9.0, 1.0, 9.0, 9.0, 4.0, 5.0, 9.0], [9.0] * 7], dtype=F64)
    known = torch.tensor([[False, True, False, False, True, True, False], [False] * 7])
    assert torch.allclose(fill(values, known), torch.tensor([[1.0, 1, 2, 3, 4, 5, 5], [0.0] * 7], dtype=F64))


def test_geometries_without_an_inversion_formula_start_from_zero() -> None:
    given = scan()
    points, directions = given.geometry.rays()
    vectors = ViewVectors(points.mean(1), points[:, 1] - points[:, 0], points.shape[1], direction=directions[:, 0])
    same = replace(given, geometry=vectors)
    assert torch.allclose(pwls(same, iterations=1500), pwls(given, iterations=1500), atol=1e-5)
    with pytest.raises(ValueError, match="use an iterative method"):
        fbp(same)


@pytest.mark.parametrize("name", CT)
def test_other_scans_are_refused_by_name(name: str) -> None:
    assert scan_of(METHODS[name]) == "PreparedCT"
    with pytest.raises(InputError, match=f"^{name} needs line integrals of a CT scan .PreparedCT., got str"):
        METHODS[name]("a scan of another kind")


def test_options_without_meaning_are_refused() -> None:
    given = scan()
    for relaxation in (0.0, 2.0, 9.0, math.nan):
        with pytest.raises(InputError, match="relaxation above 0 and below 2"):
            os_sart(given, relaxation=relaxation)
    for method in (pwls, transmission):
        with pytest.raises(InputError, match="delta"):
            method(given, delta=0.0)
    assert torch.equal(sirt(given, iterations=0), torch.zeros(2, 6, 6, dtype=F64))


def test_transmission_needs_counts() -> None:
    given = scan()
    with pytest.raises(InputError, match=r"needs counts, blank and background of a scan.*use pwls"):
        transmission(replace(given, counts=None))
    A, counts = problem(given).A, given.counts
    assert counts is not None
    blank, background = torch.ones_like(counts), torch.zeros_like(counts)
    with pytest.raises(ValueError, match=r"counts of a transmission likelihood: expected finite values, 0 or more"):
        PoissonTransmission(A, -counts, blank, background)
    with pytest.raises(ValueError, match=r"blank or background > 0 where something was counted"):
        PoissonTransmission(A, counts + 1, 0 * blank, background)
    with pytest.raises(ValueError, match="blank of a transmission likelihood"):
        PoissonTransmission(A, counts, blank[..., 1:], background)


def test_sirt_agrees_with_astra() -> None:
    """The same method and projector in single precision."""
    astra = pytest.importorskip("astra", reason="astra-toolbox is not installed")
    given = scan(12, 9)
    angles = given.geometry.angles.numpy()  # type: ignore[attr-defined]
    given = replace(given, geometry=ParallelBeam(torch.from_numpy(angles), 16, 1.0))
    described, volume = astra.create_proj_geom("parallel", 1.0, 16, angles), astra.create_vol_geom(12, 12)
    config = astra.astra_dict("SIRT")
    config["ProjectorId"] = astra.create_projector("linear", described, volume)
    sinogram = np.ascontiguousarray((given.line_integrals[0] / given.scale).numpy(), np.float32)
    config["ProjectionDataId"] = astra.data2d.create("-sino", described, sinogram)
    config["ReconstructionDataId"] = astra.data2d.create("-vol", volume, 0)
    algorithm = astra.algorithm.create(config)
    astra.algorithm.run(algorithm, 20)
    theirs = torch.from_numpy(astra.data2d.get(config["ReconstructionDataId"])).double().flip(0)
    ours = sirt(given, iterations=20, nonnegative=False)[0]
    assert (ours - theirs).norm() < 1e-3 * ours.norm()
