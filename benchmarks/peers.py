"""The tools that this project is measured against, called as they are: BART (a program) and sigpy (a package).

    maps, eigenvalues = bart("ecalib -m 1 -r 24", to_bart(kspace), outputs=2)
    x, = bart("pics -R W:3:0:0.003 -i 60", to_bart(kspace), to_bart(maps))

BART's axes are y, x, z, coil, set ...: images lie in axes 0 and 1, which its options name as the bits of 3.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def thread_limits(threads: int) -> dict[str, str]:
    """The environment of a process that computes on so many threads; the variables are read when it starts.

    Waiting threads spin for a moment and then sleep: where something else runs on the machine, spinning ones take the
    processor from those they wait for, and times measure that (ten times longer for torch on two busy cores).
    """
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    return os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names} | {"GOMP_SPINCOUNT": "10000"}


def to_bart(x: Array) -> Array:
    """([set,] coil, y, x) to BART's (y, x, 1, coil[, set]); (y, x) stays."""
    return x if x.ndim == 2 else np.moveaxis(x, (-2, -1), (0, 1)).transpose(0, 1, *range(x.ndim - 1, 1, -1))[:, :, None]


def from_bart(x: Array) -> Array:
    """BART's (y, x, 1, coil[, set]) to ([set,] coil, y, x); (y, x) stays."""
    return x if x.ndim == 2 else x[:, :, 0].transpose(*range(x.ndim - 2, 1, -1), 0, 1)


def write_cfl(path: Path, x: Array) -> None:
    """A pair of path.hdr and path.cfl, axes in BART's order."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, x.shape)) + "\n")
    x.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> Array:
    """Without the trailing axes of length 1, but with at least two axes."""
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")


class Bart:
    """One BART command with its input files written, to be run and timed as often as wanted.

    with Bart("ecalib -m 1", kspace, outputs=2, threads=1) as job:
        seconds = job.run()          # of the whole process: start, reading, computing, writing
        maps, eigenvalues = job.read()
    """

    def __init__(self, command: str, *inputs: Array, outputs: int = 1, threads: int = 1) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bart-")
        folder = Path(self._folder.name)
        sources = [folder / f"in{i}" for i in range(len(inputs))]
        self._results = [folder / f"out{i}" for i in range(outputs)]
        for path, x in zip(sources, inputs, strict=True):
            write_cfl(path, x)
        self._command = ["bart", *shlex.split(command), *map(str, sources + self._results)]
        self._environment = thread_limits(threads)

    def run(self) -> float:
        """Wall-clock seconds.

        Raises
        ------
        RuntimeError
            With what BART said, if it fails.
        """
        began = time.perf_counter()
        done = subprocess.run(self._command, env=self._environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(self._command)} failed: {done.stderr or done.stdout}")
        return seconds

    def read(self) -> tuple[Array, ...]:
        return tuple(read_cfl(path) for path in self._results)

    def __enter__(self) -> Bart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()


def bart(command: str, *inputs: Array, outputs: int = 1, threads: int = 1) -> tuple[Array, ...]:
    """The outputs of a BART command, in BART's axes."""
    with Bart(command, *inputs, outputs=outputs, threads=threads) as job:
        job.run()
        return job.read()


def ecalib(kspace: Tensor, options: str = "", *, threads: int = 1) -> tuple[Tensor, float]:
    """BART's maps (coil, y, x) from k-space (coil, y, x), one set, and the seconds of the whole process."""
    with Bart(f"ecalib -m 1 {options}", to_bart(kspace.numpy()), threads=threads) as job:
        seconds = job.run()
        return torch.from_numpy(from_bart(job.read()[0]).copy()), seconds


def pics(kspace: Tensor, sens_maps: Tensor, options: str, *, threads: int = 1) -> tuple[Tensor, float]:
    """BART's image (y, x) from k-space and maps, each ([set,] coil, y, x), and the seconds of the whole process."""
    with Bart(f"pics {options}", to_bart(kspace.numpy()), to_bart(sens_maps.numpy()), threads=threads) as job:
        seconds = job.run()
        return torch.from_numpy(job.read()[0].copy()), seconds


def bart_version() -> str:
    return subprocess.run(["bart", "version"], capture_output=True, text=True, check=True).stdout.strip()


def sigpy_espirit(kspace: Array, *, width: int = 24, crop: float = 0.95) -> Array:
    """Maps (coil, y, x) with sigpy's defaults."""
    from sigpy.mri.app import EspiritCalib

    return np.asarray(EspiritCalib(kspace, calib_width=width, crop=crop, show_pbar=False).run())


def sigpy_recon(app: str, kspace: Tensor, sens_maps: Tensor, regularization: float, *, iterations: int) -> Tensor:
    """Image (y, x) by L1WaveletRecon or TotalVariationRecon of sigpy.mri.app, k-space scaled to maximum 1."""
    import sigpy.mri.app

    scaled = (kspace / kspace.abs().max()).numpy()
    run = getattr(sigpy.mri.app, app)(scaled, sens_maps.numpy(), regularization, max_iter=iterations, show_pbar=False)
    return torch.from_numpy(np.asarray(run.run()))


def machine() -> dict[str, str | int]:
    """What a reader of the figures needs to know of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else "unknown", "cores": os.cpu_count() or 1}
