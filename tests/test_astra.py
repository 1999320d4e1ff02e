"""The X-ray projector against astra, and astra as its backend."""

import sys

import numpy as np
import pytest
import torch
from test_ct import ANGLES, F64, GEOMETRIES, Ellipse, fan
from torch import Tensor

from operators.ct import FanBeam, Geometry, Grid, ParallelBeam, XRay


def astra_sinogram(name: str, geometry: dict[str, object], volume: dict[str, object], image: Tensor) -> Tensor:
    """With y upwards, as astra has it: rows the other way round."""
    import astra

    projector = astra.create_projector(name, geometry, volume)
    _, sinogram = astra.create_sino(np.ascontiguousarray(image.flip(0).numpy(), np.float32), projector)
    return torch.from_numpy(sinogram).double()


@pytest.mark.parametrize("rough", [False, True], ids=["ellipse", "noise"])
def test_parallel_agrees_with_astra(rough: bool) -> None:
    """The same method in single precision, also where the image changes from pixel to pixel."""
    astra = pytest.importorskip("astra", reason="astra-toolbox is not installed")
    grid = Grid((60, 70), 0.8)
    image = Ellipse(0).image(grid, 4)
    if rough:
        image *= torch.rand(grid.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    geometry = ParallelBeam(ANGLES, 90, 0.9)
    volume = astra.create_vol_geom(60, 70, -28, 28, -24, 24)
    theirs = astra_sinogram("linear", astra.create_proj_geom("parallel", 0.9, 90, ANGLES.numpy()), volume, image)
    ours = XRay(geometry, grid, dtype=F64)(image)
    assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_fan_agrees_with_astra() -> None:
    """Another method, lengths within square pixels: on a smooth image they differ by the discretisation alone."""
    astra = pytest.importorskip("astra", reason="astra-toolbox is not installed")
    grid = Grid((96, 112), 0.5)
    image = Ellipse(2).image(grid, 1)
    geometry = FanBeam(ANGLES, 90, 1.8, 90.0, 170.0)
    volume = astra.create_vol_geom(96, 112, -28, 28, -24, 24)
    described = astra.create_proj_geom("fanflat", 1.8, 90, ANGLES.numpy(), 90.0, 80.0)
    theirs = astra_sinogram("line_fanflat", described, volume, image)
    ours = XRay(geometry, grid, dtype=F64)(image)
    assert (ours - theirs).norm() <= 5e-3 * theirs.norm()


@pytest.fixture
def astra_installed() -> None:
    pytest.importorskip("astra", reason="astra-toolbox is not installed")


FLAT = [(name, geometry) for name, geometry in GEOMETRIES if name != "curved fan"]
each_flat = pytest.mark.parametrize("geometry", [g for _, g in FLAT], ids=[name for name, _ in FLAT])


@pytest.mark.usefixtures("astra_installed")
@each_flat
def test_backends_agree(geometry: Geometry) -> None:
    """Where the method is the same, on noise: astra places rays to 1e-5 of a pixel, in single precision (1.2e-5 found).
    Where it is not, on a smooth image: to the discretisation."""
    grid = Grid((120, 140), 0.4, (3.0, -4.0))
    image = Ellipse(2).image(grid, 1)
    if not geometry.has_source:
        image = torch.rand(grid.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    ours = XRay(geometry, grid, dtype=F64)(image)
    theirs = XRay(geometry, grid, backend="astra")(image.float())
    assert (ours - theirs).norm() <= (5e-3 if geometry.has_source else 1e-4) * ours.norm()


@pytest.mark.usefixtures("astra_installed")
@each_flat
def test_astra_has_its_own_adjoint(geometry: Geometry) -> None:
    A = XRay(geometry, Grid((50, 64), 1.1, (3.0, -4.0)), backend="astra")
    generator = torch.Generator().manual_seed(0)
    x, y = A.domain.randn(2, generator=generator), A.codomain.randn(2, generator=generator)
    Ax, Hy = A(x).double(), A.H(y).double()
    difference = (Ax * y).sum((1, 2)) - (x * Hy).sum((1, 2))
    assert (difference.abs() <= 1e-6 * Ax.norm(dim=(1, 2)) * y.double().norm(dim=(1, 2))).all()
    # First and second derivatives, and tensors that are not laid out in rows.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(A(x).square().sum() / 2, x, create_graph=True)
    assert torch.allclose(gradient, A.H(A(x.detach())))
    (product,) = torch.autograd.grad((gradient * x.detach()).sum(), x)
    assert torch.allclose(product, gradient)
    assert torch.equal(A(x.detach().mT.contiguous().mT), A(x.detach()))
    assert A(x.detach()[:0]).shape == (0, *A.codomain.shape)


@pytest.mark.usefixtures("astra_installed")
def test_what_astra_cannot_do_is_refused() -> None:
    grid = Grid((50, 64))
    with pytest.raises(ValueError, match="expected a flat detector, got a curved one"):
        XRay(fan(curved=True), grid, backend="astra")
    with pytest.raises(ValueError, match=r"expected square pixels, got pixel_size \(1\.0, 1\.1\) mm"):
        XRay(fan(), Grid((50, 64), (1.0, 1.1)), backend="astra")
    with pytest.raises(ValueError, match=r"expected torch\.float32 on the cpu, got torch\.float64 on cpu"):
        XRay(fan(), grid, dtype=F64, backend="astra")
    with pytest.raises(ValueError, match="no ray meets the image grid"):
        XRay(ParallelBeam(ANGLES, 10, 1.0, 500.0), grid, backend="astra")
    with pytest.raises(ValueError, match=r"backend: expected one of \('joseph', 'astra'\), got 'tigre'"):
        XRay(fan(), grid, backend="tigre")  # type: ignore[arg-type]


def test_without_astra_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "astra", None)
    with pytest.raises(ImportError, match=r"pip install 'tweedie-recon\[astra\]'"):
        XRay(fan(), Grid((50, 64)), backend="astra")
