"""Geometries and the X-ray projector against analytic line integrals and each other."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from operators.ct import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors, XRay

F64 = torch.float64
ANGLES = torch.linspace(0.1, 6.3, 24, dtype=F64)


def parallel(bins: int = 80, bin_size: float = 1.0, offset: float = 2.3) -> ParallelBeam:
    return ParallelBeam(ANGLES, bins, bin_size, offset)


def fan(curved: bool = False, bins: int = 80, bin_size: float = 2.1) -> FanBeam:
    return FanBeam(ANGLES, bins, bin_size, 90.0, 170.0, curved, detector_offset=4.0, rotation_offset=-3.0)


def as_vectors(geometry: Geometry) -> ViewVectors:
    """The same flat detector, from the ends of its rays."""
    points, directions = geometry.rays()
    ends = points + directions if geometry.has_source else points
    middle, step = (ends[:, 0] + ends[:, -1]) / 2, (ends[:, 1] - ends[:, 0])
    if geometry.has_source:
        return ViewVectors(middle, step, geometry.bins, source=points[:, 0])
    return ViewVectors(middle, step, geometry.bins, direction=directions[:, 0])


GEOMETRIES: list[tuple[str, Geometry]] = [
    ("parallel", parallel()),
    ("flat fan", fan()),
    ("curved fan", fan(curved=True)),
    ("vectors", as_vectors(fan())),
    ("parallel vectors", as_vectors(parallel())),
]
each = pytest.mark.parametrize("geometry", [g for _, g in GEOMETRIES], ids=[name for name, _ in GEOMETRIES])


# Analytic line integrals


class Ellipse:
    """(1 - r^2)^power inside an ellipse, r its normalised radius: 0 is a disc, 2 is smooth at its edge."""

    def __init__(self, power: int) -> None:
        self.power = power
        self.centre = torch.tensor([5.0, -7.0], dtype=F64)
        self.axes = torch.tensor([14.0, 21.0], dtype=F64)
        self.turn = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]], dtype=F64)

    def __call__(self, points: Tensor) -> Tensor:
        inside = 1 - ((points - self.centre) @ self.turn / self.axes).square().sum(-1)
        return torch.where(inside > 0, inside.clamp(min=0) ** self.power, 0.0)

    def integrals(self, geometry: Geometry) -> Tensor:
        """Along the line q + t e in normalised coordinates, inside is 1 - r^2 = h - |e|^2 t^2."""
        points, directions = geometry.rays()
        q = (points - self.centre) @ self.turn / self.axes
        e = directions / directions.norm(dim=-1, keepdim=True) @ self.turn / self.axes
        square = e.square().sum(-1)
        h = (1 - q.square().sum(-1) + (q * e).sum(-1) ** 2 / square).clamp(min=0)
        constant = {0: 2.0, 2: 16 / 15}[self.power]  # the integral of (1 - t^2)^power over -1 .. 1
        return constant * h ** (self.power + 0.5) / square.sqrt()

    def image(self, grid: Grid, samples: int) -> Tensor:
        """Each pixel the mean of samples x samples points in it."""
        offsets = (torch.arange(samples, dtype=F64) + 0.5) / samples - 0.5
        rows, columns = (torch.arange(n, dtype=F64)[:, None] + offsets for n in grid.shape)
        points = torch.stack(torch.meshgrid(rows.flatten(), columns.flatten(), indexing="ij"), -1)
        values = self(grid.to_mm(points))
        return values.reshape(grid.shape[0], samples, grid.shape[1], samples).mean((1, 3))


def error(ellipse: Ellipse, geometry: Geometry, pixels: int, samples: int) -> float:
    """Relative, in the root mean square over all rays."""
    grid = Grid((pixels, pixels * 3 // 2), (56 / pixels, 64 / (pixels * 3 // 2)), (3.0, -4.0))
    expected = ellipse.integrals(geometry)
    found = XRay(geometry, grid, dtype=F64)(ellipse.image(grid, samples))
    return float((found - expected).norm() / expected.norm())


@each
def test_smooth_ellipses_to_second_order(geometry: Geometry) -> None:
    """Linear interpolation errs by the square of the pixel, so that halving it divides the error by 4."""
    coarse, middle, fine = (error(Ellipse(2), geometry, n, 1) for n in (32, 64, 128))
    assert fine < 1e-3
    assert coarse / middle == pytest.approx(4, rel=0.15)
    assert middle / fine == pytest.approx(4, rel=0.15)


@each
def test_discs_to_the_order_of_their_edge(geometry: Geometry) -> None:
    """A rim is misplaced by a share of a pixel: on a grid four times finer by a quarter, give or take."""
    coarse, fine = (error(Ellipse(0), geometry, n, 4) for n in (32, 128))
    assert fine < 0.01
    assert coarse / fine == pytest.approx(4, rel=0.2)


def test_line_integrals_have_no_unit() -> None:
    """20 mm of water, 0.02 / mm, is 0.4 whatever the pixels."""
    for size in (0.5, 1.0, (0.8, 1.7)):
        grid = Grid((50, 40), size)
        geometry = ParallelBeam(torch.tensor([0.0, math.pi / 2], dtype=F64), 1)
        image = torch.zeros(grid.shape, dtype=F64)
        sizes = grid.pixel_sizes
        y, x = (round(20 / s) for s in sizes)
        image[:y] = 0.02
        assert XRay(geometry, grid, dtype=F64)(image)[0] == pytest.approx(0.02 * y * sizes[0], rel=1e-12)
        image[:] = 0.0
        image[:, :x] = 0.02
        assert XRay(geometry, grid, dtype=F64)(image)[1] == pytest.approx(0.02 * x * sizes[1], rel=1e-12)


# Conventions


def test_a_point_is_seen_where_the_convention_says() -> None:
    """At s = y sin(angle) + x cos(angle), less the offset of the detector."""
    grid, bins = Grid((41, 41)), 101
    image = torch.zeros(grid.shape, dtype=F64)
    image[20 + 7, 20 - 4] = 1.0
    sinogram = XRay(ParallelBeam(ANGLES, bins, 0.5, 3.0), grid, dtype=F64)(image)
    bin_ = torch.arange(bins, dtype=F64)
    seen = (sinogram * bin_).sum(1) / sinogram.sum(1)
    s = 7 * torch.sin(ANGLES) - 4 * torch.cos(ANGLES)
    assert torch.allclose(seen, (s - 3.0) / 0.5 + 50, atol=0.15)  # weights of a few bins are not quite even


def test_rotation_axis_on_a_bin_is_a_detector_offset() -> None:
    """Turning by half a turn mirrors a parallel sinogram about the bin of the axis."""
    bins, axis, size = 64, 27.5, 1.3
    geometry = ParallelBeam(torch.tensor([0.3, 0.3 + math.pi], dtype=F64), bins, size, ((bins - 1) / 2 - axis) * size)
    expected = Ellipse(2).integrals(geometry)
    mirror = (2 * axis - torch.arange(bins)).long()
    inside = (mirror >= 0) & (mirror < bins)
    assert torch.allclose(expected[0, inside], expected[1, mirror[inside]], atol=1e-12)


def test_a_distant_source_is_a_parallel_beam() -> None:
    """1e7 mm away rays in the grid are parallel to 1e-5; an offset of the axis moves what bins see the other way."""
    grid = Grid((32, 32))
    image = Ellipse(2).image(Grid((32, 32), 2.0), 1)
    for curved in (False, True):
        far = FanBeam(ANGLES, 60, 1.0, 1e7, 1e7, curved, detector_offset=1.5, rotation_offset=4.0)
        near = ParallelBeam(ANGLES, 60, 1.0, 1.5 - 4.0)
        assert torch.allclose(XRay(far, grid, dtype=F64)(image), XRay(near, grid, dtype=F64)(image), atol=1e-3)


def test_a_curved_detector_has_equal_angles_and_a_flat_one_equal_steps() -> None:
    for curved in (False, True):
        geometry = replace(fan(curved), detector_offset=0.0)
        source, direction = geometry.rays()
        assert torch.allclose(source.norm(dim=-1), torch.tensor(math.hypot(90.0, 3.0), dtype=F64))
        central = direction[:, 39:41].mean(1, keepdim=True)
        across = direction[..., 0] * central[..., 1] - direction[..., 1] * central[..., 0]
        angles = torch.atan2(across, (direction * central).sum(-1))
        steps = (170.0 * angles if curved else 170.0 * angles.tan()).diff(dim=-1).abs()
        assert torch.allclose(steps, torch.tensor(2.1, dtype=F64))


@pytest.mark.parametrize("geometry", [parallel(), fan()], ids=["parallel", "fan"])
def test_vectors_are_the_geometries_they_came_from(geometry: Geometry) -> None:
    grid = Grid((30, 34), 1.2)
    image = torch.rand(grid.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    same = as_vectors(geometry)
    assert (same.views, same.bins, same.has_source) == (geometry.views, geometry.bins, geometry.has_source)
    assert torch.allclose(XRay(same, grid, dtype=F64)(image), XRay(geometry, grid, dtype=F64)(image), atol=1e-10)


def test_a_grid_off_the_axis_sees_the_same_object() -> None:
    """Rows and columns cut off, or added, around an object move the centre and nothing else."""
    small, large = Grid((40, 36), (1.0, 1.5)), Grid((50, 40), (1.0, 1.5), (-2.0, 1.5))
    image = torch.rand(small.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (1, 3, 7, 3))
    for _, geometry in GEOMETRIES:
        expected = XRay(geometry, small, dtype=F64)(image)
        assert torch.allclose(XRay(geometry, large, dtype=F64)(padded), expected, atol=1e-10)


def test_pixels_and_mm_are_inverses() -> None:
    grid = Grid((4, 7), (0.5, 2.0), (10.0, -1.0))
    assert torch.equal(grid.to_mm(torch.tensor([1.5, 3.0], dtype=F64)), torch.tensor([10.0, -1.0], dtype=F64))
    points = torch.rand(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(grid.to_pixels(grid.to_mm(points)), points, atol=1e-12)


@each
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-12)])
def test_adjoint_by_the_dot_product(geometry: Geometry, dtype: torch.dtype, tolerance: float) -> None:
    A = XRay(geometry, Grid((50, 64), 1.1), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    x, y = A.domain.randn(2, generator=generator), A.codomain.randn(2, generator=generator)
    Ax, Hy = A(x).double(), A.H(y).double()
    difference = (Ax * y).sum((1, 2)) - (x * Hy).sum((1, 2))
    assert (difference.abs() <= tolerance * Ax.norm(dim=(1, 2)) * y.double().norm(dim=(1, 2))).all()


# Bad input


def test_sinograms_that_do_not_fit_name_their_axis() -> None:
    A = XRay(parallel(bins=50), Grid((20, 20)))
    with pytest.raises(ValueError, match=r"\(23, 50\): axis -2 has 23 views, the geometry 24$"):
        A.H(torch.zeros(23, 50))
    with pytest.raises(ValueError, match=r"axis -1 has 49 bins, the geometry 50$"):
        A.H(torch.zeros(3, 24, 49))
    with pytest.raises(ValueError, match=r"axis -2 has 50 views.*axis -1 has 24 bins.*transpose it with sinogram\.mT"):
        A.H(torch.zeros(50, 24))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., views, bins\), got shape \(50,\)"):
        A.H(torch.zeros(50))
    with pytest.raises(ValueError, match=r"expected dtype torch\.float32"):
        A.H(torch.zeros(24, 50, dtype=F64))
    with pytest.raises(ValueError, match=r"expected trailing axes \(20, 20\)"):
        A(torch.zeros(20, 21))
    assert A.H.H is A


def test_degrees_for_radians_are_warned_about() -> None:
    degrees = torch.arange(0.0, 180.0)
    for make in (lambda a: ParallelBeam(a, 10), lambda a: FanBeam(a, 10, 1.0, 100.0, 200.0)):
        with pytest.warns(UserWarning, match=r"largest is 179.*torch\.deg2rad") as caught:
            make(degrees)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(torch.deg2rad(2 * degrees))


def test_numbers_without_meaning_are_refused() -> None:
    a = ANGLES
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="bin_size: expected a positive number of mm"):
            ParallelBeam(a, 10, value)
        with pytest.raises(ValueError, match="bin_size: expected a positive number of mm"):
            FanBeam(a, 10, value, 100.0, 200.0)
        with pytest.raises(ValueError, match="source_to_axis: expected a positive number of mm"):
            FanBeam(a, 10, 1.0, value, 200.0)
        with pytest.raises(ValueError, match="source_to_detector: expected a positive number of mm"):
            FanBeam(a, 10, 1.0, 100.0, value)
        with pytest.raises(ValueError, match="pixel_size: expected a positive number of mm"):
            Grid((4, 4), (1.0, value))
    with pytest.raises(ValueError, match="bins: expected a positive number"):
        ParallelBeam(a, 0)
    with pytest.raises(ValueError, match="shape of the grid: expected a positive number of pixels, got 0"):
        Grid((0, 4))
    with pytest.raises(ValueError, match=r"beyond the rotation axis, got source_to_detector=100 mm.*swapped"):
        FanBeam(a, 10, 1.0, 200.0, 100.0)
    with pytest.raises(ValueError, match="reaches 143 degrees to one side"):
        FanBeam(a, 501, 1.0, 100.0, 100.0, curved=True)
    for angles in (torch.zeros(0), torch.zeros(2, 2), torch.arange(3), torch.tensor([0.0, math.nan])):
        with pytest.raises(ValueError, match=r"angles: expected finite floating-point radians of shape \(views,\)"):
            ParallelBeam(angles, 10)


def test_vectors_that_do_not_fit_are_refused() -> None:
    one = torch.zeros(3, 2)
    step, source = one + torch.tensor([0.0, 1.0]), one + torch.tensor([9.0, 0.0])
    with pytest.raises(ValueError, match=r"either source .* or direction"):
        ViewVectors(one, step, 5)
    with pytest.raises(ValueError, match=r"either source .* or direction"):
        ViewVectors(one, step, 5, source=source, direction=source)
    with pytest.raises(ValueError, match=r"source: expected one \(y, x\) for each view.*got \(2, 2\)"):
        ViewVectors(one, step, 5, source=source[:2])
    with pytest.raises(ValueError, match="bin_step: expected finite numbers"):
        ViewVectors(one, step * math.nan, 5, source=source)
    with pytest.raises(ValueError, match="in view 0 rays lie along the detector"):
        ViewVectors(one, step, 5, direction=step)
    with pytest.raises(ValueError, match="in view 0 rays lie along the detector"):
        ViewVectors(one, 0 * step, 5, source=source)
    with pytest.raises(ValueError, match="bins: expected a positive number"):
        ViewVectors(one, step, 0, source=source)


def test_geometries_that_miss_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="no ray meets the image grid"):
        XRay(ParallelBeam(ANGLES, 10, 1.0, 500.0), Grid((20, 20)))
    with pytest.raises(ValueError, match="in view 0 the source is inside the image grid"):
        XRay(FanBeam(ANGLES, 10, 1.0, 8.0, 20.0), Grid((20, 20)))
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32 or torch\.float64, got torch\.complex64"):
        XRay(parallel(), Grid((20, 20)), dtype=torch.complex64)


def test_rays_do_not_reach_behind_their_source() -> None:
    """A source beside the grid, with a fan so wide that lines extended backwards would cross a part of it."""
    source = torch.tensor([[-12.0, -12.0]], dtype=F64)
    away = ViewVectors(source * 2, torch.tensor([[1.0, -1.0]], dtype=F64), 41, source=source)
    with pytest.raises(ValueError, match="no ray meets"):
        XRay(away, Grid((20, 20)), dtype=F64)
