"""One cell: a reconstruction of undersampled data and how far it is from the image of all of them.

A record holds `cell` (which one), `error` (None, or type, message and traceback), and of a cell that succeeded:
`metrics` (recon.metrics; None for what is infinite, the PSNR of a perfect image), `coverage` (recon.posterior.Coverage;
None for methods that draw no samples), the true `acceleration`, `evaluations` of the network for each sample, `seconds`
(`method`: all its samples; `cell`: reading, preparation and metrics too), `memory_mib` (the most that the process of
the worker held while at it), `settings`, `prior`, `versions`, `date` and `notes`.
"""

from __future__ import annotations

import math
import re
import threading
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import io
from ..errors import InputError, ReconError
from ..modalities import Scan, modality_of
from ..mri import SliceArray
from ..pipeline import reconstruct
from ..result import Reconstruction
from .grid import Task, checksum
from .store import Record

_ONE_AT_A_TIME = threading.Lock()  # of a worker's threads: time and memory are those of one cell
_SLICES = 4  # kept in memory


class ChangedError(ReconError):
    """The scan or the prior of a cell is not the one that the benchmark is of."""


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back.

    Parameters
    ----------
    picture : half-precision images (y, x) in units of the reference's maximum, those of the middle of a volume:
        `image`, `error` (its difference from the reference) and `std` if there is one; `aspect`, the height of a pixel
        over its width. Empty if none was asked for.
    """

    record: Record
    picture: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def compute(task: Task) -> Outcome:
    """Compute a cell; what goes wrong in it becomes its record.

    Raises
    ------
    ReconError
        If this worker runs another version of the package than the one that sent the task, or finds another scan or
        prior under its path.
    """
    if task.version != _version():
        raise ReconError(f"worker: expected version {task.version} of the package, got {_version()}; install that one")
    with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as warned:
        start = _start_memory(task)
        try:
            scan, arguments = _scan(task.path, task.sha256), dict(task.arguments)
            kind, factor, options = (arguments.pop(name) for name in ("mask", "acceleration", "mask_options"))
            part = modality_of(scan).undersampling(scan, kind, factor, options)
            result = reconstruct(scan, prior=_denoiser(task), **part, **arguments)
            if not result.metrics:
                raise InputError(result.run["notes"][-1])
            outcome = Outcome(_record(task, result), _picture(result) if task.picture else {})
        except ChangedError:  # no cell of it could be right
            raise
        except Exception as error:  # a cell that fails does not stop the others
            outcome = failed(task, error)
        outcome.record["seconds"]["cell"] = time.perf_counter() - start
        outcome.record["memory_mib"] = _peak_memory(task)
        outcome.record["notes"] += sorted({str(warning.message) for warning in warned})
    return outcome


def failed(task: Task, error: BaseException) -> Outcome:
    """The record of a cell that could not be computed."""
    details = {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)[-4:]),
    }
    return Outcome({"cell": asdict(task.cell), "error": details, "seconds": {"cell": 0.0}, "notes": []})


def _record(task: Task, result: Reconstruction) -> Record:
    run = result.run
    return {
        "cell": asdict(task.cell),
        "error": None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in result.metrics.items()},
        "coverage": run["coverage"][0],
        "acceleration": run["acceleration"],
        "evaluations": run["evaluations"],
        "seconds": dict(run["timings_s"]),
        "settings": run["arguments"] | {"prior": task.prior},
        "prior": (run["prior"] or {}).get("sha256"),
        "versions": run["versions"],
        "date": run["date"],
        "notes": list(run["notes"]),
    }


def _picture(result: Reconstruction) -> dict[str, np.ndarray[Any, Any]]:
    assert result.reference is not None  # the scan is fully sampled
    middle = len(result.mean) // 2
    image, reference = result.mean[middle], result.reference[middle]
    images = {"image": image, "error": image - reference}
    if result.std is not None:
        images["std"] = result.std[middle]
    half = {name: (values / reference.max()).numpy().astype(np.float16) for name, values in images.items()}
    return half | {"aspect": np.array(result.voxel_size[1] / result.voxel_size[2])}


@lru_cache(maxsize=2)
def _scan(path: str, sha256: str) -> Scan:
    """A scan that stays open from cell to cell; its checksum is looked at when it is opened."""
    _check_checksum(path, sha256, checksum(path))
    scan = io.load(path)
    data = modality_of(scan).DATA
    kept: dict[str, Any] = {data: _Kept(getattr(scan, data)), "reference": None}  # all the data are the reference
    return replace(scan, **kept)


class _Kept:
    """Data read slice by slice, the last few slices kept."""

    def __init__(self, source: SliceArray) -> None:
        self.shape = source.shape
        self._read = lru_cache(maxsize=_SLICES)(lambda first, last: torch.as_tensor(source[first:last]))

    def __getitem__(self, index: slice, /) -> Tensor:
        first, last, _ = index.indices(self.shape[0])
        return self._read(first, last)


@lru_cache(maxsize=4)
def _loaded(prior: str, sha256: str | None, device: str) -> Any:
    import priors

    loaded = priors.load(prior, device=device)
    _check_checksum(f"prior {prior}", sha256, loaded.card.get("sha256"))
    return loaded


def _denoiser(task: Task) -> Any:
    return None if task.prior is None else _loaded(task.prior, task.prior_sha256, task.arguments["device"])


def _check_checksum(what: str, expected: str | None, found: str | None) -> None:
    if found != expected:
        raise ChangedError(
            f"{what}: expected checksum {str(expected)[:12]}... as when the benchmark began, got {str(found)[:12]}...; "
            "put the same one there on every worker, or choose another folder"
        )


@lru_cache(maxsize=1)
def _version() -> str:
    return version("tweedie-recon")


def _start_memory(task: Task) -> float:
    """Begin to measure: the system forgets the peak so far. Returns the time."""
    if task.arguments["device"].startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # only Linux has it; elsewhere the peak is that of the process since it began
        Path("/proc/self/clear_refs").write_text("5")
    return time.perf_counter()


def _peak_memory(task: Task) -> float | None:
    """In MiB, of the worker's process; on a GPU of the GPU."""
    if task.arguments["device"].startswith("cuda"):
        return float(torch.cuda.max_memory_allocated()) / 2**20
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return None if found is None else int(found[1]) / 2**10
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
