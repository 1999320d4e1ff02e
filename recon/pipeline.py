"""The line from a scan to its image: load, undersample on request, prepare, reconstruct, summarise, save."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from priors.denoiser import Denoiser
from priors.generator import Generator
from priors.supervised import Supervised

from . import io
from .apply import Images, apply_method, check_prior
from .calibrated import Calibration, load_calibration
from .calibration import inflate
from .checks import SAMPLES, Check, check_data_fit
from .errors import InputError, MissingFileError
from .io.atomic import result_folder
from .io.writers import ALL_NAMES
from .methods import inputs_of, method_named
from .modalities import SCANS, Prepared, Scan, check_images, check_settings, modality_of
from .noise import Noise
from .partial import PartialResults
from .posterior import Coverage
from .result import Reconstruction, SliceResult, assemble, known_water
from .settings import Settings

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole run that is done."""


def reconstruct(
    scan: Scan | str | Path,
    *,
    method: str = "l1-wavelet",
    options: dict[str, Any] | None = None,
    mask: str | None = None,
    acceleration: float | None = None,
    mask_options: dict[str, Any] | None = None,
    slices: tuple[int, int] | None = None,
    samples: int | None = None,
    prior: str | Denoiser | Generator | Supervised | None = None,
    steps: int | None = None,
    seed: int = 0,
    coils: int | None = None,
    sets: int = 1,
    views: int | None = None,
    angular_range: tuple[float, float] | None = None,
    dose: float | None = None,
    rings: int | None = None,
    rotation_centre: float | str | None = None,
    device: str = "cpu",
    precision: str = "float32",
    check: bool = True,
    tuned: str | Path | None = None,
    calibrated: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    complex_image: bool = False,
    dicom: bool = False,
    progress: Progress | None = None,
) -> Reconstruction:
    """Reconstruct a scan, slice by slice.

    Parameters
    ----------
    scan : a scan, or the file of one (see recon.io.load).
    method ... calibrated : see recon.settings.Settings. `prior` may also be a denoiser, generator or
        supervised network of your own.
    out : folder for the results. What an interrupted run had finished is kept there, and the same call continues it,
        if the scan is a file and the prior has a card: nothing else tells one in memory from another.
    overwrite : replace results that are there.
    complex_image : save the complex image too.
    dicom : save DICOM series in HU too, of a CT scan whose attenuation of water is known.
    progress : called as the work goes on.

    Raises
    ------
    ReconError
        If something that was asked for cannot be done; the message says what was expected and how to mend it.
    """
    asked = Settings(
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
        views=views,
        angular_range=angular_range,
        dose=dose,
        rings=rings,
        rotation_centre=rotation_centre,
        device=device,
        precision=precision,
        check=check,
        tuned=None if tuned is None else str(tuned),
        calibrated=None if calibrated is None else str(calibrated),
    )
    asked.resolved()  # refuses what it can before a file is opened
    calibration = None if calibrated is None else load_calibration(calibrated)
    path = None if isinstance(scan, SCANS) else Path(scan)
    scan = scan if isinstance(scan, SCANS) else io.load(scan)
    check_settings(asked, scan)
    if dicom:
        known_water(modality_of(scan).water(scan), scan.name)
    scan = cast(Scan, modality_of(scan).adjusted(scan, asked))
    settings = asked.resolved(prior=modality_of(scan).PRIOR)
    folder = None if out is None else Path(out)
    staging = nullcontext() if folder is None else result_folder(folder, names=ALL_NAMES, overwrite=overwrite)
    with staging as target:
        loaded, card = load_prior(prior or settings.prior, settings)
        check_images(loaded, scan)
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
        run = _Run(scan, settings, loaded, card or {}, calibration, parts, progress)
        checked = run.check()
        if checked is not None and checked.warning:
            warnings.warn(checked.statement.removeprefix("WARNING: "), stacklevel=2)
        results = [run.slice(index) for index in run.indices]
        result = assemble(
            results,
            scan=scan,
            settings=settings,
            part=run.part,
            path=path,
            card=card,
            check=checked,
            calibration=calibration,
        )
        if target is not None:
            result.write(target, complex_image=complex_image, dicom=dicom)
    parts.clear()
    return result


@dataclass
class _Run:
    """One run over the slices of a scan."""

    scan: Scan
    settings: Settings
    prior: Denoiser | Generator | Supervised | None
    card: dict[str, Any]
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
        self.modality = modality_of(self.scan)
        self.part = self.modality.choose_part(self.scan, self.settings)
        middle = len(self.scan) // 2  # of all slices: none depends on which others are asked for
        self.noise = self.modality.noise(self._given(self._read(middle), middle))

    def check(self) -> Check | None:
        """Whether the prior suits the data, looked at in the middle slice before any other work."""
        if not self.checks:
            return None
        index = self.indices[len(self.indices) // 2]
        prepared = self._prepare(self._given(self._read(index), index))
        report = self._reporter("checking the prior", 0, SAMPLES)

        def apply(prepared: Prepared, settings: Settings, name: str) -> Images:
            return apply_method(
                prepared,
                settings,
                self._prior(prepared),
                stream=(settings.seed, index, 1),
                parts=self.parts,
                name=f"check-{index:04d}-{name}",
                report=report if name == "samples" else lambda _: None,
            )

        return check_data_fit(prepared, self.settings, apply, slice_index=index)

    def slice(self, index: int) -> SliceResult:
        """Reconstruct one slice."""
        scan = self._read(index)
        given = self._given(scan, index)
        try:
            prepared = self._prepare(given)
        except InputError as error:
            raise InputError(f"slice {index}: {error}; choose others with slices") from error
        done, samples = self.indices.index(index), self.settings.samples or 1
        images = apply_method(
            prepared,
            self.settings,
            self._prior(prepared),
            stream=(self.settings.seed, index),
            parts=self.parts,
            name=f"slice-{index:04d}",
            report=self._reporter(
                f"slice {done + 1} of {len(self.indices)}", SAMPLES * self.checks + done * samples, samples
            ),
        )
        x = images.x if self.calibration is None else inflate(images.x, self.calibration.factor)
        coverage, unknown = self._coverage(scan, given, prepared, x, index)
        return SliceResult(
            samples=prepared.image(images.x)[:, 0],
            zero_filled=self.modality.preview(prepared),
            reference=self.modality.reference(scan, self.part, self.settings, self.noise),
            seconds=images.seconds,
            evaluations=images.evaluations,
            notes=(*prepared.notes, *unknown),
            coverage=coverage,
        )

    def _read(self, index: int) -> Scan:
        scan: Scan = self.modality.read(self.scan, index, self.settings.device)
        return scan

    def _given(self, scan: Scan, index: int) -> Scan:
        """The part of a slice that was asked for."""
        if self.part is None:
            return scan
        given: Scan = self.modality.undersample(scan, self.part, stream=(self.settings.seed, index))
        return given

    def _prepare(self, scan: Scan) -> Prepared:
        prepared: Prepared = self.modality.prepare(scan, self.settings, self.noise)
        return prepared

    def _prior(self, prepared: Prepared) -> Denoiser | Generator | Supervised | None:
        """The prior as images of this scan need it."""
        if self.prior is None or isinstance(self.prior, Generator | Supervised):
            return self.prior
        return self.modality.denoiser(self.prior, self.card, prepared)

    def _coverage(
        self, scan: Scan, given: Scan, prepared: Prepared, x: Tensor, index: int
    ) -> tuple[Coverage | None, tuple[str, ...]]:
        """Whether intervals of the samples hold the image of all the data, and a note if that cannot be said."""
        if "rng" not in inputs_of(method_named(self.settings.method)) or len(x) < 2:
            return None, ()
        rng = Noise((self.settings.seed, index, 3), range(len(x)))
        try:
            arguments = (x, prepared, given, scan, self.part, self.settings, self.noise, rng)
            return self.modality.coverage(*arguments), ()
        except InputError as error:  # a finished image is not lost for it
            return None, (f"no coverage: {error}",)

    def _reporter(self, what: str, before: int, work: int) -> Callable[[float], None]:
        """Tells what fraction of the run is done, given that of a part of it; work is counted in samples."""
        total = SAMPLES * self.checks + len(self.indices) * (self.settings.samples or 1)
        progress = self.progress
        if progress is None:
            return lambda done: None
        return lambda done: progress(what, (before + work * done) / total)


def load_prior(
    prior: str | Denoiser | Generator | Supervised | None, settings: Settings
) -> tuple[Denoiser | Generator | Supervised | None, dict[str, Any] | None]:
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
    check_prior(settings.method, loaded)
    card = getattr(loaded, "card", None)
    if isinstance(loaded, Supervised):
        return loaded, card
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
    """What tells a scan's files from edited ones without reading them."""
    if path is None:
        return None
    stats = {file: file.stat() for file in io.files_of(path)}
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()]
