"""The line from a scan to its image: load, undersample on request, prepare, reconstruct, summarise, save."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from operators.masks import mask_function
from priors.denoiser import Denoiser

from . import io, mri
from .errors import InputError, MissingFileError, ReconError
from .io import cfl
from .io.atomic import result_folder
from .io.writers import RESULT_NAMES
from .likelihood import Gaussian
from .methods import SCHEDULES, inputs_of, method_named, options_of
from .methods.zero_filled import zero_filled
from .mri import MRIScan
from .noise import Noise
from .partial import PartialResults
from .posterior import magnitude
from .result import Reconstruction, SliceResult, assemble
from .settings import Settings

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole run that is done."""

# Samples drawn in one batch, and pixels that go through a network at a time: they bound the memory, not the result.
_BATCH = 8
_NETWORK_PIXELS = 2**19


def reconstruct(
    scan: MRIScan | str | Path,
    *,
    method: str = "l1-wavelet",
    options: dict[str, Any] | None = None,
    mask: str | None = None,
    acceleration: float = 4.0,
    slices: tuple[int, int] | None = None,
    samples: int = 8,
    prior: str | Denoiser = "brain",
    steps: int | None = None,
    seed: int = 0,
    coils: int | None = None,
    sets: int = 1,
    device: str = "cpu",
    out: str | Path | None = None,
    overwrite: bool = False,
    complex_image: bool = False,
    progress: Progress | None = None,
) -> Reconstruction:
    """Reconstruct a scan, slice by slice.

    Parameters
    ----------
    scan : a scan, or the file of one (see recon.io.load).
    method ... device : see recon.settings.Settings. `prior` may also be a denoiser of your own.
    out : folder for the results. What an interrupted run had finished is kept there, and the same call continues it,
        if the scan is a file and the prior has a name: nothing tells one in memory from another.
    overwrite : replace results that are there.
    complex_image : save the complex image too.
    progress : called as the work goes on.

    Raises
    ------
    ReconError
        If something that was asked for cannot be done; the message says what was expected and how to mend it.
    """
    settings = Settings(
        method=method,
        options=options or {},
        mask=mask,
        acceleration=acceleration,
        slices=slices,
        samples=samples,
        prior=prior if isinstance(prior, str) else type(prior).__name__,
        steps=steps,
        seed=seed,
        coils=coils,
        sets=sets,
        device=device,
    )
    settings.check()
    path = None if isinstance(scan, MRIScan) else Path(scan)
    scan = scan if isinstance(scan, MRIScan) else io.load(scan)
    folder = None if out is None else Path(out)
    staging = nullcontext() if folder is None else result_folder(folder, names=RESULT_NAMES, overwrite=overwrite)
    with staging as target:
        denoiser, card = _prior(prior, settings)
        named = path is not None and (denoiser is None or isinstance(prior, str))
        run_key = {**asdict(settings), "file": _signature(path), "prior": card}
        parts = PartialResults(folder if named else None, run_key)
        run = _Run(scan, settings, denoiser, parts, progress)
        results = [run.slice(index) for index in run.indices]
        result = assemble(results, scan=scan, settings=settings, mask=run.mask, path=path, card=card)
        if target is not None:
            result.write(target, complex_image=complex_image)
    parts.clear()
    return result


@dataclass
class _Run:
    """One run over the slices of a scan."""

    scan: MRIScan
    settings: Settings
    denoiser: Denoiser | None
    parts: PartialResults
    progress: Progress | None

    def __post_init__(self) -> None:
        first, last = self.settings.slices or (0, len(self.scan))
        if not 0 <= first < last <= len(self.scan):
            raise InputError(f"slices: expected a range within 0:{len(self.scan)}, got {first}:{last}")
        self.indices = range(first, last)
        self.mask = _draw_mask(self.settings, self.scan.shape)
        middle = len(self.scan) // 2  # of all slices: none depends on which others are asked for
        self.noise = mri.noise_of(self._undersampled(self._read(middle)))

    def slice(self, index: int) -> SliceResult:
        """Reconstruct one slice."""
        scan = self._read(index)
        prepared = self._prepare(self._undersampled(scan))
        likelihood = mri.likelihood(prepared)
        x, seconds = self._run_method({"likelihood": likelihood, "scan": prepared, "denoiser": self.denoiser}, index)
        return SliceResult(
            samples=prepared.image(x)[:, 0],
            zero_filled=_zero_filled(prepared, likelihood),
            reference=self._reference(scan),
            seconds=seconds,
            notes=prepared.notes,
        )

    def _read(self, index: int) -> MRIScan:
        scan, device = self.scan[index : index + 1], self.settings.device
        return replace(scan, kspace=torch.as_tensor(scan.kspace[:]).to(device), mask=scan.mask.to(device))

    def _undersampled(self, scan: MRIScan) -> MRIScan:
        return scan if self.mask is None else mri.undersample(scan, self.mask.to(scan.mask.device))

    def _prepare(self, scan: MRIScan) -> mri.PreparedMRI:
        return mri.prepare(scan, noise=self.noise, coils=self.settings.coils, sets=self.settings.sets)

    def _reference(self, scan: MRIScan) -> Tensor | None:
        """Of fully sampled data the combination of its coil images with maps of all the data; else that of the file."""
        if self.mask is not None and scan.fully_sampled:
            prepared = self._prepare(scan)
            return _zero_filled(prepared, mri.likelihood(prepared))
        return None if scan.reference is None else torch.as_tensor(scan.reference[:])[0]

    def _run_method(self, given: dict[str, Any], index: int) -> tuple[Tensor, float]:
        """Images (sample, slice, set, y, x) and the seconds they took; a batch of samples is kept once it is done."""
        settings, method = self.settings, method_named(self.settings.method)
        names = inputs_of(method)
        if "sigmas" in names:
            given["sigmas"] = SCHEDULES[settings.method](given["likelihood"], given["denoiser"], settings.steps)
        count = settings.samples if "rng" in names else 1
        images, seconds = [], 0.0
        for first in range(0, count, _BATCH):
            ids = range(first, min(first + _BATCH, count))
            name = f"slice-{index:04d}-samples-{ids[0]:04d}-{ids[-1]:04d}.pt"
            self._report(index, first / count)
            part = self.parts.load(name)
            if part is None:
                start = time.perf_counter()
                given["rng"] = Noise((settings.seed, index), ids)
                arguments = {key: given[key] for key in names} | settings.options
                if "callback" in inspect.signature(method).parameters:
                    steps = (
                        len(given["sigmas"]) - 1
                        if "sigmas" in names
                        else (options_of(method) | settings.options)["iterations"]
                    )
                    arguments["callback"] = self._reporter(index, ids, count, steps)
                x = _call(method, arguments)
                part = {"x": x if "rng" in names else x[None], "seconds": time.perf_counter() - start}
                self.parts.save(name, part)
            images.append(part["x"].to(settings.device))
            seconds += part["seconds"]
            self._report(index, (ids[-1] + 1) / count)
        return torch.cat(images), seconds

    def _reporter(self, index: int, ids: range, count: int, steps: int) -> Callable[[int, Tensor], None]:
        """Callback of a method that draws the samples `ids`, out of `count`, in so many steps."""
        return lambda step, _: self._report(index, (ids[0] + len(ids) * min(1.0, (step + 1) / steps)) / count)

    def _report(self, index: int, done: float) -> None:
        """Tell what fraction of the run is done, given that of a slice."""
        if self.progress is not None:
            slices_done, slices = self.indices.index(index), len(self.indices)
            self.progress(f"slice {slices_done + 1} of {slices}", (slices_done + done) / slices)


def _zero_filled(prepared: mri.PreparedMRI, likelihood: Gaussian) -> Tensor:
    """The image of a slice that is shown, (*spatial) magnitude."""
    return magnitude(prepared.image(zero_filled(likelihood))[0], ndim=prepared.mask.ndim)


def _call(method: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
    """A method's result; what it refuses is an input error."""
    try:
        return method(**arguments)
    except ReconError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def _draw_mask(settings: Settings, shape: tuple[int, ...]) -> Tensor | None:
    if settings.mask is None:
        return None
    try:
        return mask_function(settings.mask)(shape, settings.acceleration, seed=settings.seed)
    except ValueError as error:
        raise InputError(str(error)) from error


def _prior(prior: str | Denoiser, settings: Settings) -> tuple[Denoiser | None, dict[str, Any] | None]:
    """The denoiser that the method needs, within a memory budget, and its card if it has one."""
    if "denoiser" not in inputs_of(method_named(settings.method)):
        return None, None
    import priors

    try:
        denoiser = priors.load(prior, device=settings.device) if isinstance(prior, str) else prior
    except FileNotFoundError as error:
        raise MissingFileError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    return priors.chunked(denoiser, _NETWORK_PIXELS), getattr(denoiser, "card", None)


def _signature(path: Path | None) -> list[Any] | None:
    """What tells a file from an edited one without reading it."""
    if path is None:
        return None
    files = cfl.pair(path) if cfl.matches(path) else (path,)
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
