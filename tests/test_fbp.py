"""Filtered back-projection against analytic discs and ellipses, and astra."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from operators.ct import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors
from operators.fbp import FILTERS, filtered_back_projection, redundancy, spacing

F64 = torch.float64
CENTRE, AXES, TURN = torch.tensor([4.0, -5.0], dtype=F64), torch.tensor([11.0, 15.0], dtype=F64), 0.4
ROTATION = torch.tensor([[math.cos(TURN), -math.sin(TURN)], [math.sin(TURN), math.cos(TURN)]], dtype=F64)


def radius(points: Tensor) -> Tensor:
    """In the ellipse below 1."""
    return ((points - CENTRE) @ ROTATION / AXES).norm(dim=-1)


def profile(grid: Grid) -> Tensor:
    y, x = (torch.arange(n, dtype=F64) for n in grid.shape)
    return radius(grid.to_mm(torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)))


def integrals(geometry: Geometry, power: int) -> Tensor:
    """Of (1 - r^2)^power in the ellipse: 0 is uniform, 2 smooth at its edge."""
    points, directions = geometry.rays()
    q = (points - CENTRE) @ ROTATION / AXES
    e = directions / directions.norm(dim=-1, keepdim=True) @ ROTATION / AXES
    square = e.square().sum(-1)
    h = (1 - q.square().sum(-1) + (q * e).sum(-1) ** 2 / square).clamp(min=0)
    return {0: 2.0, 2: 16 / 15}[power] * h ** (power + 0.5) / square.sqrt()


def views(n: int, degrees: float = 360.0, first: float = 20.0) -> Tensor:
    """Evenly over a range that they fill: the last is a step before its end."""
    return torch.deg2rad(first + degrees * torch.arange(n, dtype=F64) / n)


def parallel(n: int, bins: int, degrees: float = 180.0) -> ParallelBeam:
    return ParallelBeam(views(n, degrees), bins, 72.0 / bins, 2.3)


def fan(n: int, bins: int, degrees: float = 360.0, curved: bool = False) -> FanBeam:
    """Half a fan of about 27 degrees, detector and axis off the central ray."""
    return FanBeam(views(n, degrees), bins, 166.0 / bins, 90.0, 170.0, curved, detector_offset=4.0, rotation_offset=2.0)


GEOMETRIES = {
    "parallel": lambda n, bins: parallel(n, bins),
    "parallel, full turn": lambda n, bins: parallel(2 * n, bins, 360.0),
    "parallel, 250 degrees": lambda n, bins: parallel(n * 25 // 18, bins, 250.0),
    "flat": lambda n, bins: fan(2 * n, bins),
    "curved": lambda n, bins: fan(2 * n, bins, curved=True),
    "flat, short scan": lambda n, bins: fan(n * 24 // 18, bins, 240.0),
    "curved, short scan": lambda n, bins: fan(n * 24 // 18, bins, 240.0, curved=True),
    "flat, 300 degrees": lambda n, bins: fan(n * 30 // 18, bins, 300.0),
}
each = pytest.mark.parametrize("make", GEOMETRIES.values(), ids=GEOMETRIES)
FIELD = Grid((48, 40), (0.8, 0.9), (2.0, -3.0))


@each
def test_a_uniform_ellipse_has_its_value(make) -> None:
    """0.02 / mm within 1 % inside but at the rim, 0.05 % in the mean; outside are streaks between 90 views."""
    geometry = make(90, 120)
    image = filtered_back_projection(0.02 * integrals(geometry, 0), geometry, FIELD)
    r = profile(FIELD)
    inside, outside = image[r < 0.85], image[(r > 1.2) & (r < 1.6)]
    assert inside.mean() == pytest.approx(0.02, rel=5e-4)
    assert (inside / 0.02 - 1).abs().max() < 0.01
    assert outside.square().mean().sqrt() < 0.03 * 0.02


@each
def test_a_smooth_ellipse_to_second_order_in_the_bins(make) -> None:
    """Bins interpolated linearly: half as wide they err by a quarter."""
    expected = (1 - profile(FIELD) ** 2).clamp(min=0) ** 2

    def error(bins: int) -> float:
        geometry = make(90, bins)
        return float((filtered_back_projection(integrals(geometry, 2), geometry, FIELD) - expected).norm())

    coarse, fine = error(60), error(120)
    assert fine < 4e-3 * expected.norm()
    assert coarse / fine == pytest.approx(4, rel=0.15)


def test_more_views_take_streaks_away() -> None:
    """Between too few views the image is streaks, which more views halve at least."""
    expected = (profile(FIELD) < 1).double()
    for make in (parallel, fan):
        few, more, many = (
            float((filtered_back_projection(integrals(g, 0), g, FIELD) - expected).norm())
            for g in (make(n, 160) for n in (9, 18, 72))
        )
        assert few > 1.5 * more > 2.0 * many


def test_views_count_by_their_spacing() -> None:
    """Twice as dense in one half: the same image, as from golden angles, and from views that are there twice."""
    expected = (1 - profile(FIELD) ** 2).clamp(min=0) ** 2
    dense = torch.cat((views(60, 90.0), views(30, 90.0, 110.0)))
    golden = torch.arange(150, dtype=F64) * math.pi * (math.sqrt(5) - 1) / 2 % math.pi
    for angles in (dense, dense.flip(0), golden, views(90, 180.0).repeat(2), torch.linspace(0, math.pi, 91, dtype=F64)):
        geometry = ParallelBeam(angles, 120, 0.6, 2.3)
        found = filtered_back_projection(integrals(geometry, 2), geometry, FIELD)
        assert (found - expected).norm() < 4e-3 * expected.norm()
    closed = replace(fan(2, 120), angles=torch.linspace(0, 2 * math.pi, 181, dtype=F64))  # first and last are one
    found = filtered_back_projection(integrals(closed, 2), closed, FIELD)
    assert (found - expected).norm() < 4e-3 * expected.norm()


def test_spacing_sums_to_what_was_scanned() -> None:
    for angles, period, total in (
        (views(30, 180.0), math.pi, math.pi),
        (views(30, 60.0), math.pi, math.pi / 3),
        (views(50, 240.0), 2 * math.pi, math.pi * 4 / 3),
        (torch.rand(40, dtype=F64, generator=torch.Generator().manual_seed(0)) * 9, 2 * math.pi, 2 * math.pi),
    ):
        weights, gaps = spacing(angles, period)
        assert weights.sum() + sum(2 * gap.half_width for gap in gaps) == pytest.approx(period)
        assert weights.sum() == pytest.approx(total, rel=1e-9)
        assert (weights >= 0).all()


def test_parker_weights_are_his_and_sum_to_one() -> None:
    """On pi plus the fan they are Parker's formula; on any range the two rays of a line share 1."""
    half = 80 * 1.2 / 2 / 180.0
    n = 230
    scanned = math.pi + 2 * half
    geometry = FanBeam(scanned * (torch.arange(n, dtype=F64) + 0.5) / n, 80, 1.2, 90.0, 180.0, curved=True)
    beta, gamma = geometry.angles[:, None], geometry.positions() / 180.0
    first = torch.sin(math.pi / 4 * beta / (half + gamma)) ** 2
    last = torch.sin(math.pi / 4 * (math.pi + 2 * half - beta) / (half - gamma)) ** 2
    expected = torch.where(beta < 2 * (half + gamma), first, torch.where(beta > math.pi + 2 * gamma, last, 1.0))
    assert torch.allclose(redundancy(geometry), expected, atol=1e-6)
    assert (redundancy(replace(geometry, angles=views(100))) == 0.5).all()
    assert (redundancy(replace(geometry, angles=views(100, 100.0))) == 1).all()  # no line twice
    # The other ray along the line of (beta, gamma) is (beta + pi - 2 gamma, -gamma).
    for degrees in (215.0, 260.0, 330.0):
        step = math.radians(degrees) / 400
        scan = replace(geometry, angles=step * (torch.arange(400, dtype=F64) + 0.5))
        weights = redundancy(scan)
        for bin_ in (0, 13, 40, 79):
            other = (scan.angles + math.pi - 2 * gamma[bin_]) / step - 0.5
            other = torch.where(other > 400, other - 2 * math.pi / step, other)
            known = (other > 1) & (other < 398)
            low = other[known].floor().long()
            partner = torch.lerp(weights[low, 79 - bin_], weights[low + 1, 79 - bin_], other[known] - low)
            assert torch.allclose(weights[known, bin_] + partner, torch.ones_like(partner), atol=2e-3)


@pytest.mark.parametrize("filter", FILTERS)
def test_filters_keep_the_mean_and_smooth_the_rim(filter: str) -> None:
    geometry = parallel(90, 120)
    image = filtered_back_projection(integrals(geometry, 0), geometry, FIELD, filter=filter)
    assert image[profile(FIELD) < 0.8].mean() == pytest.approx(1, rel=2e-3)


def test_smoother_filters_pass_less_noise() -> None:
    noise = torch.randn(90, 120, dtype=F64, generator=torch.Generator().manual_seed(0))
    energy = [float(filtered_back_projection(noise, parallel(90, 120), FIELD, filter=name).norm()) for name in FILTERS]
    assert energy == sorted(energy, reverse=True)
    half = filtered_back_projection(noise, parallel(90, 120), FIELD, cutoff=0.5)
    assert half.norm() < 0.5 * energy[0]  # sqrt(1 / 8), the square of the ramp to half the frequency


def test_batches_are_images_one_by_one_in_any_precision() -> None:
    geometry = fan(40, 60)
    sinograms = torch.rand(2, 3, 40, 60, dtype=F64, generator=torch.Generator().manual_seed(0))
    images = filtered_back_projection(sinograms, geometry, FIELD)
    assert images.shape == (2, 3, *FIELD.shape)
    assert torch.allclose(images[1, 2], filtered_back_projection(sinograms[1, 2], geometry, FIELD), atol=1e-14)
    single = filtered_back_projection(sinograms.float(), geometry, FIELD)
    assert (single - images).norm() < 1e-5 * images.norm()


def test_parallel_agrees_with_astra() -> None:
    """Who goes from bins to pixels by the adjoint of rays: 2 % apart where edges are sharp, 1 % allowed inside."""
    astra = pytest.importorskip("astra", reason="astra-toolbox is not installed")
    grid, geometry = Grid((60, 60), 0.6), ParallelBeam(views(90, 180.0), 100, 0.6)
    sinogram = integrals(geometry, 0)
    volume = astra.create_vol_geom(60, 60, -18, 18, -18, 18)
    described = astra.create_proj_geom("parallel", 0.6, 100, geometry.angles.numpy())
    config = astra.astra_dict("FBP")
    config["ProjectionDataId"] = astra.data2d.create("-sino", described, sinogram.numpy().astype(np.float32))
    config["ReconstructionDataId"] = astra.data2d.create("-vol", volume)
    config["ProjectorId"] = astra.create_projector("linear", described, volume)
    algorithm = astra.algorithm.create(config)
    astra.algorithm.run(algorithm)
    theirs = torch.from_numpy(astra.data2d.get(config["ReconstructionDataId"])).double().flip(0)
    ours = filtered_back_projection(sinogram, geometry, grid)
    assert (ours - theirs).norm() < 0.03 * ours.norm()
    inside = profile(grid) < 0.85
    assert (ours - theirs)[inside].norm() < 0.01 * ours[inside].norm()


def test_bad_input_is_refused() -> None:
    geometry, sinogram = parallel(30, 40), torch.zeros(30, 40)
    with pytest.raises(ValueError, match=r"axis -2 has 29 views, the geometry 30"):
        filtered_back_projection(sinogram[1:], geometry, FIELD)
    with pytest.raises(ValueError, match=r"filter: expected one of ram-lak, shepp-logan.* got 'ramp'"):
        filtered_back_projection(sinogram, geometry, FIELD, filter="ramp")
    for cutoff in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="cutoff: expected 0 < cutoff <= 1"):
            filtered_back_projection(sinogram, geometry, FIELD, cutoff=cutoff)
    one = torch.ones(30, 2)
    vectors = ViewVectors(one, one * torch.tensor([1.0, 0.0]), 40, direction=one * torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="ParallelBeam and FanBeam, got ViewVectors; use an iterative"):
        filtered_back_projection(sinogram, vectors, FIELD)
    with pytest.raises(ValueError, match="beyond the circle of the source at 90 mm"):
        filtered_back_projection(sinogram, fan(30, 40), Grid((100, 100), 2.0))
