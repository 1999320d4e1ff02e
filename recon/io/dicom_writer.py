"""Images in Hounsfield units as a DICOM series: derived, with identifiers of its own, not for diagnosis."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from torch import Tensor

from recon.errors import InputError
from recon.io.atomic import atomic

NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS"


def write_series(
    folder: str | Path,
    hu: Tensor | np.ndarray,
    *,
    voxel_size: tuple[float, float, float],
    description: str = "reconstruction",
    patient_id: str = "",
    overwrite: bool = False,
) -> list[Path]:
    """Write one CT image (DICOM) for each slice, 0000.dcm ...; values are rounded to whole HU.

    Parameters
    ----------
    hu : (slice, y, x) Hounsfield units.
    voxel_size : mm along (z, y, x); the volume's middle is the origin, as in `write_nifti`.
    description : of the series, what stands before "NOT FOR DIAGNOSIS"; at most 40 letters.
    patient_id : empty unless given; names are never written.

    Raises
    ------
    InputError
        If the image is complex, not finite, has other axes or values beyond 16 bits.
    ResultExistsError, WriteError
        If a file is there and `overwrite` is not set; if it cannot be written.
    """
    values = hu.detach().cpu().numpy() if isinstance(hu, Tensor) else np.asarray(hu)
    if values.ndim != 3 or np.iscomplexobj(values) or not np.isfinite(values).all():
        raise InputError(f"expected finite HU (slice, y, x), came {values.dtype} of shape {values.shape}")
    if np.abs(values).max() > 32767:
        raise InputError(f"expected HU between -32767 and 32767, came up to {np.abs(values).max():g}; are they 1/mm?")
    if len(description) > 40:
        raise InputError(f"description: expected at most 40 letters, got {len(description)}")
    stored, written = np.rint(values).astype("<i2"), []
    from pydicom.uid import generate_uid

    uids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    now = datetime.now(UTC)
    for number, image in enumerate(stored):
        dataset = _image(image, number, stored.shape, voxel_size)
        for key, uid in uids.items():
            setattr(dataset, key, uid)
        dataset.SeriesDescription = f"{description} {NOT_FOR_DIAGNOSIS}"
        dataset.PatientID = patient_id
        dataset.InstanceCreationDate = dataset.StudyDate = dataset.SeriesDate = f"{now:%Y%m%d}"
        dataset.InstanceCreationTime = dataset.StudyTime = dataset.SeriesTime = f"{now:%H%M%S}"
        path = Path(folder) / f"{number:04d}.dcm"
        with atomic(path, overwrite=overwrite) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
        written.append(path)
    return written


def _image(image, number, shape, voxel_size):  # type: ignore[no-untyped-def]
    """The data set of one slice."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    (slices, rows, columns), (dz, dy, dx) = shape, voxel_size
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality, dataset.ImageType = "CT", ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.DerivationDescription = f"reconstructed by research software, {NOT_FOR_DIAGNOSIS.lower()}"
    dataset.ImageComments = NOT_FOR_DIAGNOSIS
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.Manufacturer = "tweedie-recon"
    dataset.PatientName = dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
    dataset.AccessionNumber = dataset.StudyID = dataset.PositionReferenceIndicator = dataset.KVP = ""
    dataset.AcquisitionNumber = ""
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [
        f"{-dx * (columns - 1) / 2:.6g}",
        f"{-dy * (rows - 1) / 2:.6g}",
        f"{dz * (number - (slices - 1) / 2):.6g}",
    ]
    dataset.SliceThickness, dataset.PixelSpacing = f"{dz:.8g}", [f"{dy:.8g}", f"{dx:.8g}"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = image.tobytes()
    return dataset
