"""Undersampling patterns: their count and their definitions."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from operators import masks
from operators.masks import (
    MASKS,
    acceleration,
    calibration_region,
    equispaced,
    gaussian1d,
    gaussian2d,
    mask_function,
    poisson,
    radial,
    random,
    readout_axes,
    spiral,
)

LINES = ["random", "equispaced", "gaussian1d"]
PLANES = ["gaussian2d", "poisson", "radial", "spiral"]
FASTMRI = [kind for kind in MASKS if kind.startswith("fastmri")]
SHAPES = [(64, 64), (63, 81), (96, 50)]


def expected_samples(kind, shape, factor):
    """The number of samples nearest to the acceleration, halves up."""
    if kind in LINES:
        return math.floor(shape[-1] / factor + 0.5) * shape[0]
    return math.floor(math.prod(shape) / factor + 0.5)


def centre_lines(n, width):
    return slice(n // 2 - width // 2, n // 2 - width // 2 + width)


# Every pattern -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LINES + PLANES)
def test_the_acceleration_is_exact(kind, shape):
    for factor in (1.5, 3, 4, 7.3, 12):
        for seed in range(3):
            mask = MASKS[kind](shape, factor, seed=seed)
            assert mask.shape == shape
            assert mask.dtype == torch.bool
            assert mask.is_contiguous()
            assert int(mask.sum()) == expected_samples(kind, shape, factor)
            assert acceleration(mask) == math.prod(shape) / expected_samples(kind, shape, factor)


@pytest.mark.parametrize("kind", LINES + PLANES)
def test_acceleration_one_samples_everything(kind):
    corners = {"elliptical": False} if kind in ("poisson", "radial", "spiral") else {}
    assert MASKS[kind]((24, 19), 1, **corners).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LINES + PLANES)
def test_the_calibration_is_fully_sampled(kind, shape):
    for width in (0, 1, 6, 7):
        mask = MASKS[kind](shape, 5, calibration=width)
        rows = centre_lines(shape[0], width) if kind in PLANES else slice(None)
        assert mask[rows, centre_lines(shape[1], width)].all()
        assert int(mask.sum()) == expected_samples(kind, shape, 5)
    assert MASKS[kind](shape, 5)[shape[0] // 2, shape[1] // 2]  # the default samples the origin


@pytest.mark.parametrize("kind", list(MASKS))
def test_the_seed_decides_and_no_global_state_is_touched(kind):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    same = [MASKS[kind]((60, 120), 4, seed=3) for _ in range(2)]
    others = [MASKS[kind]((60, 120), 4, seed=seed) for seed in range(4, 12)]
    assert torch.equal(*same)
    assert any(not torch.equal(same[0], other) for other in others)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


def test_default_calibration():
    assert calibration_region(equispaced((10, 320), 4))[1] == centre_lines(320, 26)  # 0.08 of 320
    assert calibration_region(equispaced((10, 320), 8))[1] == centre_lines(320, 13)  # 0.04 of 320
    assert calibration_region(equispaced((10, 64), 8))[1] == centre_lines(64, 4)  # at least 4
    assert equispaced((10, 20), 10)[0, 10]  # of 2 lines one is the origin
    block = radial((230, 180), 8)[centre_lines(230, 24), centre_lines(180, 24)]
    assert block.all()


@pytest.mark.parametrize("kind", LINES + PLANES)
def test_other_axes_are_readout_axes(kind):
    shape = (18, 20, 22)
    if kind in LINES:
        mask, flat = MASKS[kind](shape, 3, axis=1), MASKS[kind]((2, 20), 3)[0]
        assert torch.equal(mask, flat[None, :, None].expand(shape))
        assert readout_axes(mask) == (-3, -1)
    else:
        mask, flat = MASKS[kind](shape, 3, axes=(0, 1)), MASKS[kind]((18, 20), 3)
        assert torch.equal(mask, flat[:, :, None].expand(shape))
        assert readout_axes(mask) == (-1,)


# Each pattern --------------------------------------------------------------------------------------------------------


def test_random_lines_are_equally_likely():
    n, trials = 40, 2000
    counts = sum(random((1, n), 4, calibration=4, seed=seed)[0].double() for seed in range(trials))
    outside = torch.cat([counts[:18], counts[22:]]) / trials
    # 6 of 36 lines: frequency 1/6, standard deviation sqrt(5/36/2000) = 0.0083; 36 lines stay within 4.5 of them
    assert (outside - 1 / 6).abs().max() < 4.5 * math.sqrt(5 / 36 / trials)


@pytest.mark.parametrize("draw", [gaussian1d, gaussian2d])
def test_first_gaussian_draw_has_the_weights_of_the_formula(draw):
    shape, sigma, trials = ((1, 9), 0.25, 4000) if draw is gaussian1d else ((3, 5), 0.25, 4000)
    k = [torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]
    exponent = (k[1] / shape[1])[None] ** 2 + (0 if draw is gaussian1d else (k[0] / shape[0])[:, None] ** 2)
    weight = (-exponent / (2 * sigma**2)).exp()
    weight /= weight.sum()
    one = shape[1] if draw is gaussian1d else math.prod(shape)  # the acceleration that leaves one line or sample
    frequency = sum(draw(shape, one, calibration=0, seed=s, sigma=sigma).double() for s in range(trials)) / trials
    # binomial standard deviation; 4.5 of them for the largest of 15
    assert ((frequency - weight).abs() < 4.5 * (weight * (1 - weight) / trials).sqrt()).all()


@pytest.mark.parametrize(("n", "factor", "width"), [(320, 4, 26), (180, 4, 0), (181, 3.7, 11), (64, 8, 4), (7, 3, 1)])
def test_equispaced_lines_at_every_offset(n, factor, width):
    count = math.floor(n / factor + 0.5)
    outer = torch.cat([torch.arange(n)[: n // 2 - width // 2], torch.arange(n)[n // 2 - width // 2 + width :]])
    spacing = len(outer) / (count - width)
    patterns = set()
    for offset in range(math.ceil(spacing)):
        mask = equispaced((1, n), factor, calibration=width, offset=offset)[0]
        assert int(mask.sum()) == count
        numbers = mask[outer].nonzero().flatten()
        gaps = torch.diff(numbers, append=numbers[:1] + len(outer))
        assert set(gaps.tolist()) <= {math.floor(spacing), math.ceil(spacing)}
        patterns.add(tuple(numbers.tolist()))
    assert len(patterns) == math.ceil(spacing)


def test_equispaced_without_calibration_is_the_plain_comb():
    for offset in range(4):
        assert equispaced((1, 64), 4, calibration=0, offset=offset)[0].nonzero().flatten().tolist() == list(
            range(offset, 64, 4)
        )


def squared_distances(points):
    y, x = points.unbind(-1)
    return (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2


def test_thrown_discs_keep_their_distance_and_leave_no_room():
    grid = (23, 31)
    generator = torch.Generator().manual_seed(0)
    squares = torch.randint(1, 40, grid, generator=generator)
    order = torch.randperm(squares.numel(), generator=generator)[:600].tolist()
    taken = masks._throw(squares, order)
    visited = torch.tensor(order)
    points = torch.stack([visited // grid[1], visited % grid[1]], dim=1)
    distance, needed = squared_distances(points), squares.flatten()[visited]
    is_taken = torch.isin(visited, torch.tensor(taken))
    earlier = torch.ones(600, 600).tril(-1).bool() & is_taken  # [later, earlier], the earlier one taken
    closed = (earlier & (distance < needed)).any(dim=1)
    assert torch.equal(is_taken, ~closed)


def test_distances_are_rounded_to_those_of_a_grid():
    wanted = torch.tensor([1.0, 1.2, math.sqrt(2), 1.9, 2.1, 3.05, 7.7], dtype=torch.float64)
    rounded = masks._round_to_lattice(wanted.expand(20000, -1), torch.rand(20000, 7, dtype=torch.float64))
    neighbours = [(1, 2), (1, 2), (2, 4), (2, 4), (4, 5), (9, 10), (58, 61)]
    for d, squares, (below, above) in zip(wanted, rounded.T, neighbours, strict=True):
        assert set(squares.tolist()) <= {below, above}
        # at most 1/2 between the two inverse squares, of which the mean of 20000 has a deviation of 0.25 / sqrt(20000)
        assert float((1 / squares).mean()) == pytest.approx(1 / float(d) ** 2, abs=0.008 * (1 / below - 1 / above))


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_poisson_discs_have_the_radius_and_the_density_of_the_formula(power, factor):
    shape, block = (120, 100), (centre_lines(120, 8), centre_lines(100, 8))
    ky, kx = torch.arange(120.0)[:, None] - 60, torch.arange(100.0) - 50
    rho = torch.hypot(2 * ky / 120, 2 * kx / 100)
    free = rho <= 1
    free[block] = False
    mask = poisson(shape, factor, calibration=8, power=power)
    assert not (mask & (rho > 1)).any()
    mask[block] = False

    # Random discs of diameter d fill a plane at 0.697 / d^2 (jamming 0.547 of its area), d(k) = a rho^(power / 2):
    # `a` is the one that explains the count. Grid and rim shift it by some per cent, hence 0.93.
    scales = torch.linspace(0.5, 8, 300)
    model = [(0.697 / (a**2 * rho[free] ** power)).clamp(max=1) for a in scales]
    best = min(range(300), key=lambda i: abs(float(model[i].sum()) - int(mask.sum())))
    d = (scales[best] * rho ** (power / 2)).clamp(min=1)[mask] * 0.93
    side = torch.arange(20)
    squares = (side[:, None] ** 2 + side**2).unique()[1:]
    floor = squares[(torch.searchsorted(squares, d**2, right=True) - 1).clamp(min=0)]  # as two grid points can be
    distance = squared_distances(mask.nonzero().float()).fill_diagonal_(10**6)
    assert (distance >= torch.minimum(floor[:, None], floor)).all()

    for inner in (0.3, 0.5, 0.7):  # a ring holds 100 samples or more, evenly spread: some per cent, and those of `a`
        ring = (rho[free] >= inner) & (rho[free] < inner + 0.2)
        assert int(mask[free][ring].sum()) == pytest.approx(float(model[best][ring].sum()), rel=0.15)


def test_poisson_is_quick():
    begin = time.process_time()
    poisson((256, 256), 4)
    assert time.process_time() - begin < 1.0  # 0.2 s of one core


def nearest_curve(shape, curves):
    """Distance in samples of every grid point from the curves, given as finely spaced points (rho, phi)."""
    ny, nx = shape
    rho, phi = curves
    y, x = rho * ny / 2 * phi.sin(), rho * nx / 2 * phi.cos()
    ky, kx = torch.meshgrid(torch.arange(ny) - ny // 2, torch.arange(nx) - nx // 2, indexing="ij")
    distance, _ = KDTree(torch.stack([y, x], dim=1)).query(torch.stack([ky, kx], dim=-1).reshape(-1, 2))
    return torch.from_numpy(distance).reshape(shape)


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_radial_samples_lie_on_equally_spaced_spokes(angle):
    shape = (64, 48)
    mask = radial(shape, 6, calibration=0, angle=angle)
    r = torch.linspace(-1, 1, 400, dtype=torch.float64)
    # The number of spokes is not part of the interface: one number explains the mask.
    fits = []
    for spokes in range(2, 40):
        phi = angle + torch.arange(spokes, dtype=torch.float64) * math.pi / spokes
        near = nearest_curve(shape, (r.repeat(spokes), phi.repeat_interleave(400))) <= 0.5
        fits.append(float((mask & near).sum() / (mask | near).sum()))
    assert max(fits) > 0.9  # up to one spoke of points at the edge of the half sample is left out to hit the count
    assert sorted(fits)[-2] < 0.7


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_spiral_samples_lie_on_a_spiral(power):
    shape = (64, 48)
    mask = spiral(shape, 6, calibration=0, angle=0.3, power=power)
    tau = torch.linspace(0, 1, 6000, dtype=torch.float64)
    fits = []
    for turns in torch.arange(3, 9, 0.05):
        near = nearest_curve(shape, (tau**power, 0.3 + 2 * math.pi * turns * tau)) <= 0.5
        fits.append(float((mask & near).sum() / (mask | near).sum()))
    assert max(fits) > 0.9


# The challenge's own patterns ----------------------------------------------------------------------------------------

PACKAGE = {
    "fastmri-random": "RandomMaskFunc",
    "fastmri-equispaced": "EquiSpacedMaskFunc",
    "fastmri-equispaced-fraction": "EquispacedMaskFractionFunc",
    "fastmri-magic": "MagicMaskFunc",
    "fastmri-magic-fraction": "MagicMaskFractionFunc",
}


@pytest.mark.parametrize("kind", list(PACKAGE))
def test_fastmri_patterns_equal_the_package(kind):
    subsample = pytest.importorskip("fastmri.data.subsample", reason="the fastmri package is not installed")
    compared = 0
    for n in (32, 61, 96, 170, 218, 320, 368, 372, 396, 640):
        for factor, fraction in ((2, 0.16), (4, 0.08), (5, 0.06), (6, 0.06), (8, 0.04), (10, 0.03), (12, 0.025)):
            package = getattr(subsample, PACKAGE[kind])([fraction], [factor])
            choices = [(seed, None) for seed in range(10)]
            if kind != "fastmri-random":
                choices += [(0, offset) for offset in range(factor + 2)]
            for seed, offset in choices:
                theirs = package((1, n, 1), offset=offset, seed=seed)[0].flatten().bool()
                fixed = {} if kind == "fastmri-random" else {"offset": offset}
                ours = MASKS[kind]((1, n), factor, calibration=round(n * fraction), seed=seed, **fixed)[0]
                assert torch.equal(ours, theirs), (n, factor, seed, offset)
                compared += 1
    assert compared >= 700


@pytest.mark.parametrize("kind", list(PACKAGE))
def test_fastmri_defaults_are_the_challenge_settings(kind):
    for factor, fraction in ((4, 0.08), (8, 0.04)):
        ours = MASKS[kind]((3, 368), factor, seed=7)
        assert torch.equal(ours, MASKS[kind]((3, 368), factor, calibration=round(368 * fraction), seed=7))
        assert readout_axes(ours) == (-2,)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_unknown_kind_lists_the_valid_ones():
    assert mask_function("poisson") is poisson
    with pytest.raises(ValueError, match=r"'halton'.*random, equispaced.*fastmri-magic-fraction"):
        mask_function("halton")


@pytest.mark.parametrize("kind", list(MASKS))
def test_bad_input_is_refused(kind):
    make = MASKS[kind]
    for factor in (0.5, 0, -4, math.nan, math.inf):
        with pytest.raises(ValueError, match="acceleration of 1 or more"):
            make((64, 64), factor)
    with pytest.raises(ValueError, match=r"acceleration 10000 leaves nothing of \d+; lower it"):
        make((64, 64), 10000)
    with pytest.raises(ValueError, match="calibration of 0 to 64 lines"):
        make((64, 64), 2, calibration=65)
    with pytest.raises(ValueError, match="calibration of 0 to 64 lines"):
        make((64, 64), 2, calibration=-1)
    if kind in ("fastmri-equispaced", "fastmri-magic"):  # the calibration is not counted
        assert make((64, 64), 8, calibration=40)[:, centre_lines(64, 40)].all()
    else:
        with pytest.raises(ValueError, match=r"calibration of 40 (lines )?(does not fit|leaves none)"):
            make((64, 64), 8, calibration=40)
    for shape in ((), (0, 8), (8.0, 0)):
        with pytest.raises(ValueError, match="expected a shape"):
            make(shape, 2)


def test_bad_keywords_are_refused():
    with pytest.raises(ValueError, match="phase-encoding axis"):
        random((8, 8), 2, axis=2)
    with pytest.raises(ValueError, match="two rising axes"):
        poisson((8, 8), 2, axes=(-1, -2))
    with pytest.raises(ValueError, match="two rising axes"):
        gaussian2d((8,), 2)
    with pytest.raises(ValueError, match="sigma above 0"):
        gaussian1d((8, 8), 2, sigma=0.0)
    with pytest.raises(ValueError, match="power above 0"):
        spiral((8, 8), 2, power=0.0)
    with pytest.raises(ValueError, match=r"density exponent of 0 or more"):
        poisson((8, 8), 2, power=-1.0)
    with pytest.raises(ValueError, match=r"the ellipse holds .* elliptical=False"):
        poisson((64, 64), 1.1)
    with pytest.raises(ValueError, match="whole number"):
        MASKS["fastmri-equispaced"]((8, 64), 4.5)
    with pytest.raises(ValueError, match="offset of 0 or more"):
        MASKS["fastmri-magic"]((8, 64), 4, offset=-1)
