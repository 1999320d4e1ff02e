"""The line from a scan to its image: load, undersample on request, prepare, reconstruct, summarise, save."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from operators.masks import mask_function
from priors.denoiser import Denoiser
from priors.generator import Generator

from . import io, mri
from .apply import Images, apply_method
from .calibrated import Calibration, load_calibration
from .calibration import inflate
from .checks import SAMPLES, Check, check_data_fit
from .coverage import retrospective_coverage
from .errors import InputError, MissingFileError
from .io import cfl
from .io.atomic import result_folder
from .io.writers import RESULT_NAMES
from .methods import inputs_of, method_named
from .methods.zero_filled import zero_filled
from .mri import MRIScan
from .noise import Noise
from .partial import PartialResults
from .posterior import Coverage, magnitude
from .residual_noise import scan_noise
from .result import Reconstruction, SliceResult, assemble
from .settings import Settings

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole run that is done."""


def reconstruct(
    scan: MRIScan | str | Path,
    *,
    method: str = "l1-wavelet",
    options: dict[str, Any] | None = None,
    mask: str | None = None,
    acceleration: float | None = None,
    mask_options: dict[str, Any] | None = None,
    slices: tuple[int, int] | None = None,
    samples: int | None = None,
    prior: str | Denoiser | Generator | None = None,
    steps: int | None = None,
    seed: int = 0,
    coils: int | None = None,
    sets: int = 1,
    device: str = "cpu",
    precision: str = "float32",
    check: bool = True,
    tuned: str | Path | None = None,
    calibrated: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    complex_image: bool = False,
    progress: Progress | None = None,
) -> Reconstruction:
    """Reconstruct a scan, slice by slice.

    Parameters
    ----------
    scan : a scan, or the file of one (see recon.io.load).
    method ... calibrated : see recon.settings.Settings. `prior` may also be a denoiser or generator
        of your own.
    out : folder for the results. What an interrupted run had finished is kept there, and the same call continues it,
        if the scan is a file and the prior has a card: nothing else tells one in memory from another.
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
        mask_options=mask_options or {},
        slices=slices,
        samples=samples,
        prior=prior if prior is None or isinstance(prior, str) else type(prior).__name__,
        steps=steps,
        seed=seed,
        coils=coils,
        sets=sets,
        device=device,
        precision=precision,
        check=check,
        tuned=None if tuned is None else str(tuned),
        calibrated=None if calibrated is None else str(calibrated),
    ).resolved()
    calibration = None if settings.calibrated is None else load_calibration(settings.calibrated)
    path = None if isinstance(scan, MRIScan) else Path(scan)
    scan = scan if isinstance(scan, MRIScan) else io.load(scan)
    folder = None if out is None else Path(out)
    staging = nullcontext() if folder is None else result_folder(folder, names=RESULT_NAMES, overwrite=overwrite)
    with staging as target:
        loaded, card = load_prior(prior or settings.prior, settings)
        named = path is not None and (loaded is None or bool(card))
        if calibration is not None and (doubt := calibration.check(settings, card)):
            warnings.warn(doubt, stacklevel=2)
        # What was finished is as good with a check, or a calibration, as without.
        run_key = {
            **asdict(replace(settings, check=True, tuned=None, calibrated=None)),
            "file": _signature(path),
            "prior": card,
            "version": version("tweedie-recon"),
        }
        parts = PartialResults(folder if named else None, run_key)
        run = _Run(scan, settings, loaded, calibration, parts, progress)
        checked = run.check()
        if checked is not None and checked.warning:
            warnings.warn(checked.statement.removeprefix("WARNING: "), stacklevel=2)
        results = [run.slice(index) for index in run.indices]
        result = assemble(
            results,
            scan=scan,
            settings=settings,
            mask=run.mask,
            path=path,
            card=card,
            check=checked,
            calibration=calibration,
        )
        if target is not None:
            result.write(target, complex_image=complex_image)
    parts.clear()
    return result


@dataclass
class _Run:
    """One run over the slices of a scan."""

    scan: MRIScan
    settings: Settings
    prior: Denoiser | Generator | None
    calibration: Calibration | None
    parts: PartialResults
    progress: Progress | None

    def __post_init__(self) -> None:
        first, last = self.settings.slices or (0, len(self.scan))
        if not 0 <= first < last <= len(self.scan):
            raise InputError(f"slices: expected a range within 0:{len(self.scan)}, got {first}:{last}")
        self.indices = range(first, last)
        # The check predicts data from images with their phase; those of methods without maps have none.
        needs = inputs_of(method_named(self.settings.method))
        self.checks = self.settings.check and {"likelihood", "rng"} <= set(needs)
        self.mask = draw_mask(self.settings, self.scan)
        middle = len(self.scan) // 2  # of all slices: none depends on which others are asked for
        self.noise = scan_noise(self._undersampled(self._read(middle)))

    def check(self) -> Check | None:
        """Whether the prior suits the data, looked at in the middle slice before any other work."""
        if not self.checks:
            return None
        index = self.indices[len(self.indices) // 2]
        prepared = self._prepare(self._undersampled(self._read(index)))
        report = self._reporter("checking the prior", 0, SAMPLES)

        def apply(prepared: mri.PreparedMRI, settings: Settings, name: str) -> Images:
            return apply_method(
                prepared,
                settings,
                self.prior,
                stream=(settings.seed, index, 1),
                parts=self.parts,
                name=f"check-{index:04d}-{name}",
                report=report if name == "samples" else lambda _: None,
            )

        return check_data_fit(prepared, self.settings, apply, slice_index=index)

    def slice(self, index: int) -> SliceResult:
        """Reconstruct one slice."""
        scan = self._read(index)
        given = self._undersampled(scan)
        try:
            prepared = self._prepare(given)
        except InputError as error:
            raise InputError(f"slice {index}: {error}; choose others with slices") from error
        done, samples = self.indices.index(index), self.settings.samples or 1
        images = apply_method(
            prepared,
            self.settings,
            self.prior,
            stream=(self.settings.seed, index),
            parts=self.parts,
            name=f"slice-{index:04d}",
            report=self._reporter(
                f"slice {done + 1} of {len(self.indices)}", SAMPLES * self.checks + done * samples, samples
            ),
        )
        x = images.x if self.calibration is None else inflate(images.x, self.calibration.factor)
        # Points leave no whole readout lines: their images keep the oversampled field of view, and so must that of all.
        coverage, unknown = self._coverage(replace(scan, readout_axis=given.readout_axis), prepared, x, index)
        return SliceResult(
            samples=prepared.image(images.x)[:, 0],
            zero_filled=_zero_filled(prepared),
            reference=self._reference(scan),
            seconds=images.seconds,
            evaluations=images.evaluations,
            notes=(*prepared.notes, *unknown),
            coverage=coverage,
        )

    def _read(self, index: int) -> MRIScan:
        scan, device = self.scan[index : index + 1], self.settings.device
        noise = None if scan.noise is None else scan.noise.to(device)
        return replace(scan, kspace=torch.as_tensor(scan.kspace[:]).to(device), mask=scan.mask.to(device), noise=noise)

    def _undersampled(self, scan: MRIScan) -> MRIScan:
        return scan if self.mask is None else mri.undersample(scan, self.mask.to(scan.mask.device))

    def _prepare(self, scan: MRIScan) -> mri.PreparedMRI:
        return mri.prepare(scan, noise=self.noise, coils=self.settings.coils, sets=self.settings.sets)

    def _reference(self, scan: MRIScan) -> Tensor | None:
        """Of fully sampled data the combination of its coil images with maps of all the data; else that of the file."""
        if self.mask is not None and scan.fully_sampled:
            return _zero_filled(mri.prepare(scan, noise=self.noise, sets=self.settings.sets))  # of all coils
        return None if scan.reference is None else torch.as_tensor(scan.reference[:])[0]

    def _coverage(
        self, scan: MRIScan, prepared: mri.PreparedMRI, x: Tensor, index: int
    ) -> tuple[Coverage | None, tuple[str, ...]]:
        """Whether intervals of the samples hold the image of all the data, and a note if that cannot be said."""
        draws = "rng" in inputs_of(method_named(self.settings.method))
        if not draws or len(x) < 2 or self.mask is None or not scan.fully_sampled:
            return None, ()
        rng = Noise((self.settings.seed, index, 3), range(len(x)))
        try:
            found = retrospective_coverage(x, prepared, scan, noise=self.noise, rng=rng, sets=self.settings.sets)
        except InputError as error:  # a finished image is not lost for it
            return None, (f"no coverage: {error}",)
        return found, ()

    def _reporter(self, what: str, before: int, work: int) -> Callable[[float], None]:
        """Tells what fraction of the run is done, given that of a part of it; work is counted in samples."""
        total = SAMPLES * self.checks + len(self.indices) * (self.settings.samples or 1)
        progress = self.progress
        if progress is None:
            return lambda done: None
        return lambda done: progress(what, (before + work * done) / total)


def _zero_filled(prepared: mri.PreparedMRI) -> Tensor:
    """The image of a slice that is shown, (*spatial) magnitude."""
    return magnitude(prepared.image(zero_filled(mri.likelihood(prepared)))[0], ndim=prepared.mask.ndim)


def draw_mask(settings: Settings, scan: MRIScan) -> Tensor | None:
    """The mask that was asked for; lines are left out along a phase-encoding axis, never along the readout."""
    if settings.mask is None:
        return None
    pattern = mask_function(settings.mask)
    options = dict(settings.mask_options)
    if "axis" in inspect.signature(pattern).parameters:
        options["axis"] = -2 if scan.readout_axis == -1 else -1
    try:
        return pattern(scan.shape, settings.acceleration, seed=settings.seed, **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"mask {settings.mask}: {error}") from error


def load_prior(
    prior: str | Denoiser | Generator | None, settings: Settings
) -> tuple[Denoiser | Generator | None, dict[str, Any] | None]:
    """The prior that the method needs, a denoiser within a memory budget, and its card if it has one."""
    if prior is None:
        return None, None
    import priors

    try:
        loaded = priors.load(prior, device=settings.device) if isinstance(prior, str) else prior
    except FileNotFoundError as error:
        raise MissingFileError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    card = getattr(loaded, "card", None)
    if isinstance(loaded, Generator):
        if settings.precision != "float32":
            raise InputError("precision: this prior is a generator, which computes as it is; leave it out")
        return loaded, card
    denoiser = priors.bf16(loaded) if settings.precision == "bf16" else loaded
    # A prior of the user's own may not bear several calls at a time.
    threads = torch.get_num_threads() if isinstance(prior, str) and settings.device == "cpu" else 1
    return priors.chunked(denoiser, _network_pixels(settings.device), threads=threads), card


def _network_pixels(device: str) -> int:
    """Pixels that go through a network at a time: they bound the memory, not the result.

    On a processor one image after the other is 10 % faster than many at once, whose features leave its caches.
    """
    return 2**16 if device == "cpu" else 2**21


def _signature(path: Path | None) -> list[Any] | None:
    """What tells a file from an edited one without reading it."""
    if path is None:
        return None
    files = cfl.pair(path) if cfl.matches(path) else (path,)
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
