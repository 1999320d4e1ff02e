"""What a reconstruction returns, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import metrics
from .calibrated import Calibration
from .checks import Check
from .datafit import DataFit
from .errors import InputError
from .io.atomic import result_folder
from .io.dicom_writer import Study, write_series
from .io.panel import write_panel
from .io.writers import (
    ALL_NAMES,
    DICOM,
    DICOM_STD,
    NIFTI,
    PANEL,
    RUN,
    SUBMISSION,
    checksums,
    run_record,
    write_nifti,
    write_run,
    write_submission,
)
from .methods import caveat_of, inputs_of, method_named
from .modalities import Scan, modality_of
from .posterior import Coverage, magnitude, summarize
from .projections import to_hu
from .settings import Settings


@dataclass(frozen=True)
class SliceResult:
    """One slice, cropped and in the units of the measured data.

    Parameters
    ----------
    samples : (sample, set, y, x) complex; one for methods that draw none. Volumes have (z, y, x) throughout.
    zero_filled, reference : (y, x) magnitude; the latter None if there is none.
    seconds : that the method took.
    evaluations : of the network for each sample, 0 without one.
    notes : sentences on the preparation.
    coverage : of the image of all the data by intervals of the samples; None unless some data were left out on request.
    """

    samples: Tensor
    zero_filled: Tensor
    reference: Tensor | None
    seconds: float
    evaluations: int
    notes: tuple[str, ...]
    coverage: Coverage | None = None


@dataclass(frozen=True)
class Reconstruction:
    """Images in the units of the measured data, what they were made with, and how good they are.

    Parameters
    ----------
    mean : (slice, y, x) magnitude image; the mean over samples for methods that draw them.
    complex_mean : (slice, y, x) complex, with one map set; None with several.
    std : (slice, y, x) standard deviation of the magnitude, None unless several samples were drawn.
    lower, upper : (slice, y, x) prediction interval of the magnitude, None likewise.
    samples : (slice, sample, y, x) magnitude images, None for methods that draw none.
    zero_filled : (slice, y, x) magnitude; what the data show without a model.
    reference : (slice, y, x) magnitude, None if there is none.
    metrics : name -> value against the reference; empty without one. See recon.metrics for the definitions.
    statement : what the maps are and how far they can be trusted.
    run : what reproduces it (arguments, seed, versions, checksums), with timings and notes.
    voxel_size : mm along (z, y, x).
    header : texts of the file, to be written back.
    data_fit : how the prior suits the data, None if that was not checked.
    modality : of the scan.
    preview_name : what `zero_filled` is: of CT, a filtered back-projection.
    water : attenuation of water (1/mm) that makes HU of CT images; None if it is not known, and of MRI.
    """

    mean: Tensor
    complex_mean: Tensor | None
    std: Tensor | None
    lower: Tensor | None
    upper: Tensor | None
    samples: Tensor | None
    zero_filled: Tensor
    reference: Tensor | None
    metrics: dict[str, float]
    statement: str
    run: dict[str, Any]
    voxel_size: tuple[float, float, float]
    header: Mapping[str, str]
    data_fit: DataFit | None = None
    modality: str = "MRI"
    preview_name: str = "zero-filled"
    water: float | None = None

    def save(
        self, folder: str | Path, *, overwrite: bool = False, complex_image: bool = False, dicom: bool = False
    ) -> None:
        """Write reconstruction.h5 (fastMRI layout), reconstruction.nii.gz, panel.png and run.json.

        CT images are in 1/mm; where water is known the NIfTI is in HU.

        Parameters
        ----------
        overwrite : replace the results of an earlier run.
        complex_image : also keep the complex image in the HDF5 file.
        dicom : also write a DICOM series in HU, reconstruction-dicom/, and std-dicom/ where there is a std.

        Raises
        ------
        InputError
            If `dicom` is asked for where water is not known.
        ResultExistsError, WriteError
            If results are there and `overwrite` is not set; if the folder cannot be written.
        """
        with result_folder(folder, names=ALL_NAMES, overwrite=overwrite) as target:
            self.write(target, complex_image=complex_image, dicom=dicom)

    def write(self, folder: Path, *, complex_image: bool = False, dicom: bool = False) -> None:
        """Write the files into an empty folder."""
        if dicom:
            self._write_dicom(folder)
        write_submission(
            folder / SUBMISSION,
            self.mean,
            std=self.std,
            samples=self.samples,
            complex_image=self.complex_mean if complex_image else None,
            header=self.header,
        )
        shown = self.mean if self.water is None else to_hu(self.mean, self.water)
        write_nifti(folder / NIFTI, shown, voxel_size=self.voxel_size)
        middle = len(self.mean) // 2
        same = torch.equal(self.mean[middle], self.zero_filled[middle])  # one picture of it is enough
        method = str(self.run["arguments"].get("method", "reconstruction"))
        write_panel(
            folder / PANEL,
            self.mean[middle],
            reference=None if self.reference is None else self.reference[middle],
            zero_filled=None if same else self.zero_filled[middle],
            zero_filled_name=self.preview_name,
            gray=None if self.water is None else (0.84 * self.water, 1.24 * self.water),  # -160 to 240 HU: soft tissue
            std=None if self.std is None else self.std[middle],
            name=method,
            caption=caption(self.metrics),
            title=str(self.run.get("title", "")),
            voxel_size=self.voxel_size,
        )
        write_run(folder / RUN, self.run)

    def _write_dicom(self, folder: Path) -> None:
        """Series of one study, in HU; a std is rounded to a tenth, and shown up to its largest."""
        water, study = known_water(self.water, "this result"), Study(header=self.header)
        method = str(self.run["arguments"].get("method", "reconstruction"))
        image = to_hu(self.mean, water)
        write_series(folder / DICOM, image, voxel_size=self.voxel_size, description=method, study=study)
        if self.std is not None:
            std = self.std * (1000 / water)
            largest = max(float(std.max()), 1.0)
            write_series(
                folder / DICOM_STD,
                std,
                voxel_size=self.voxel_size,
                description=f"{method} std",
                number=2,
                step=0.1,
                window=(largest / 2, largest),
                study=study,
            )


def known_water(water: float | None, name: str) -> float:
    """The attenuation of water, which DICOM's HU need.

    Raises
    ------
    InputError
        If it is not known.
    """
    if water is None:
        raise InputError(
            f"dicom: expected a CT scan with the attenuation of water (1/mm), for HU, came {name} without; give water "
            "in its geometry file, or leave dicom out"
        )
    return water


def caption(metrics: Mapping[str, float]) -> str:
    """The two figures below an image."""
    if "psnr_scaled" not in metrics:
        return ""
    return f"in the object, scaled: {metrics['psnr_scaled']:.1f} dB, SSIM {metrics['ssim_scaled']:.3f}"


def assemble(
    results: Sequence[SliceResult],
    *,
    scan: Scan,
    settings: Settings,
    part: Any,
    path: Path | None,
    card: Mapping[str, Any] | None,
    check: Check | None,
    calibration: Calibration | None = None,
) -> Reconstruction:
    """Slices to volumes, their maps, metrics and the record of the run."""
    to_image = partial(magnitude, ndim=len(scan.shape))
    posteriors = [summarize(result.samples.cpu(), to_image=to_image) for result in results]
    if calibration is not None:
        posteriors = [calibration.apply(posterior) for posterior in posteriors]
    first, is_complex = posteriors[0], posteriors[0].samples.is_complex()
    mean = _volume([posterior.mean for posterior in posteriors])
    reference = _volume_if_any([result.reference for result in results])
    caveat = caveat_of(method_named(settings.method)) if calibration is None else ""  # of the spread as it was drawn
    doubt = "" if calibration is None else calibration.check(settings, card)
    statement = f"{first.statement} {caveat}".strip() if _samples(settings) else ""
    shown = torch.stack([to_image(p.samples).movedim(0, -3) for p in posteriors]).flatten(0, -4)
    quality, unmeasured = measure_if_any(reference, mean)
    run = run_record(
        arguments=asdict(settings),
        seed=settings.seed,
        device=settings.device,
        input_path=path,
        timings={"method": sum(result.seconds for result in results)} | ({"check": check.seconds} if check else {}),
        metrics=quality,
        notes=[
            n
            for n in (
                *results[0].notes,
                f"options from {settings.tuned}" if settings.tuned else "",
                statement,
                f"WARNING: {doubt}" if doubt else "",
                check.statement if check else "",
                unmeasured,
            )
            if n
        ],
    )
    modality = modality_of(scan)
    run["acceleration"] = modality.acceleration(scan, part)
    run["sampled"] = modality.describe(scan, part)
    run["modality"] = modality.NAME
    run["units"] = modality.UNIT
    run["reference"] = modality.describe_reference(scan, part) if reference is not None else None
    run["prior"] = card
    run["evaluations"] = results[0].evaluations  # for each sample of each slice
    run["coverage"] = [None if result.coverage is None else asdict(result.coverage) for result in results]
    run["calibration"] = calibration.record() if calibration else None
    run["tuned"] = checksums(settings.tuned) if settings.tuned else None
    run["data_fit"] = check.record() if check else None
    return Reconstruction(
        mean=mean,
        complex_mean=_volume([p.sample_mean[0] for p in posteriors]) if is_complex and settings.sets == 1 else None,
        std=_volume_if_any([posterior.std for posterior in posteriors]),
        lower=_volume_if_any([posterior.lower for posterior in posteriors]),
        upper=_volume_if_any([posterior.upper for posterior in posteriors]),
        samples=shown if statement else None,
        zero_filled=_volume([result.zero_filled for result in results]),
        reference=reference,
        metrics=quality,
        statement=statement,
        run=run,
        voxel_size=scan.voxel_size,
        header=scan.header,
        data_fit=check.fit if check else None,
        modality=modality.NAME,
        preview_name=modality.preview_name(scan),
        water=modality.water(scan),
    )


def measure_if_any(reference: Tensor | None, image: Tensor) -> tuple[dict[str, float], str]:
    """Every metric, and a note if a reference cannot serve: a finished image is not lost for it."""
    if reference is None:
        return {}, ""
    try:
        return measure(reference, image), ""
    except ValueError as error:
        return {}, f"no metrics: {error}"


def measure(reference: Tensor, image: Tensor) -> dict[str, float]:
    """Every metric against a reference (slice, y, x); those named scaled are taken inside its object mask."""
    inside = metrics.object_mask(reference)
    return {
        "psnr": metrics.psnr(reference, image),
        "ssim": metrics.ssim(reference, image),
        "nmse": metrics.nmse(reference, image),
        "psnr_scaled": metrics.psnr_scaled(reference, image, inside),
        "ssim_scaled": metrics.ssim_scaled(reference, image, inside),
        "nmse_scaled": metrics.nmse_scaled(reference, image, inside),
    }


def _samples(settings: Settings) -> bool:
    """Whether the method draws samples."""
    return "rng" in inputs_of(method_named(settings.method))


def _volume(parts: Sequence[Tensor]) -> Tensor:
    """Slices (y, x), or a volume (z, y, x), as one (slice, y, x) on the CPU."""
    return torch.stack([part.cpu() for part in parts]).flatten(0, -3)


def _volume_if_any(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The same, None if one is missing."""
    kept = [part for part in parts if part is not None]
    return _volume(kept) if len(kept) == len(parts) else None
