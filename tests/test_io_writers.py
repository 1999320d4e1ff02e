"""Writers: what is read back is what was written."""

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from recon.errors import InputError
from recon.io import cfl
from recon.io.panel import write_panel
from recon.io.writers import run_record, submission, write_nifti, write_run, write_submission


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def contents(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- HDF5 -------------------------------------------------------------------------------------------------------------


def test_submission_round_trip_is_exact(tmp_path: Path) -> None:
    result, std = image(3, 8, 6), image(3, 8, 6) / 10
    samples, whole = torch.complex(image(3, 4, 8, 6), image(3, 4, 8, 6)), torch.complex(result, std)
    header = {"ismrmrd_header": "<xml>" + "x" * 70_000 + "</xml>", "acquisition": "T1"}
    write_submission(tmp_path / "a.h5", result, std=std, samples=samples, complex_image=whole, header=header)
    with h5py.File(tmp_path / "a.h5") as file:
        expected = {"reconstruction": result, "std": std, "samples": samples, "reconstruction_complex": whole}
        for name, values in expected.items():
            assert file[name].dtype == values.numpy().dtype
            assert np.array_equal(file[name][()], values.numpy())
        assert file["ismrmrd_header"][()].decode() == header["ismrmrd_header"]
        assert file.attrs["acquisition"] == "T1"
    assert contents(tmp_path) == ["a.h5"]


def test_submission_slice_by_slice_is_the_same(tmp_path: Path) -> None:
    result, std = image(5, 8, 6), image(5, 8, 6) / 10
    with submission(tmp_path / "a.h5") as file:
        for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
            file.append(result[part], std=std[part])
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["reconstruction"][()], result.numpy())
        assert np.array_equal(file["std"][()], std.numpy())


def test_submission_passes_the_fastmri_evaluation(tmp_path: Path) -> None:
    evaluate = pytest.importorskip("fastmri.evaluate")
    (tmp_path / "target").mkdir()
    with h5py.File(tmp_path / "target" / "file.h5", "w") as file:
        file["reconstruction_rss"] = image(3, 16, 16).numpy()
        file.attrs["acquisition"] = "T1"
        file.attrs["max"] = 1.0
    write_submission(tmp_path / "mine" / "file.h5", image(3, 16, 16))
    with h5py.File(tmp_path / "target" / "file.h5") as target, h5py.File(tmp_path / "mine" / "file.h5") as mine:
        assert evaluate.nmse(target["reconstruction_rss"][()], mine["reconstruction"][()]) == 0


def test_submission_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="magnitude"):
        write_submission(tmp_path / "a.h5", image(3, 8, 6) + 0j)
    with pytest.raises(InputError, match="std"):
        write_submission(tmp_path / "a.h5", image(3, 8, 6), std=image(3, 8, 5))
    with submission(tmp_path / "a.h5") as file:
        file.append(image(1, 8, 6))
        with pytest.raises(InputError, match="like the slices before"):
            file.append(image(1, 8, 5))
    assert contents(tmp_path) == ["a.h5"]


# -- NIfTI, run.json, panel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_round_trip(tmp_path: Path, name: str) -> None:
    volume = image(3, 8, 6)
    write_nifti(tmp_path / name, volume, voxel_size=(5.0, 0.5, 0.75))
    read = nibabel.load(tmp_path / name)
    assert read.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(read.dataobj), volume.numpy().transpose(2, 1, 0))
    assert read.header.get_zooms() == (0.75, 0.5, 5.0)
    assert nibabel.aff2axcodes(read.affine) == (
        "L",
        "P",
        "S",
    )  # first row anterior, first column right: as on the screen
    assert np.allclose(read.affine @ [2.5, 3.5, 1.0, 1.0], [0, 0, 0, 1])  # the middle of the volume
    # a viewer that brings the volume to the standard axes and shows it as radiologists do has the first row on top
    standard = nibabel.as_closest_canonical(read).get_fdata()[::-1, ::-1, 0].T
    assert np.array_equal(standard.astype(np.float32), volume[0].numpy())


def test_nifti_refuses_complex_images_and_other_endings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="magnitude"):
        write_nifti(tmp_path / "a.nii", image(3, 8, 6) + 0j)
    with pytest.raises(InputError, match=r"\.nii"):
        write_nifti(tmp_path / "a.img", image(3, 8, 6))


def test_run_record(tmp_path: Path) -> None:
    cfl.write(tmp_path / "scan", image(1, 2, 4, 4) + 0j, readout_axis=-2)
    (tmp_path / "prior").write_bytes(b"abc")
    record = run_record(
        arguments={"method": "cg-sense", "out": tmp_path, "sigmas": (1.0, 0.5)},
        seed=7,
        device="cpu",
        input_path=tmp_path / "scan",
        prior_path=tmp_path / "prior",
        timings={"maps": 0.5},
        metrics={"psnr": torch.tensor(31.5), "ssim": np.float32(0.5), "nmse": float("nan")},
        notes=["assumed"],
    )
    write_run(tmp_path / "run.json", record)
    read = json.loads((tmp_path / "run.json").read_text())
    assert read["arguments"] == {"method": "cg-sense", "out": str(tmp_path), "sigmas": [1.0, 0.5]}
    assert sorted(read["input"]) == ["scan.cfl", "scan.hdr"]
    assert read["prior"] == {"prior": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}  # FIPS 180
    assert read["metrics"] == {"psnr": 31.5, "ssim": 0.5, "nmse": None}
    assert (
        read["versions"]["torch"] == torch.__version__.split("+")[0] or read["versions"]["torch"] == torch.__version__
    )
    assert (read["seed"], read["device"], read["notes"], read["timings_s"]) == (7, "cpu", ["assumed"], {"maps": 0.5})
    with pytest.raises(TypeError, match="object"):
        write_run(tmp_path / "b.json", {"thing": object()})


def test_panel_holds_what_was_given(tmp_path: Path) -> None:
    from matplotlib.image import imread

    result = image(64, 48)
    write_panel(tmp_path / "one.png", result)
    write_panel(
        tmp_path / "all.png",
        result,
        reference=image(64, 48) * 1.1,
        zero_filled=result,
        std=result / 20,
        name="total-variation",
        caption="PSNR 31.2 dB",
        title="scan",
    )
    one, five = imread(tmp_path / "one.png"), imread(tmp_path / "all.png")
    assert 4.5 * one.shape[1] < five.shape[1] < 6 * one.shape[1]
    gray = np.ptp(one[..., :3], axis=-1)
    assert gray[one.shape[0] // 2 :].max() < 0.03  # the lower half is a gray image on a near-black frame
    assert np.ptp(five[..., :3], axis=-1).max() > 0.5  # maps have colours
    with pytest.raises(InputError, match="std"):
        write_panel(tmp_path / "bad.png", result, std=image(48, 64))
    with pytest.raises(InputError, match="result"):
        write_panel(tmp_path / "bad.png", result + 0j)
    assert contents(tmp_path) == ["all.png", "one.png"]


def test_panel_shows_gray_values_of_the_window(tmp_path: Path) -> None:
    """A flat image with one bright pixel: the flat part, at half the window, is mid-gray."""
    from matplotlib.image import imread

    flat = torch.full((64, 64), 0.5)
    flat[:, :8] = 1.0  # an eighth of the pixels: the 97th percentile is 1
    write_panel(tmp_path / "a.png", flat)
    shown = imread(tmp_path / "a.png")
    # 8-bit gray, half of 255 rounded either way
    assert float(shown[shown.shape[0] * 2 // 3, shown.shape[1] * 2 // 3, 0]) == pytest.approx(0.5, abs=1 / 255)
