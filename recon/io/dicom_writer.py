"""Images in Hounsfield units as DICOM series: derived, with identifiers of their own, not for diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from recon.errors import InputError
from recon.io.atomic import atomic

NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS"
MANUFACTURER, MODEL, KVP = "Manufacturer", "ManufacturerModelName", "KVP"  # of the scanner, in a scan's header
LARGEST = 32767  # of signed 16 bits


def _uid() -> Any:
    from pydicom.uid import generate_uid

    return generate_uid()


@dataclass(frozen=True)
class Study:
    """What the series of one study share: series of one study and frame of reference lie on each other.

    Parameters
    ----------
    uid, frame_of_reference : identifiers; new ones by default.
    patient_id : empty unless given; names are never written.
    header : what is known of the scanner, see MANUFACTURER, MODEL and KVP; other entries are not written.
    """

    uid: str = field(default_factory=_uid)
    frame_of_reference: str = field(default_factory=_uid)
    patient_id: str = ""
    header: Mapping[str, str] = field(default_factory=dict)


def write_series(
    folder: str | Path,
    hu: Tensor | np.ndarray,
    *,
    voxel_size: tuple[float, float, float],
    description: str = "reconstruction",
    number: int = 1,
    step: float = 1.0,
    window: tuple[float, float] = (40.0, 400.0),
    study: Study | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write one CT image (DICOM) for each slice, 0000.dcm ...

    Parameters
    ----------
    hu : (slice, y, x) Hounsfield units.
    voxel_size : mm along (z, y, x); the volume's middle is the origin, as in `write_nifti`.
    description : of the series, what stands before "NOT FOR DIAGNOSIS"; at most 40 letters.
    number : of the series in its study.
    step : HU that values are rounded to; larger where they would not fit 16 bits.
    window : centre and width, HU, that viewers open with; those of soft tissue by default.
    study : that the series belongs to; one of its own by default.

    Raises
    ------
    InputError
        If the image is complex, not finite or has other axes.
    ResultExistsError, WriteError
        If a file is there and `overwrite` is not set; if it cannot be written.
    """
    values = hu.detach().cpu().numpy() if isinstance(hu, Tensor) else np.asarray(hu)
    if values.ndim != 3 or np.iscomplexobj(values) or not np.isfinite(values).all():
        raise InputError(f"expected finite HU (slice, y, x), came {values.dtype} of shape {values.shape}")
    if len(description) > 40:
        raise InputError(f"description: expected at most 40 letters, got {len(description)}")
    slope = float(f"{max(step, float(np.abs(values).max()) / LARGEST * (1 + 1e-6)):.8g}")  # as the file will say
    stored, written = np.rint(values / slope).astype("<i2"), []
    study, series, now = study or Study(), _uid(), datetime.now(UTC)
    for index, image in enumerate(stored):
        dataset = _image(image, index, stored.shape, voxel_size)
        dataset.WindowCenter, dataset.WindowWidth = (f"{value:.6g}" for value in window)
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, f"{slope:.8g}", "HU"
        dataset.SeriesInstanceUID, dataset.SeriesNumber = series, number
        dataset.SeriesDescription = f"{description} {NOT_FOR_DIAGNOSIS}"
        dataset.InstanceCreationDate = dataset.StudyDate = dataset.SeriesDate = f"{now:%Y%m%d}"
        dataset.InstanceCreationTime = dataset.StudyTime = dataset.SeriesTime = f"{now:%H%M%S}"
        _describe(dataset, study)
        path = Path(folder) / f"{index:04d}.dcm"
        with atomic(path, overwrite=overwrite) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
        written.append(path)
    return written


def _describe(dataset: Any, study: Study) -> None:
    """The patient, the study, and the scanner as the equipment that contributed: these images are not its own."""
    from pydicom.dataset import Dataset

    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study.uid, study.frame_of_reference
    dataset.PatientID, dataset.KVP = study.patient_id, study.header.get(KVP, "")
    if MANUFACTURER in study.header:
        scanner, purpose = Dataset(), Dataset()
        purpose.CodeValue, purpose.CodingSchemeDesignator = "109101", "DCM"
        purpose.CodeMeaning = "Acquisition Equipment"
        scanner.Manufacturer, scanner.ManufacturerModelName = study.header[MANUFACTURER], study.header.get(MODEL, "")
        scanner.PurposeOfReferenceCodeSequence = [purpose]
        dataset.ContributingEquipmentSequence = [scanner]


def _image(image: np.ndarray, index: int, shape: tuple[int, ...], voxel_size: tuple[float, float, float]) -> Any:
    """The data set of one slice."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    (slices, rows, columns), (dz, dy, dx) = shape, voxel_size
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality, dataset.ImageType = "CT", ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.DerivationDescription = f"reconstructed by research software, {NOT_FOR_DIAGNOSIS.lower()}"
    dataset.ImageComments = NOT_FOR_DIAGNOSIS
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.Manufacturer = "tweedie-recon"
    dataset.PatientName = dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
    dataset.AccessionNumber = dataset.StudyID = dataset.PositionReferenceIndicator = dataset.AcquisitionNumber = ""
    dataset.PatientPosition, dataset.InstanceNumber = "", index + 1  # raw data do not say how the patient lay
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [
        f"{-dx * (columns - 1) / 2:.6g}",
        f"{-dy * (rows - 1) / 2:.6g}",
        f"{dz * (index - (slices - 1) / 2):.6g}",
    ]
    dataset.SliceThickness, dataset.PixelSpacing = f"{dz:.8g}", [f"{dy:.8g}", f"{dx:.8g}"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = image.tobytes()
    return dataset
