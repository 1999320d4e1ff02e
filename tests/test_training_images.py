"""Training images: readers, and images that depend on seed and index alone."""

import io
import tarfile
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage
from torch.utils.data import DataLoader

import priors
from recon.errors import ReconError
from recon.train import split, train, weighted
from recon.training_images import TrainingImages, Volume
from recon.training_volumes import body, read_folder


def ball(shape: tuple[int, int, int] = (20, 24, 28), radius: float = 0.4) -> np.ndarray:
    """A bright ball with structure inside, zero outside."""
    z, y, x = np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij")
    inside = z**2 + y**2 + x**2 < radius**2
    return inside * (1000 + 400 * np.sin(9 * x) * np.cos(7 * y) + 200 * z)


def labels() -> np.ndarray:
    values = (ball() > 0).astype(np.int32) * 515
    values[6:14, 6:18, 6:14], values[6:14, 6:18, 14:22] = 2, 41
    values[8:12, 8:16, 8:14], values[8:12, 8:16, 14:20] = 3, 42
    return values


def write_nifti(path: Path, values: np.ndarray, zooms: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([*zooms, 1.0])), path)


def dicom_slices(values: np.ndarray) -> list[bytes]:
    """A sagittal series: slices along x (to the left, as DICOM counts), rows along -z, columns along y."""
    files = []
    for i in range(values.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(i)])
        d = pydicom.dataset.Dataset()
        d.file_meta, d.SeriesInstanceUID = meta, "1.2.3"
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        pixels = values[::-1, :, i].astype(np.uint16)  # first row at the top of the head
        d.Rows, d.Columns = pixels.shape
        d.PixelSpacing, d.SliceThickness = [1.5, 1.0], 2.0
        d.ImageOrientationPatient, d.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [-2.0 * i, 0, 30]
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelData = pixels.tobytes()
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, d, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files[::-1]  # readers must not rely on the order


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_nifti(folder / "head.nii.gz", ball().astype(np.float32))
    write_nifti(folder / "thick.nii.gz", ball((8, 24, 28)).astype(np.int16), (1.0, 1.0, 5.0))
    write_nifti(folder / "segmentation.nii.gz", labels())
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(ball(), axes=(-2, -1))), axes=(-2, -1)).astype(np.complex64)
    with h5py.File(folder / "one_coil.h5", "w") as file:
        file["kspace"] = kspace * np.exp(0.5j)
    with h5py.File(folder / "coils.h5", "w") as file:
        file["kspace"] = np.stack([0.6 * kspace, 0.8j * kspace], axis=1)
    with h5py.File(folder / "combined.h5", "w") as file:
        file["reconstruction_rss"] = ball().astype(np.float32)
    with tarfile.open(folder / "series.tar.xz", "w:xz") as archive:
        for i, content in enumerate(dicom_slices(ball())):
            member = tarfile.TarInfo(f"{i}.dcm")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "notes.txt").write_text("not a scan")
    return folder


def test_every_format_gives_the_same_ball(folder: Path) -> None:
    """The ball comes back from each file, up to scale and float16 rounding (2^-11 of values up to 1.3)."""
    volumes = {name: found[0] for name, found in read_folder(folder, exclude=["thick*"]).items()}
    assert set(volumes) == {
        "head.nii.gz", "segmentation.nii.gz", "one_coil.h5", "coils.h5", "combined.h5", "series.tar.xz"
    }  # fmt: skip
    reference = ball() / np.percentile(ball()[ball() > 0], 98)
    for name, volume in volumes.items():
        if name != "segmentation.nii.gz":
            np.testing.assert_allclose(np.abs(volume.data), reference, atol=2e-3, err_msg=name)
    assert volumes["series.tar.xz"].spacing == (1.5, 1.0, 2.0)
    assert volumes["one_coil.h5"].data.dtype == np.complex64
    inside = ball() > 0
    np.testing.assert_allclose(np.angle(volumes["one_coil.h5"].data[inside]), 0.5, atol=1e-3)  # float32 FFT


def test_slices_are_cut_where_pixels_are_fine(folder: Path) -> None:
    volumes = {name: found[0] for name, found in read_folder(folder).items()}
    assert volumes["head.nii.gz"].axes == (0, 1, 2)
    assert volumes["thick.nii.gz"].axes == (0,)
    assert volumes["coils.h5"].axes == (0,)


def test_label_maps_are_told_from_images(folder: Path) -> None:
    volumes = {name: found[0] for name, found in read_folder(folder).items()}
    assert [name for name, v in volumes.items() if v.tissues is not None] == ["segmentation.nii.gz"]
    assert volumes["segmentation.nii.gz"].tissues == (
        0,
        1,
        2,
        1,
        2,
        5,
    )  # air, WM, cortex, WM, cortex, outside the brain


def test_background_noise_is_removed_and_the_object_kept() -> None:
    noisy = ball() + 20 * np.abs(np.random.default_rng(0).standard_normal((20, 24, 28)))
    mask = body(noisy)
    assert mask[ball() > 0].all()
    beyond = ndimage.distance_transform_edt(ball() == 0)
    assert (
        beyond[mask].max() <= 5
    )  # smoothing adds up to 1 voxel each way (a diagonal of 1.7), growing 2, filling little


def test_errors_name_what_is_missing(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(ValueError, match="no NIfTI, fastMRI"):
        read_folder(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(ValueError, match="neither reconstruction"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="at least one volume"):
        TrainingImages([])
    volumes = read_folder(folder)
    with pytest.raises(ValueError, match="no file matches nothing"):
        split(volumes, ["nothing"])
    with pytest.raises(ValueError, match="nothing is left"):
        split(volumes, ["*"])
    training, held_out = split(volumes, [])
    assert set(held_out) == {"thick.nii.gz"}
    assert set(training) == set(volumes) - {"thick.nii.gz"}


def test_label_maps_get_their_share(folder: Path) -> None:
    volumes = weighted(read_folder(folder), 0.25)
    share = sum(v.weight for v in volumes if v.tissues is not None) / sum(v.weight for v in volumes)
    assert share == pytest.approx(0.25)


@pytest.fixture(scope="module")
def images(folder: Path) -> TrainingImages:
    return TrainingImages(weighted(read_folder(folder), 1 / 3), shape=(40, 48), seed=3)


def test_images_look_as_the_prior_expects(images: TrainingImages) -> None:
    """Complex, the right size, finite, p99 between 0.7 and 1.45, of varied phase and contrast."""
    drawn = [images[i] for i in range(30)]
    for image in drawn:
        assert image.shape == (40, 48)
        assert image.dtype == torch.complex64
        assert torch.isfinite(torch.view_as_real(image)).all()
        assert 0.65 < image.abs().quantile(0.99) < 1.5  # the quantile used takes the next lower value of 1920
    phases = torch.stack([image.sum().angle() for image in drawn])
    assert phases.std() > 1  # uniform over the circle: pi / sqrt(3)


def test_images_depend_on_seed_and_index_alone(images: TrainingImages, folder: Path) -> None:
    """In any order, in other objects and in other processes, and no global random state is touched."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    forwards = [images[i] for i in range(6)]
    backwards = [images[i] for i in reversed(range(6))][::-1]
    again = TrainingImages(weighted(read_folder(folder), 1 / 3), shape=(40, 48), seed=3)
    loader = DataLoader(
        images,  # type: ignore[arg-type]
        sampler=range(6),
        num_workers=2,
        multiprocessing_context="spawn",
        batch_size=None,
        generator=torch.Generator(),
    )
    for one, two, three, four in zip(forwards, backwards, (again[i] for i in range(6)), loader, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert torch.equal(one, four)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], TrainingImages(images.volumes, shape=(40, 48), seed=4)[0])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_empty_slices_are_passed_over() -> None:
    data = np.zeros((20, 24, 28), np.float16)
    data[9:11] = 1
    images = TrainingImages([Volume(data, (1.0, 1.0, 1.0), axes=(0,))], shape=(40, 48))
    assert all(images[i].abs().max() > 0.5 for i in range(5))


def test_small_or_empty_volumes_are_named() -> None:
    speck = np.zeros((20, 24, 28), np.float16)
    speck[10, 12, 14] = 1
    with pytest.raises(ValueError, match="next to nothing"):
        TrainingImages([Volume(speck, (1.0, 1.0, 1.0))])[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"minutes": 0.0}, "more than 0 minutes"),
        ({"steps": 0}, "more than 0 minutes and steps"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"device": "nonsense"}, "device: expected cpu"),
        ({"learning_rate": 0.0}, "learning rate above 0"),
        ({"start": "brian"}, "--start: unknown prior 'brian': embedded are brain"),
        ({"out": Path("/dev/null/prior")}, "a file where a folder should be"),
        ({}, "a.nii.gz: expected a whole scan"),
        ({"exclude": ["a*"]}, "b.h5: expected a whole scan"),
        ({"exclude": ["a*", "b*"]}, "no NIfTI"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tmp_path: Path, arguments: dict[str, Any], problem: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(ReconError, match=problem) as caught:
        train(tmp_path, **{"out": tmp_path / "out", **arguments})
    assert "\n" not in str(caught.value)


def test_recon_train_makes_a_prior_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls with one and two steps: the second starts from the first's checkpoint, and the prior loads."""
    monkeypatch.setattr("recon.train.VALIDATION_IMAGES", 1)
    scans, notes = tmp_path / "scans", tmp_path / "notes.json"
    scans.mkdir()
    for name in ("a", "b", "c"):
        write_nifti(scans / f"{name}.nii.gz", ball().astype(np.float32), (5.0, 5.0, 5.0))
    notes.write_text('{"licence": "CC0"}')
    for steps in (1, 2):
        card = train(scans, out=tmp_path, steps=steps, exclude=["a*"], validation=["b*"], name="ball", card=notes)
    denoiser = priors.load(card)
    assert denoiser.card["training"]["step"] == 2
    assert denoiser.card["licence"] == "CC0"
    assert denoiser.card["recipe"]["validation"] == ["b.nii.gz"]
    assert denoiser.card["recipe"]["files"] == ["c.nii.gz"]


def test_fine_tuning_starts_from_the_weights_of_a_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step with a warming-up learning rate of 1e-9 leaves the weights where they were, to float16 rounding."""
    monkeypatch.setattr("recon.train.VALIDATION_IMAGES", 1)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "b"):
        write_nifti(scans / f"{name}.nii.gz", ball().astype(np.float32), (5.0, 5.0, 5.0))
    first = train(scans, out=tmp_path / "first", steps=1, name="first")
    second = priors.load(train(scans, out=tmp_path / "second", steps=1, start=first, learning_rate=1e-9, seed=1))
    for before, after in zip(priors.load(first).parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-6)
    assert second.card["recipe"]["start"] == {"name": "first", "sha256": priors.load(first).card["sha256"]}
