"""Bad input: each mistake is one line that says what was expected, what came and how to mend it."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from recon.errors import InputError, MissingFileError, ReconError
from recon.io import cfl, from_arrays, load


def kspace(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def refusal(path: Path, kind: type[ReconError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    assert "came" in message or "NaN" in message
    return message


def hdf5(path: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def test_nothing_there(tmp_path: Path) -> None:
    assert "check its spelling" in refusal(tmp_path / "none.h5", MissingFileError)


def test_a_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"MATLAB 5.0 MAT-file", os.urandom(5000)])
def test_unknown_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.h5"  # the name does not help
    path.write_bytes(content)
    assert "none of these" in refusal(path)


def test_truncated_hdf5(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "scan.h5", kspace=kspace(2, 3, 32, 32))
    content = path.read_bytes()
    for part in (0.9, 0.5, 0.01):
        path.write_bytes(content[: int(part * len(content))])
        assert "truncated" in refusal(path)


def test_no_kspace_lists_what_there_is(tmp_path: Path) -> None:
    assert "data, image" in refusal(hdf5(tmp_path / "a.h5", image=np.ones(3), data=np.ones(3)))
    assert "nothing" in refusal(hdf5(tmp_path / "b.h5"))
    np.savez(tmp_path / "c.npz", ksp=kspace(1, 2, 4, 4))
    assert "ksp" in refusal(tmp_path / "c.npz")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_group("kspace")
    assert "a dataset 'kspace'" in refusal(tmp_path / "d.h5")


def test_a_header_without_numbers_is_noted(tmp_path: Path) -> None:
    text = "<a><encodedSpace><matrixSize><x>8.0</x><y>8</y><z>1</z></matrixSize><fieldOfView_mm><x>1</x><y>1</y>"
    text += "<z>1</z></fieldOfView_mm></encodedSpace></a>"
    scan = load(hdf5(tmp_path / "a.h5", kspace=kspace(1, 2, 8, 8), ismrmrd_header=text))
    assert any("header cannot be read" in note for note in scan.notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("readout_axis", "y"),
        ("readout_axis", [-1]),
        ("recon_shape", 4),
        ("recon_shape", [0.5, 4]),
        ("voxel_size", ["a", "b", "c"]),
    ],
)
def test_companions_of_another_kind_in_npz(tmp_path: Path, key: str, value: object) -> None:
    np.savez(tmp_path / "a.npz", kspace=kspace(1, 2, 8, 8), **{key: np.array(value)})
    assert key in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 2, 8, 8), (0, 2, 8, 8)])
def test_wrong_axes_in_hdf5(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert str(shape) in refusal(hdf5(tmp_path / "a.h5", kspace=kspace(*shape)))


@pytest.mark.parametrize("shape", [(8,), (8, 8), (1, 1, 1, 2, 8, 8)])
def test_wrong_axes_in_npy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", kspace(*shape))
    assert str(shape) in refusal(tmp_path / "a.npy")


def test_real_data(tmp_path: Path) -> None:
    real = np.ones((1, 2, 8, 8), np.float32)
    assert "float32" in refusal(hdf5(tmp_path / "a.h5", kspace=real))
    np.save(tmp_path / "a.npy", real)
    assert "float32" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j * np.nan])
def test_nans_name_their_slice(tmp_path: Path, value: complex) -> None:
    data = kspace(5, 2, 8, 8)
    data[4, 1, 3, 2:5] = value
    path = hdf5(tmp_path / "a.h5", kspace=data, mask=np.ones(8))
    scan = load(path)  # only slices that are read are checked
    assert scan[0:4].kspace.shape[0] == 4
    with pytest.raises(InputError, match="3 of 128 samples of slice 4 are NaN or infinite"):
        scan[3:5]
    with pytest.raises(InputError, match="slice 4"):
        scan[-1:]
    data[2, 0, 0, 0] = value
    assert "1 of 128 samples of slice 2" in refusal(hdf5(tmp_path / "b.h5", kspace=data))


@pytest.mark.parametrize("mask", [np.ones(9), np.ones((8, 9)), np.ones((9, 8)), np.ones((2, 8, 12)), np.ones(8)])
def test_mask_of_the_wrong_width(tmp_path: Path, mask: np.ndarray) -> None:
    message = refusal(hdf5(tmp_path / "a.h5", kspace=kspace(2, 2, 8, 12), mask=mask))
    assert "(8, 12) or (12,)" in message
    assert str(mask.shape) in message


def test_mask_of_nothing_or_of_other_values(tmp_path: Path) -> None:
    assert "without a single sample" in refusal(hdf5(tmp_path / "a.h5", kspace=kspace(2, 2, 8, 12), mask=np.zeros(12)))
    assert "0 to 11" in refusal(hdf5(tmp_path / "b.h5", kspace=kspace(2, 2, 8, 12), mask=np.arange(12)))
    assert "zeros and ones" in refusal(hdf5(tmp_path / "c.h5", kspace=kspace(1, 1, 8, 12), mask=np.full(12, np.nan)))


def test_zeros_only(tmp_path: Path) -> None:
    zeros = np.zeros((3, 2, 8, 8), np.complex64)
    assert "zeros only" in refusal(hdf5(tmp_path / "a.h5", kspace=zeros))
    assert "zeros only" in refusal(hdf5(tmp_path / "b.h5", kspace=zeros, mask=np.ones(8)))
    zeros[2, 0, 0, 0] = 1  # an empty middle slice is no reason
    assert int(load(hdf5(tmp_path / "c.h5", kspace=zeros)).mask.sum()) == 1


def test_cfl_of_another_length(tmp_path: Path) -> None:
    cfl.write(tmp_path / "a", kspace(1, 2, 8, 8), readout_axis=-2)
    data = tmp_path / "a.cfl"
    content = data.read_bytes()
    data.write_bytes(content[:-8])
    assert "expected 1024 bytes for dimensions 8 8 1 2" in refusal(data)
    data.write_bytes(content + bytes(8))
    assert "another file" in refusal(data)
    data.unlink()
    assert "without the other" in refusal(tmp_path / "a", MissingFileError)
    data.write_bytes(content)
    (tmp_path / "a.hdr").unlink()
    assert "without the other" in refusal(data, MissingFileError)


@pytest.mark.parametrize(
    "text", ["# Dimensions\n", "# Dimensions\n8 x\n", "# Dimensions\n8 0 1\n", "# Dimensions\n-1 8\n"]
)
def test_cfl_with_a_broken_header(tmp_path: Path, text: str) -> None:
    cfl.write(tmp_path / "a", kspace(1, 2, 8, 8), readout_axis=-2)
    (tmp_path / "a.hdr").write_text(text)
    assert "# Dimensions" in refusal(tmp_path / "a.cfl")


def test_cfl_with_other_dimensions(tmp_path: Path) -> None:
    cfl.write_array(tmp_path / "maps", kspace(8, 8, 1, 2, 2, 3))
    assert "2 along dimension 4, 3 along dimension 5" in refusal(tmp_path / "maps")
    cfl.write_array(tmp_path / "line", kspace(8, 1, 1, 2))
    assert "2 or 3 axes in space" in refusal(tmp_path / "line")
    with pytest.raises(InputError, match="readout"):
        cfl.write(tmp_path / "b", kspace(1, 2, 8, 8), readout_axis=-1)


def test_truncated_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", kspace(1, 2, 8, 8))
    np.savez(tmp_path / "a.npz", kspace=kspace(1, 2, 8, 8))
    for name in ("a.npy", "a.npz"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        assert "cannot be read" in refusal(tmp_path / name)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot be read" in refusal(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", kspace=np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot be read" in refusal(tmp_path / "a.npz")


def test_bad_companions_of_kspace() -> None:
    data = kspace(2, 3, 8, 8)
    with pytest.raises(InputError, match=r"\(3, sample\)"):
        from_arrays(data, noise=kspace(2, 100))
    with pytest.raises(InputError, match="within k-space"):
        from_arrays(data, recon_shape=(9, 8))
    scan = from_arrays(data, reference=np.ones((5, 8, 8)))
    assert scan.reference is None
    assert "it is (5, 8, 8) and the image is (2, 8, 8)" in scan.notes[-1]
    assert from_arrays(data, reference=np.ones((2, 9, 8))).reference is None
    assert from_arrays(data, reference=np.ones((2, 8, 8)), recon_shape=(4, 8)).reference is None
    assert from_arrays(data, reference=np.ones((2, 4, 8)), recon_shape=(4, 8)).reference is not None
