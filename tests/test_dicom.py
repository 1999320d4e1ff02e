"""DICOM: series of CT images, projections (DICOM-CT-PD) and derived images out."""

import math
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from operators.ct import FanBeam, Grid, XRay
from recon.ct import CTScan
from recon.errors import InputError, MissingFileError, ResultExistsError
from recon.io import load
from recon.io.dicom import read_images
from recon.io.dicom_writer import Study, write_series


def series(folder: Path, *, places: Sequence[float] = (0, 2, 4, 6), tilt: float = 0.0, **changes: Any) -> np.ndarray:
    """A series of 5 x 4 pixels, of slices at places along z; returns its HU, sorted. Files are in another order."""
    hu = np.random.default_rng(0).integers(-1000, 2000, (len(places), 5, 4)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    paths = write_series(folder, hu, voxel_size=(2.0, 0.5, 0.7))
    for i, (path, z) in enumerate(zip(paths, places, strict=True)):
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient = [1, 0, 0, 0, math.cos(tilt), -math.sin(tilt)]
        dataset.ImagePositionPatient = [0, 0, z]
        for key, value in changes.items():
            setattr(dataset, key, value)
        dataset.save_as(folder / f"{(7 * i) % len(places)}.tmp")
        path.unlink()
    for path in list(folder.glob("*.tmp")):
        path.rename(path.with_suffix(".dcm"))
    return hu


def change(path: Path, **values: Any) -> None:
    dataset = pydicom.dcmread(path)
    for key, value in values.items():
        setattr(dataset, key, value)
    dataset.save_as(path)


def test_images_without_a_position_are_left_out_and_told(tmp_path: Path) -> None:
    hu = series(tmp_path)
    dataset = pydicom.dcmread(next(tmp_path.iterdir()))
    del dataset.ImagePositionPatient
    dataset.save_as(tmp_path / "capture.dcm")
    found = read_images(tmp_path, gaps=True)
    assert np.array_equal(found.hu, hu)
    assert "Left out: 1 of the series' images, without a position" in found.notes[-1]


def test_a_series_is_sorted_by_position_and_scaled(tmp_path: Path) -> None:
    hu = series(tmp_path, RescaleIntercept=-1024, RescaleSlope=2)
    images = read_images(tmp_path)
    assert np.array_equal(images.hu.numpy(), 2 * hu - 1024)
    assert images.positions.diff().tolist() == [2, 2, 2]
    assert images.pixel_size == (0.5, 0.7)
    assert (images.tilt, images.uneven, images.notes) == (0, False, ())


def test_padding_is_air(tmp_path: Path) -> None:
    hu = series(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.add_new((0x0028, 0x0120), "SS", int(hu[1, 0, 0]))
        dataset.save_as(path)
    expected = np.where(hu == hu[1, 0, 0], -1000, hu)
    assert np.array_equal(read_images(tmp_path).hu.numpy(), expected)


def test_tilt_and_mixed_spacing_are_recognised(tmp_path: Path) -> None:
    series(tmp_path, places=(0, 2, 4, 7, 10), tilt=math.radians(20))
    images = read_images(tmp_path)
    assert math.degrees(images.tilt) == pytest.approx(20, abs=1e-3)
    assert images.uneven
    assert any("20.0 degrees" in note for note in images.notes)
    assert any("regular volume" in note for note in images.notes)


def test_missing_slices(tmp_path: Path) -> None:
    series(tmp_path, places=(0, 2, 4, 10, 12))
    with pytest.raises(InputError, match=r"slices are missing.*6\.00 mm after instance 3"):
        read_images(tmp_path)
    assert len(read_images(tmp_path, gaps=True).hu) == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "one orientation"),
        ({"PixelSpacing": [0.5, 0.5]}, "one pixel size"),
        ({"Rows": 4, "Columns": 5}, "one size"),
        ({"FrameOfReferenceUID": "1.2.3"}, "one frame of reference"),
        ({"ImagePositionPatient": [0, 0, 2]}, "several at"),
        ({"SeriesInstanceUID": "1.2.3"}, "2 mixed"),
        ({"RescaleType": "OD"}, "in HU"),
    ],
)
def test_mixed_slices(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    series(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        if pydicom.dcmread(path).InstanceNumber == 3:
            change(path, **values)
    with pytest.raises(InputError, match=said):
        read_images(tmp_path)


@pytest.mark.parametrize("element", ["PixelSpacing", "ImageOrientationPatient"])
def test_images_that_do_not_say_where_they_are(tmp_path: Path, element: str) -> None:
    series(tmp_path)
    (path,) = (p for p in tmp_path.glob("*.dcm") if pydicom.dcmread(p).InstanceNumber == 3)
    for value in (None, [1, 0, 0]):
        change(path, **{element: value})
        with pytest.raises(InputError, match=rf"expected {element} .* instance 3 came with"):
            read_images(tmp_path)
    dataset = pydicom.dcmread(path)
    delattr(dataset, element)
    dataset.save_as(path)
    with pytest.raises(InputError, match=rf"expected {element} .* instance 3 came with none"):
        read_images(tmp_path)


def test_one_of_two_series_by_name(tmp_path: Path) -> None:
    series(tmp_path / "a", SeriesInstanceUID="1.2.3")
    series(tmp_path / "b", places=(0, 1), SeriesInstanceUID="1.2.4")
    assert len(read_images(tmp_path, series="1.2.4").hu) == 2
    with pytest.raises(InputError, match=r"came 1\.2\.3"):
        read_images(tmp_path, series="1.2.5")


def test_what_is_no_series(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_images(tmp_path / "none")
    with pytest.raises(InputError, match="series of CT images"):
        read_images(tmp_path)
    series(tmp_path / "a")
    with pytest.raises(InputError, match="simulate a scan"):
        load(tmp_path / "a")
    path = next((tmp_path / "a").glob("*.dcm"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="whole"):
        read_images(tmp_path / "a")


def test_head_with_tilted_gantry(data_dir: Path) -> None:
    images = read_images(data_dir / "ct" / "dcm_qa_ct_GE_head_28.tar.xz")
    assert images.hu.shape == (28, 512, 512)
    assert math.degrees(images.tilt) == pytest.approx(18.5, abs=0.01)  # as GantryDetectorTilt says
    assert images.uneven
    assert float(images.hu.min()) >= -1024  # padding of -1500 is air
    assert sorted(set(images.thickness.tolist())) == [4, 7]


# -- Out --------------------------------------------------------------------------------------------------------------


def test_images_out_are_derived_and_say_so(tmp_path: Path) -> None:
    hu = torch.tensor([-1000.4, 0.0, 39.6, 3000.0]).reshape(1, 2, 2).repeat(3, 1, 1)
    study = Study(patient_id="X1", header={"KVP": "120", "Manufacturer": "ACME", "ManufacturerModelName": "One"})
    paths = write_series(tmp_path, hu, voxel_size=(3.0, 0.5, 0.7), description="sirt", study=study)
    images = read_images(tmp_path)
    assert torch.equal(images.hu, hu.round())
    assert images.pixel_size == (0.5, 0.7)
    assert images.positions.tolist() == [-3, 0, 3]
    sets = [pydicom.dcmread(path) for path in paths]
    assert len({d.SOPInstanceUID for d in sets}) == 3
    assert len({d.SeriesInstanceUID for d in sets}) == 1
    for dataset in sets:
        assert dataset.ImageType[0] == "DERIVED"
        assert "NOT FOR DIAGNOSIS" in dataset.ImageComments
        assert "NOT FOR DIAGNOSIS" in dataset.SeriesDescription
        assert (dataset.PatientName, dataset.PatientID, dataset.KVP) == ("", "X1", 120)
        assert dataset.Manufacturer == "tweedie-recon"  # who made these images
        (scanner,) = dataset.ContributingEquipmentSequence
        assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("ACME", "One")
    with pytest.raises(ResultExistsError):
        write_series(tmp_path, hu, voxel_size=(3.0, 0.5, 0.7))
    again = write_series(tmp_path, hu, voxel_size=(3.0, 0.5, 0.7), overwrite=True)
    assert pydicom.dcmread(again[0]).SeriesInstanceUID != sets[0].SeriesInstanceUID


def test_steps_of_stored_values(tmp_path: Path) -> None:
    """Tenths where they are asked for; coarser where 16 bits would not hold the largest, as of metal."""
    for name, hu, step, within in (
        ("fine", torch.linspace(-3, 90, 12), 0.1, 0.05),
        ("large", torch.linspace(-1000, 1e5, 12), 1.0, 0.5 * 1e5 / 32767),
    ):
        write_series(tmp_path / name, hu.reshape(1, 3, 4), voxel_size=(1.0, 1.0, 1.0), step=step)
        found = read_images(tmp_path / name).hu.flatten()
        assert float((found - hu).abs().max()) <= 1.001 * within  # rounding of float32


@pytest.mark.filterwarnings("error")
def test_what_is_written_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pydicom's own rules, as errors; and what the standard wants of every CT image is there (type 1 and 2)."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.RAISE)
    values = (10 / 3, 0.1 + 0.2, 1 / 7)  # more digits than a decimal string may have
    study = Study(header={"KVP": "120", "Manufacturer": "ACME"})
    (path,) = write_series(tmp_path, torch.full((1, 3, 4), 1e5), voxel_size=values, step=1 / 3, study=study)
    dataset = pydicom.dcmread(path)
    pydicom.dataset.validate_file_meta(dataset.file_meta, enforce_standard=True)
    for element in dataset.iterall():
        element.value  # noqa: B018  # read from its bytes, and checked
    modules = (
        "PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime ReferringPhysicianName "
        "StudyID AccessionNumber Modality SeriesInstanceUID SeriesNumber PatientPosition FrameOfReferenceUID "
        "PositionReferenceIndicator Manufacturer InstanceNumber PixelSpacing ImageOrientationPatient "
        "ImagePositionPatient SliceThickness ImageType SamplesPerPixel PhotometricInterpretation Rows Columns "
        "BitsAllocated BitsStored HighBit PixelRepresentation PixelData RescaleIntercept RescaleSlope RescaleType KVP "
        "AcquisitionNumber SOPClassUID SOPInstanceUID SpecificCharacterSet"
    )
    assert [name for name in modules.split() if name not in dataset] == []


@pytest.mark.parametrize(
    ("hu", "said"),
    [
        (torch.ones(2, 2), "slice, y, x"),
        (torch.full((1, 2, 2), math.nan), "finite"),
    ],
)
def test_images_that_do_not_fit_dicom(tmp_path: Path, hu: torch.Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_series(tmp_path, hu, voxel_size=(1.0, 1.0, 1.0))


# -- Projections ------------------------------------------------------------------------------------------------------

SOD, SDD, SPACING, BINS, CENTRAL = 60.0, 100.0, 0.8, 64, 33.25
DISC = (4.0, -3.0, 5.0)  # x to the right and y up, as seen from the table; radius; mm


def projections(
    folder: Path, *, shape: str = "CYLINDRICAL", step: float = 0.0, positions: int = 2, views: int = 12
) -> list[Path]:
    """A disc of 0.03 1/mm, seen by a scanner as the manual describes it; two detector rows, the beam between them."""
    folder.mkdir(exist_ok=True)
    x0, y0, radius = DISC
    paths = []
    for i in np.random.default_rng(0).permutation(views * positions):
        phi, place = 2 * math.pi * (i % views) / views, int(i // views)
        source = np.array([-SOD * math.sin(phi), SOD * math.cos(phi)])
        towards = -source / SOD  # with the source at 12 o'clock, down; columns then grow to the right
        right = np.array([-towards[1], towards[0]])
        along = (np.arange(1, BINS + 1) - CENTRAL) * SPACING
        angle = along / SDD if shape == "CYLINDRICAL" else np.arctan(along / SDD)
        rays = np.cos(angle)[:, None] * towards + np.sin(angle)[:, None] * right
        offset = np.array([x0, y0]) - source
        across = rays[:, 0] * offset[1] - rays[:, 1] * offset[0]
        integral = 0.03 * 2 * np.sqrt(np.clip(radius**2 - across**2, 0, None))
        paths.append(folder / f"{i}.dcm")
        write_projection(paths[-1], np.stack((integral + 0.1, integral - 0.1)), phi, 5.0 * place + step * i, shape)
    return paths


def write_projection(path: Path, rows: np.ndarray, phi: float, z: float, shape: str) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns = rows.shape[::-1]  # detector columns go down, rows are next to each other
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = "0.00002", "-0.2"
    dataset.PixelData = np.rint((rows + 0.2) / 0.00002).astype("<u2").T.tobytes()
    for tag, vr, value in (
        ((0x7029, 0x1002), "FL", SPACING),
        ((0x7029, 0x1010), "US", rows.shape[0]),
        ((0x7029, 0x1011), "US", rows.shape[1]),
        ((0x7029, 0x100B), "CS", shape),
        ((0x7031, 0x1001), "FL", phi),
        ((0x7031, 0x1002), "FL", z),
        ((0x7031, 0x1003), "FL", SOD),
        ((0x7031, 0x1031), "FL", SDD),
        ((0x7031, 0x1033), "FL", [CENTRAL, 1.5]),
        ((0x7033, 0x100B), "FL", 0.0),
        ((0x7033, 0x1065), "FL", [1000.0] * 64),
        ((0x7039, 0x1009), "CS", "YES"),
        ((0x7041, 0x1001), "DS", "0.0192"),
    ):
        dataset.add_new(tag, vr, value)
    dataset.save_as(path, enforce_file_format=True)


def test_photons_of_a_bowtie_are_told_of(tmp_path: Path) -> None:
    paths = projections(tmp_path)
    for path in paths:
        view = pydicom.dcmread(path)
        view[0x7033, 0x1065].value = [500.0] * 32 + [1500.0] * 32
        view.save_as(path)
    scan = load(tmp_path)
    assert isinstance(scan, CTScan)
    assert scan.photons == 1000
    assert any("Photons run from 500 to 1.5e+03" in note for note in scan.notes)


@pytest.mark.parametrize("shape", ["CYLINDRICAL", "FLAT"])
def test_projections_by_their_specification(tmp_path: Path, shape: str) -> None:
    projections(tmp_path / "scan", shape=shape)
    with tarfile.open(tmp_path / "scan.any", "w:gz") as archive:
        archive.add(tmp_path / "scan", "scan")
    for path in (tmp_path / "scan", tmp_path / "scan.any"):
        scan = load(path)
        assert isinstance(scan, CTScan)
        assert isinstance(scan.geometry, FanBeam)
        assert (len(scan), scan.geometry.views, scan.geometry.bins) == (2, 12, BINS)
        assert scan.geometry.curved == (shape == "CYLINDRICAL")
        assert (scan.photons, scan.water, scan.slice_spacing) == (1000, 0.0192, 5)
        # Our rows go down: the disc is at y = -DISC[1]. Drawn in fine pixels, it projects onto the data.
        grid = Grid((200, 200), 0.15)
        y, x = ((torch.arange(200) - 99.5) * 0.15 for _ in range(2))
        image = 0.03 * ((y[:, None] + DISC[1]) ** 2 + (x - DISC[0]) ** 2 < DISC[2] ** 2).float()
        projected = XRay(scan.geometry, grid)(image)
        for data in torch.as_tensor(scan.projections[:]):
            # edges of pixels: measured 1 %; a mirror image, or the central element a bin off, gives above 10 %
            assert float((projected - data).norm() / data.norm()) < 0.03


def test_pixels_of_the_detector_may_lie_either_way(tmp_path: Path) -> None:
    paths = projections(tmp_path / "scan")
    expected = torch.as_tensor(load(tmp_path / "scan").projections[:])  # type: ignore[union-attr]
    for path in paths:
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array.T
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(path)
    assert torch.equal(torch.as_tensor(load(tmp_path / "scan").projections[:]), expected)  # type: ignore[union-attr]
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset[0x7029, 0x1011].value = BINS + 1
        dataset.save_as(path)
    with pytest.raises(InputError, match=r"expected 65 columns x 2 rows of pixels, .* came 2 x 64"):
        load(tmp_path / "scan")


def test_detectors_that_their_numbers_do_not_fit(tmp_path: Path) -> None:
    path = projections(tmp_path / "scan")[0]
    dataset = pydicom.dcmread(path)
    for value, said in ((BINS + 1, "expected one NumberofDetectorColumns, came 2: 64, 65"), (None, "came 2")):
        dataset[0x7029, 0x1011].value = value
        dataset.save_as(path)
        with pytest.raises(InputError, match=said):
            load(tmp_path / "scan")
    dataset[0x7029, 0x1011].value = BINS
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(InputError, match="expected whole pixels"):
        load(tmp_path / "scan")


def test_projections_that_are_not_read(tmp_path: Path) -> None:
    def refused(folder: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            load(tmp_path / folder)

    projections(tmp_path / "helix", step=0.01, positions=1)
    refused("helix", "helix")
    paths = projections(tmp_path / "gap")
    paths[0].unlink()
    refused("gap", "views are missing")
    for name, tag, vr, value, said in (
        ("shape", (0x7029, 0x100B), "CS", "SPHERICAL", "SPHERICAL|one DetectorShape"),
        ("log", (0x7039, 0x1009), "CS", "NO", "logarithm"),
        ("spot", (0x7033, 0x100B), "FL", 0.01, "SourceAngularPositionShift"),
        ("none", (0x7031, 0x1003), None, None, "DetectorFocalCenterRadialDistance"),
        ("other", (0x7031, 0x1031), "FL", 90.0, "one ConstantRadialDistance"),
    ):
        path = projections(tmp_path / name, positions=1)[0]
        dataset = pydicom.dcmread(path)
        if vr is None:
            del dataset[tag]
        else:
            dataset.add_new(tag, vr, value)
        dataset.save_as(path)
        refused(name, said)
