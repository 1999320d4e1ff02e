"""The compiled kernels: found or made once, and said once where there are none.

Those of the processor are compiled when the package is installed, once for the machine at hand and once for any machine
of its kind. Those of the GPU are compiled at their first use, where nvcc is installed (the CUDA toolkit, or the extra
`cuda`), and kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

FOLDER = Path(__file__).parent


class Kernels(Protocol):
    """Compiled projector and adjoint, from contiguous tensors into contiguous tensors; see operators.kernels."""

    def forward(self, images: Tensor, sinograms: Tensor, rays: Tensor, runs: Tensor) -> None: ...

    def adjoint(self, sinograms: Tensor, images: Tensor, rays: Tensor, runs: Tensor) -> None: ...


@functools.cache
def load(device_type: str) -> Kernels | None:
    """The kernels for a kind of device, or None, with a warning the first time, where plain torch must do."""
    kernels = {"cpu": _load_cpu, "cuda": _load_cuda}.get(device_type, _load_other)()
    if isinstance(kernels, str):
        warnings.warn(f"projections on {device_type} run in plain torch, many times slower: {kernels}", stacklevel=2)
        return None
    return kernels


class CPU:
    """cpu.cpp, on as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.runs_here = bool(self.library.joseph_runs_here())

    def forward(self, images: Tensor, sinograms: Tensor, rays: Tensor, runs: Tensor) -> None:
        run = self.library[f"joseph_forward_{_name(images)}"]
        run(_pointer(images), _pointer(sinograms), *_geometry(images, rays, runs), _threads())

    def adjoint(self, sinograms: Tensor, images: Tensor, rays: Tensor, runs: Tensor) -> None:
        run = self.library[f"joseph_adjoint_{_name(images)}"]
        run(_pointer(sinograms), _pointer(images), *_geometry(images, rays, runs), _threads())


class CUDA:
    """cuda.cu, on the current stream."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def forward(self, images: Tensor, sinograms: Tensor, rays: Tensor, runs: Tensor) -> None:
        turned = images.mT.contiguous()
        run = self.library[f"joseph_forward_{_name(images)}"]
        with torch.cuda.device(images.device):
            pointers = _pointer(images), _pointer(turned), _pointer(sinograms)
            _check(run(*pointers, *_geometry(images, rays, runs), _stream()))

    def adjoint(self, sinograms: Tensor, images: Tensor, rays: Tensor, runs: Tensor) -> None:
        run = self.library[f"joseph_adjoint_{_name(images)}"]
        with torch.cuda.device(images.device):
            _check(run(_pointer(sinograms), _pointer(images), *_geometry(images, rays, runs), _stream()))


def _load_cpu() -> CPU | str:
    built = [FOLDER / f"{name}{EXTENSION_SUFFIXES[0]}" for name in ("_cpu_native", "_cpu")]
    for path in filter(Path.exists, built):
        kernels = CPU(path)
        if kernels.runs_here:
            return kernels
    if any(path.exists() for path in built):
        return "the compiled kernels are for another processor; install the package on this machine"
    return "no C++ compiler with OpenMP was found at installation; install g++, then the package again"


def _load_cuda() -> CUDA | str:
    compiler = _nvcc()
    if compiler is None:
        return "nvcc was not found; pip install 'tweedie-recon[cuda]', or set CUDA_HOME to where a CUDA toolkit is"
    try:
        return CUDA(_compile(compiler, "sm_{}{}".format(*torch.cuda.get_device_capability())))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        return f"nvcc failed: {detail}"


def _load_other() -> str:
    return "there are compiled kernels for cpu and cuda only"


def _nvcc() -> str | None:
    """The one on the path, else where the CUDA toolkit or its Python package keeps it."""
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *_packaged_toolkits()]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(str(home / "bin") for home in homes))


def _packaged_toolkits() -> list[Path]:
    """Of the package nvidia-cuda-nvcc: one folder for each major version of CUDA."""
    package = importlib.util.find_spec("nvidia")
    places = package.submodule_search_locations if package else None
    return [toolkit for place in places or [] for toolkit in sorted(Path(place).glob("cu[0-9]*"), reverse=True)]


def _compile(compiler: str, architecture: str) -> Path:
    """The library for one GPU architecture, in the user's cache under a name made of all that goes into it."""
    sources = [FOLDER / "cuda.cu", FOLDER / "joseph.h"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tweedie-recon"
    library = folder / f"joseph-{digest}-{architecture}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            options = ["-O3", "-std=c++17", f"-arch={architecture}", "-shared", "-Xcompiler", "-fPIC"]
            options += [f"-L{Path(compiler).parent.parent / 'lib'}"]  # the packaged one does not look there itself
            command = [compiler, *options, str(sources[0]), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)  # another process may be doing the same
    return library


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _geometry(
    images: Tensor, rays: Tensor, runs: Tensor
) -> tuple[int, ctypes.c_void_p, ctypes.c_void_p, int, int, int, int, int]:
    """batch, rays, runs, their number, views, bins, height, width."""
    return len(images), _pointer(rays), _pointer(runs), len(runs), *rays.shape[1:], *images.shape[1:]


def _threads() -> int:
    return torch.get_num_threads()


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def _check(error: int) -> None:
    if error != 0:
        raise RuntimeError(f"the projector failed on the GPU with CUDA error {error}")
