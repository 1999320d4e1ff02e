"""The demonstration: one scan, undersampled fourfold, and every method on it side by side."""

from __future__ import annotations

from pathlib import Path

from . import io
from .errors import InputError
from .io.atomic import result_folder
from .io.panel import write_comparison
from .io.writers import PANEL, RUN, write_run
from .mri import MRIScan
from .phantom import head
from .pipeline import Progress, reconstruct
from .result import Reconstruction, caption

METHODS = ("zero-filled", "l1-wavelet", "dds")
SAMPLES = 4
MASK, ACCELERATION = "random", 4.0


def run(
    file: str | Path | None, *, out: str | Path, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Reconstruction]:
    """Reconstruct the middle slice of a fully sampled scan with every method of METHODS; write a picture and run.json.

    Parameters
    ----------
    file : of the scan; None takes the analytic head.

    Raises
    ------
    InputError
        If the scan is not fully sampled: there would be nothing to compare with.
    """
    scan = head() if file is None else io.load(file)
    if not isinstance(scan, MRIScan):
        raise InputError(f"{file}: the demonstration is of MRI, and this is a scan of CT; use recon reconstruct")
    if not scan.fully_sampled:
        raise InputError(
            f"{file}: the demonstration undersamples a fully sampled scan, and this one is undersampled already "
            f"({scan.mask_source}); use recon reconstruct"
        )
    middle = len(scan) // 2
    results = {}
    with result_folder(out, names=(PANEL, RUN), overwrite=overwrite) as folder:
        for done, method in enumerate(METHODS):
            results[method] = reconstruct(
                scan,
                method=method,
                mask=MASK,
                acceleration=ACCELERATION,
                samples=SAMPLES if method == "dds" else None,
                check=False,  # the reference says it
                slices=(middle, middle + 1),
                progress=_share(progress, method, done / len(METHODS), 1 / len(METHODS)),
            )
        last = results[METHODS[-1]]
        assert last.reference is not None  # the scan is fully sampled
        shown = len(last.mean) // 2  # of a volume
        write_comparison(
            folder / PANEL,
            {name: result.mean[shown] for name, result in results.items()},
            reference=last.reference[shown],
            captions={name: caption(result.metrics) for name, result in results.items()},
            std=None if last.std is None else last.std[shown],
            title=f"{scan.name}, {MASK} lines, acceleration {ACCELERATION:g}",
            voxel_size=scan.voxel_size,
        )
        write_run(folder / RUN, {name: result.run for name, result in results.items()})
    return results


def _share(progress: Progress | None, method: str, start: float, share: float) -> Progress | None:
    """Progress of one part of the demonstration."""
    if progress is None:
        return None
    progress(method, start)
    return lambda _, done: progress(method, start + share * done)
