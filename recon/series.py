"""Simulated scans of several subjects, one after the other, for tuning and calibration."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .ct_heads import HeadScans
from .errors import InputError, MissingFileError, ResultExistsError
from .io.writers import checksums
from .modalities import Scan
from .mri import MRIScan
from .partial import PartialResults
from .pipeline import Progress, reconstruct
from .result import Reconstruction
from .settings import Settings
from .simulation import Distribution
from .training_volumes import read_volume


class Series:
    """series[i] is simulated scan i, of a subject drawn at random; the same whenever it is asked for.

    Scans of one series are exchangeable: nothing but random numbers tells one from another.

    Parameters
    ----------
    folder : searched with its subfolders for NIfTI files, label maps or magnitude images.
    patterns : of the names of the files to take.
    distribution, seed : that the scans are drawn with; of MRI, or of CT.

    Raises
    ------
    MissingFileError, InputError
        If there is no such folder; if no file matches.
    """

    def __init__(
        self, folder: Path, patterns: Sequence[str], *, distribution: Distribution | HeadScans, seed: int
    ) -> None:
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: expected a folder of NIfTI files, came a path where there is none")
        names = sorted(p for p in folder.rglob("*") if p.name.endswith((".nii", ".nii.gz")))
        self.files = [p for p in names if any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns)]
        if not self.files:
            there = ", ".join(p.name for p in names[:4]) or "nothing"
            raise InputError(
                f"{folder}: expected NIfTI files that match {', '.join(patterns)}, came {there}"
                f"{' ...' if len(names) > 4 else ''}; give other patterns"
            )
        self.distribution, self.seed = distribution, seed
        self._read = lru_cache(maxsize=None)(read_volume)
        self._last = lru_cache(maxsize=1)(self._draw)

    def __getitem__(self, index: int) -> Scan:
        return self._last(index)

    def _draw(self, index: int) -> Scan:
        path = self.files[int(np.random.default_rng((self.seed, 4, index)).integers(len(self.files)))]
        name = f"{path.name} {index}"
        try:
            return self.distribution.draw(self._read(path), seed=self.seed, index=index, name=name)
        except InputError as error:
            raise InputError(f"scan {index} of {path.name}: {error}") from error

    def run_seed(self, index: int) -> int:
        """A seed for the mask and the samples of scan `index`."""
        return int(np.random.default_rng((self.seed, 5, index)).integers(2**32))

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every file, by name."""
        return {name: sha for path in self.files for name, sha in checksums(path).items()}


def against_truth(scan: Scan, settings: Settings, *, seed: int, progress: Progress | None) -> Reconstruction:
    """A simulated scan, undersampled and reconstructed; the reference and the metrics are those of the truth."""
    if isinstance(scan, MRIScan):
        # One that is not called fully sampled keeps its own reference: the truth, and not the image of its noisy data.
        scan = replace(scan, fully_sampled=False)
    return reconstruct(
        scan,
        method=settings.method,
        options=settings.options,
        mask=settings.mask,
        acceleration=settings.acceleration,
        mask_options=settings.mask_options,
        samples=settings.samples,
        prior=settings.prior,
        steps=settings.steps,
        views=settings.views,
        angular_range=settings.angular_range,
        dose=settings.dose,
        seed=seed,
        device=settings.device,
        precision=settings.precision,
        check=False,
        progress=progress,
    )


@contextmanager
def kept_until_done(path: Path, run: Mapping[str, Any], *, overwrite: bool) -> Iterator[PartialResults]:
    """What has been finished on the way to the file `path`; it is kept if the block fails, and forgotten when it ends.

    Parameters
    ----------
    run : everything that the parts depend on.

    Raises
    ------
    ResultExistsError
        If there is such a file and `overwrite` is not set.
    """
    if path.exists() and not overwrite:
        raise ResultExistsError(
            f"{path}: expected no such file yet, came an existing one; overwrite it or choose another name"
        )
    folder = path.with_suffix(".parts")
    parts = PartialResults(folder, {**run, "version": version("tweedie-recon")})
    yield parts
    parts.clear()
    folder.rmdir()


def each(
    work: Sequence[tuple[str, Callable[[Progress | None], Any]]], parts: PartialResults, progress: Progress | None
) -> list[Any]:
    """The outcomes of named pieces of work, each kept once it is done; those that were kept are not done again.

    Parameters
    ----------
    work : name -> a function that is given how to report its progress, and returns what `parts` can keep, with
        its "seconds".
    """
    outcomes: list[Any] = []
    for done, (name, piece) in enumerate(work):
        times = [outcome["seconds"] for outcome in outcomes]
        cost = f", {sum(times) / len(times):.0f} s each" if times else ""
        what = f"{done + 1} of {len(work)}{cost}"
        outcome = parts.load(name)
        if outcome is None:
            outcome = piece(_within(progress, what, done / len(work), 1 / len(work)))
            parts.save(name, outcome)
        outcomes.append(outcome)
    return outcomes


def _within(progress: Progress | None, what: str, start: float, share: float) -> Progress | None:
    if progress is None:
        return None
    progress(what, start)
    return lambda _, done: progress(what, start + share * done)
