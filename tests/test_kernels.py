"""Compiled kernels against plain torch, plain torch against a literal loop, and what happens where there are none."""

import ctypes
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from operators.ct import FanBeam, Geometry, Grid, Joseph, ParallelBeam, ViewVectors, XRay
from operators.kernels import joseph, joseph_adjoint, libraries, reference

ANGLES = torch.linspace(-0.3, 6.2, 11, dtype=torch.float64)
GRID = Grid((13, 17), (1.3, 0.9), (2.0, -1.5))


def circle(radius: float, phase: float) -> Tensor:
    return radius * torch.stack((torch.cos(ANGLES + phase), torch.sin(ANGLES + phase)), -1)


# More bins than a block of the compiled kernel, detectors larger and smaller than the image, rays on both sides of 45
# degrees within a view.
GEOMETRIES: list[tuple[str, Geometry]] = [
    ("parallel", ParallelBeam(ANGLES, 70, 0.4, 1.1)),
    ("parallel, short", ParallelBeam(ANGLES, 5, 1.7)),
    ("parallel, one bin", ParallelBeam(ANGLES, 1)),
    ("fan, flat", FanBeam(ANGLES, 70, 1.3, 18.0, 31.0, detector_offset=2.0, rotation_offset=-1.0)),
    ("fan, curved", FanBeam(ANGLES, 67, 1.2, 18.0, 29.0, curved=True, detector_offset=-2.0, rotation_offset=1.0)),
    ("vectors, source", ViewVectors(circle(-12, 0.1), circle(0.9, 1.5), 30, source=circle(17, 0.0))),
    ("vectors, parallel", ViewVectors(circle(4, 0.1), circle(-0.7, 1.2), 30, direction=circle(3, 0.0))),
]
each = pytest.mark.parametrize("geometry", [g for _, g in GEOMETRIES], ids=[name for name, _ in GEOMETRIES])
needs_compiled = pytest.mark.skipif(
    isinstance(libraries._load_cpu(), str), reason="the C++ kernels are not compiled; install the package with g++"
)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def lines(geometry: Geometry, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    projector = XRay(geometry, GRID, dtype=dtype)._projector
    assert isinstance(projector, Joseph)
    return projector.rays, projector.runs


def literal(geometry: Geometry, image: Tensor) -> Tensor:
    """Ray by ray in mm: at the middle of every row (or column) the image interpolated between two pixels, times the
    length from one to the next."""
    result = torch.zeros(geometry.views, geometry.bins, dtype=torch.float64)
    points, directions = geometry.rays()
    for v in range(geometry.views):
        for b in range(geometry.bins):
            point, direction = points[v, b].tolist(), directions[v, b].tolist()
            steep = [abs(direction[a]) / GRID.pixel_sizes[a] for a in range(2)]
            major = 0 if steep[0] >= steep[1] else 1
            minor = 1 - major
            length = GRID.pixel_sizes[major] * math.hypot(*direction) / abs(direction[major])
            for k in range(GRID.shape[major]):
                at = GRID.centre[major] + (k - (GRID.shape[major] - 1) / 2) * GRID.pixel_sizes[major]
                mm = point[minor] + (at - point[major]) * direction[minor] / direction[major]
                x = (mm - GRID.centre[minor]) / GRID.pixel_sizes[minor] + (GRID.shape[minor] - 1) / 2
                row = image[k] if major == 0 else image[:, k]
                for i in (math.floor(x), math.floor(x) + 1):
                    if 0 <= i < len(row):
                        result[v, b] += length * (1 - abs(x - i)) * row[i]
    return result


@each
def test_plain_torch_is_the_formula(geometry: Geometry) -> None:
    image = randn(*GRID.shape)
    assert torch.allclose(reference.forward(image[None], *lines(geometry))[0], literal(geometry, image), atol=1e-12)


@each
def test_plain_torch_is_its_own_transpose(geometry: Geometry) -> None:
    rays, runs = lines(geometry)
    pixels = math.prod(GRID.shape)
    matrix = reference.forward(torch.eye(pixels, dtype=torch.float64).reshape(pixels, *GRID.shape), rays, runs)
    bins = geometry.views * geometry.bins
    basis = torch.eye(bins, dtype=torch.float64).reshape(bins, geometry.views, geometry.bins)
    adjoint = reference.adjoint(basis, rays, runs, *GRID.shape)
    assert torch.allclose(adjoint.reshape(bins, pixels), matrix.reshape(pixels, bins).mT, atol=1e-13)


# Batches of 1, of less than half a cache line, of a whole one, and of one and a half.
@needs_compiled
@each
@pytest.mark.parametrize("batch", [0, 1, 3, 8, 25])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])  # rounding of sums
def test_compiled_kernels_are_plain_torch(geometry: Geometry, batch: int, dtype: torch.dtype, tolerance: float) -> None:
    rays, runs = lines(geometry, dtype)
    images, sinograms = randn(batch, *GRID.shape, dtype=dtype), randn(batch, *rays.shape[1:], dtype=dtype)
    for library in compiled():
        forward, adjoint = torch.zeros_like(sinograms), torch.full_like(images, math.nan)
        library.forward(images, forward, rays, runs)
        library.adjoint(sinograms, adjoint, rays, runs)
        for ours, plain in [
            (forward, reference.forward(images, rays, runs)),
            (adjoint, reference.adjoint(sinograms, rays, runs, *GRID.shape)),
        ]:
            assert torch.allclose(ours, plain, atol=tolerance * float(plain.abs().max()) if batch > 0 else 0.0)


def compiled() -> list[libraries.CPU]:
    """For this machine, and for any of its kind."""
    found = [libraries.CPU(path) for path in sorted(libraries.FOLDER.glob("_cpu*.so"))]
    assert len(found) >= 1
    return [library for library in found if library.runs_here]


@needs_compiled
def test_results_do_not_depend_on_threads_or_batch() -> None:
    """To the last bit: nothing is added by two threads, and every image goes through the same sums."""
    rays, runs = lines(GEOMETRIES[3][1], torch.float32)
    images = randn(20, *GRID.shape, dtype=torch.float32)
    sinograms = randn(20, *rays.shape[1:], dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append((joseph(images, rays, runs), joseph_adjoint(sinograms, rays, runs, *GRID.shape)))
    finally:
        torch.set_num_threads(before)
    for forward, adjoint in results[1:]:
        assert torch.equal(forward, results[0][0])
        assert torch.equal(adjoint, results[0][1])


@each
def test_derivatives(geometry: Geometry) -> None:
    rays, runs = lines(geometry)
    image, sinogram = randn(2, *GRID.shape), randn(2, *rays.shape[1:])
    for function, x in [
        (lambda x: joseph(x, rays, runs), image),
        (lambda y: joseph_adjoint(y, rays, runs, *GRID.shape), sinogram),
    ]:
        x.requires_grad_()
        assert torch.autograd.gradcheck(function, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_second_derivatives_are_those_of_the_matrix() -> None:
    """A function of A x that is not linear: its Hessian is A^H diag(f''(A x)) A."""
    A = XRay(GEOMETRIES[0][1], GRID, dtype=torch.float64)
    x, v = randn(*GRID.shape), randn(*GRID.shape, seed=1)
    _, product = torch.autograd.functional.hvp(lambda x: A(x).sin().sum(), x, v)
    assert torch.allclose(product, A.H(-torch.sin(A(x)) * A(v)), atol=1e-10)


def test_operators_are_registered_as_torch_wants_them() -> None:
    rays, runs = lines(GEOMETRIES[3][1])
    image, sinogram = randn(2, *GRID.shape).requires_grad_(), randn(2, *rays.shape[1:]).requires_grad_()
    torch.library.opcheck(torch.ops.tweedie.joseph.default, (image, rays, runs))
    torch.library.opcheck(torch.ops.tweedie.joseph_adjoint.default, (sinogram, rays, runs, *GRID.shape))


def test_compile_leaves_them_whole() -> None:
    """One graph with no break, forward and backward."""
    A = XRay(GEOMETRIES[3][1], GRID, dtype=torch.float64)
    x = randn(3, *GRID.shape).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return A.adjoint(A.forward(x).exp()).square().sum()

    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(x), x)
    (gradient,) = torch.autograd.grad(whole(x), x)
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_first_use_does_not_load_the_compiler_of_torch() -> None:
    """It takes more than a second; what is left of the first use takes a tenth of one."""
    code = (
        "import sys, torch; from operators.ct import *; "
        "A = XRay(ParallelBeam(torch.linspace(0, 3, 5), 9), Grid((6, 6))); A.H(A(torch.ones(6, 6))); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_kernels_cannot_take_is_refused() -> None:
    rays, runs = lines(GEOMETRIES[0][1])
    image, sinogram = randn(1, *GRID.shape), randn(1, *rays.shape[1:])
    with pytest.raises(ValueError, match="expected 3 axes and the dtype of rays"):
        joseph(image.float(), rays, runs)
    with pytest.raises(ValueError, match=r"got torch\.float16"):
        joseph(image.half(), rays.half(), runs)
    with pytest.raises(ValueError, match="expected 3 axes"):
        joseph(image[0], rays, runs)
    with pytest.raises(ValueError, match=r"expected \(batch, \*\(11, 70\)\), got \(1, 11, 69\)"):
        joseph_adjoint(sinogram[..., 1:], rays, runs, *GRID.shape)
    with pytest.raises(ValueError, match="int32"):
        joseph(image, rays, runs.long())
    with pytest.raises(ValueError, match="contiguous"):
        joseph(image, rays.mT.contiguous().mT, runs)


# Without a compiler, and with the wrong one


@pytest.fixture
def fresh() -> Iterator[None]:
    """Libraries are looked for anew, here and in the tests that follow."""
    libraries.load.cache_clear()
    yield
    libraries.load.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_plain_torch_runs_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    A = XRay(GEOMETRIES[0][1], GRID, dtype=torch.float64)
    x = randn(2, *GRID.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = A(x)
    libraries.load.cache_clear()
    monkeypatch.setattr(libraries, "FOLDER", tmp_path)
    with pytest.warns(UserWarning, match=r"cpu run in plain torch.*install g\+\+"):
        result = A(x)
    assert torch.allclose(result, expected, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A.H(A(x))


@needs_compiled
@pytest.mark.usefixtures("fresh")
def test_kernels_for_another_processor_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: libraries.CPU, path: Path) -> None:
        self.runs_here = False

    monkeypatch.setattr(libraries.CPU, "__init__", elsewhere)
    with pytest.warns(UserWarning, match="for another processor; install the package on this machine"):
        assert libraries.load("cpu") is None


def test_nvcc_is_found_beside_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert libraries._nvcc() == str(compiler)


@pytest.mark.usefixtures("fresh")
def test_without_nvcc_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.warns(UserWarning, match=r"cuda run in plain torch.*pip install 'tweedie-recon\[cuda\]'"):
        assert libraries.load("cuda") is None
    with pytest.warns(UserWarning, match="compiled kernels for cpu and cuda only"):
        assert libraries.load("xpu") is None


# The GPU

HARNESS = """
#include <cstdint>
#include "joseph.h"
extern "C" void forward(const double* image, double* sinogram, const double* rays, const int32_t* runs, int n_runs,
                        int size, int height, int width) {
    for (int r = 0; r < n_runs; ++r)
        for (int ray = runs[3 * r]; ray < runs[3 * r] + runs[3 * r + 1]; ++ray) {
            const bool x = runs[3 * r + 2];
            auto read = [=](int row, int pixel) { return x ? image[pixel * width + row] : image[row * width + pixel]; };
            sinogram[ray] = joseph::integral(rays[ray], rays[size + ray], rays[2 * size + ray], x ? width : height,
                                             x ? height : width, read);
        }
}
extern "C" void adjoint(const double* sinogram, double* image, const double* rays, const int32_t* runs, int n_runs,
                        int size, int height, int width) {
    for (int at = 0; at < height * width; ++at)
        for (int r = 0; r < n_runs; ++r) {
            const int first = runs[3 * r], x = runs[3 * r + 2], i = at / width, j = at % width;
            auto add = [&](int lane, double weight) {
                image[at] += weight * rays[2 * size + first + lane] * sinogram[first + lane];
            };
            joseph::rays_at(rays + first, rays + size + first, runs[3 * r + 1], x ? j : i, x ? i : j, add);
        }
}
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """What a thread of the GPU does, compiled for the processor."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.cpp").write_text(HARNESS)
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{Path(libraries.__file__).parent}"]
    command = [compiler, *options, str(folder / "harness.cpp"), "-o", str(folder / "harness.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "harness.so"))


@each
def test_threads_of_the_gpu_add_up_to_plain_torch(harness: ctypes.CDLL, geometry: Geometry) -> None:
    """A ray read by one thread, and a pixel that gathers its rays."""
    rays, runs = lines(geometry)
    image, sinogram = randn(*GRID.shape), randn(*rays.shape[1:])
    forward, adjoint = torch.zeros_like(sinogram), torch.zeros_like(image)
    for run, source, target in [(harness.forward, image, forward), (harness.adjoint, sinogram, adjoint)]:
        pointers = (ctypes.c_void_p(x.data_ptr()) for x in (source, target, rays, runs))
        run(*pointers, len(runs), sinogram.numel(), *GRID.shape)
    assert torch.allclose(forward, reference.forward(image[None], rays, runs)[0], atol=1e-12)
    assert torch.allclose(adjoint, reference.adjoint(sinogram[None], rays, runs, *GRID.shape)[0], atol=1e-12)


@pytest.mark.parametrize("packaged", [False, True])
def test_cuda_compiles(packaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if packaged:  # as where pip brought the compiler, and no toolkit is installed
        tools = {name: shutil.which(name) for name in ("g++", "gcc", "sh", "ld", "as")}
        for name, path in tools.items():
            (tmp_path / name).symlink_to(path or os.devnull)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    compiler = libraries._nvcc()
    if compiler is None:
        pytest.skip("nvcc is not installed: cuda.cu was not compiled")
    assert not packaged or "site-packages" in compiler
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = libraries._compile(compiler, "sm_80")
    assert library.is_file()
    made = library.stat().st_mtime_ns
    assert libraries._compile("no compiler is needed now", "sm_80").stat().st_mtime_ns == made
    assert [path.name for path in library.parent.iterdir()] == [library.name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA kernels were not run")
@each
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_cuda_equals_cpu(geometry: Geometry, batch: int, dtype: torch.dtype, tolerance: float) -> None:
    assert libraries.load("cuda") is not None
    rays, runs = lines(geometry, dtype)
    images, sinograms = randn(batch, *GRID.shape, dtype=dtype), randn(batch, *rays.shape[1:], dtype=dtype)
    for function, x, options in [(joseph, images, ()), (joseph_adjoint, sinograms, GRID.shape)]:
        expected = function(x, rays, runs, *options)
        results = [function(x.cuda(), rays.cuda(), runs.cuda(), *options) for _ in range(2)]
        assert torch.equal(*results)
        assert torch.allclose(results[0].cpu(), expected, atol=tolerance * float(expected.abs().max()))
        with pytest.raises(ValueError, match="move them to one device"):
            function(x.cuda(), rays, runs, *options)
    x, y, there = images.cuda(), sinograms.cuda(), (rays.cuda(), runs.cuda())
    Ax, Hy = joseph(x, *there).double(), joseph_adjoint(y, *there, *GRID.shape).double()
    difference = (Ax * y).sum((1, 2)) - (x * Hy).sum((1, 2))
    bound = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert (difference.abs() <= bound * Ax.norm(dim=(1, 2)) * y.double().norm(dim=(1, 2))).all()
