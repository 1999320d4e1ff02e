"""Readers: what is read is what was written, sampling is told rightly, and slices stay on disk until asked for."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from operators.fourier import ifftc
from recon.io import cfl, from_arrays, load

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><trajectory>cartesian</trajectory>
<encodedSpace><matrixSize><x>{rows}</x><y>{columns}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{fov_x}</x><y>{fov_y}</y><z>4.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{crop}</x><y>{crop}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{fov}</x><y>{fov}</y><z>4.5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>
</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"""


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((2, *shape), dtype=np.float32)
    return (draw[0] + 1j * draw[1]).astype(np.complex64)


def fastmri_file(path: Path, kspace: np.ndarray, *, header: str | None = None, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        for name, values in datasets.items():
            file[name] = values
        if header is not None:
            file["ismrmrd_header"] = header
        file.attrs["acquisition"] = "CORPD_FBK"
    return path


def header(rows: int, columns: int, crop: int, *, maximum: int, center: int) -> str:
    """A header with pixels of 0.5 mm along rows and 0.75 mm along columns."""
    return HEADER.format(
        rows=rows, columns=columns, crop=crop, fov=crop * 0.5, fov_x=rows * 0.5, fov_y=columns * 0.75,
        maximum=maximum, center=center,
    )  # fmt: skip


def padded(*shape: int, left: int, right: int) -> np.ndarray:
    """K-space with data in columns left ... right - 1."""
    kspace = gaussian(*shape)
    kspace[..., :left], kspace[..., right:] = 0, 0
    return kspace


# -- fastMRI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coils", [None, 3])
def test_fastmri_round_trip_is_exact(tmp_path: Path, coils: int | None) -> None:
    kspace = gaussian(4, *([] if coils is None else [coils]), 16, 12)
    esc, rss = np.ones((4, 10, 8), np.float32), np.full((4, 10, 8), 2, np.float32)
    path = fastmri_file(tmp_path / "file.h5", kspace, reconstruction_esc=esc, reconstruction_rss=rss)
    scan = load(path)
    assert (len(scan), scan.coils, scan.shape) == (4, coils or 1, (16, 12))
    assert np.array_equal(scan[0:4].kspace.numpy().squeeze(), kspace)
    assert np.array_equal(scan[1:3].kspace.numpy(), kspace.reshape(4, coils or 1, 16, 12)[1:3])
    assert float(scan[0:1].reference[0, 0, 0]) == (1 if coils is None else 2)  # esc belongs to one coil, rss to several
    assert scan.recon_shape == (10, 8)
    assert scan.header["acquisition"] == "CORPD_FBK"


def test_header_gives_padding_crop_and_voxels(tmp_path: Path) -> None:
    # lines 0 ... 15 with line 7 at the centre of 20 columns: columns 3 ... 18
    text = header(32, 20, 16, maximum=15, center=7)
    scan = load(fastmri_file(tmp_path / "file.h5", padded(3, 2, 32, 20, left=3, right=19), header=text))
    columns = torch.zeros(20, dtype=torch.bool)
    columns[3:19] = True
    assert torch.equal(scan.mask, columns.expand(32, 20))
    assert scan.fully_sampled
    assert scan.mask_source == "encoding limits of the file's header"
    assert scan.readout_axis == -2
    assert scan.recon_shape == (16, 16)
    assert scan.voxel_size == (4.5, 0.5, 0.75)
    assert scan.notes == ()
    assert scan.header["ismrmrd_header"] == text


def test_padding_agrees_with_the_fastmri_package(tmp_path: Path) -> None:
    data = pytest.importorskip("fastmri.data")
    for i, (maximum, center) in enumerate([(15, 7), (19, 10), (11, 4)]):
        folder = tmp_path / str(i)
        folder.mkdir()
        kspace = padded(1, 2, 32, 20, left=10 - center, right=10 - center + maximum + 1)
        path = fastmri_file(folder / "file.h5", kspace, header=header(32, 20, 16, maximum=maximum, center=center))
        sample = data.SliceDataset(folder, challenge="multicoil")[0]
        columns = load(path).mask[0].nonzero()
        assert int(columns[0]) == sample[3]["padding_left"]
        assert int(columns[-1]) + 1 == sample[3]["padding_right"]


@pytest.mark.parametrize("ndim", [1, 2, 4])
def test_mask_of_the_file_is_used_without_padding(tmp_path: Path, ndim: int) -> None:
    columns = np.zeros(20, dtype=np.uint8)
    columns[[0, 4, 8, 9, 10, 11, 12, 16]] = 1  # column 0 is padding
    kspace = padded(2, 2, 32, 20, left=3, right=19) * columns
    mask = columns if ndim == 1 else np.broadcast_to(columns, (1,) * (ndim - 2) + (32, 20))
    text = header(32, 20, 16, maximum=15, center=7)
    scan = load(fastmri_file(tmp_path / "file.h5", kspace, header=text, mask=mask))
    assert scan.mask[0].nonzero().flatten().tolist() == [4, 8, 9, 10, 11, 12, 16]
    assert scan.mask_source == "mask of the file"
    assert scan.readout_axis == -2
    assert not scan.fully_sampled
    assert scan.reference is None


def test_mask_that_covers_all_but_padding_is_fully_sampled(tmp_path: Path) -> None:
    kspace, text = padded(2, 2, 32, 20, left=3, right=19), header(32, 20, 16, maximum=15, center=7)
    assert load(fastmri_file(tmp_path / "file.h5", kspace, header=text, mask=np.ones(20))).fully_sampled


def test_kspace_outside_the_mask_reads_as_zero(tmp_path: Path) -> None:
    kspace, mask = gaussian(2, 2, 8, 12), np.arange(12) % 3 == 0
    scan = load(fastmri_file(tmp_path / "file.h5", kspace, mask=mask))
    assert np.array_equal(scan[0:2].kspace.numpy(), kspace * mask)
    assert any("outside the mask" in note for note in scan.notes)


def test_without_mask_and_header_zeros_decide_and_it_is_said(tmp_path: Path) -> None:
    kspace = gaussian(5, 2, 8, 12) * (np.arange(12) % 2)
    kspace[0, :, :, 3], kspace[4, :, :, 7] = 0, 0  # in one slice only: was sampled
    kspace[:, 0, :, 5] = 0  # in one coil only: was sampled
    scan = load(fastmri_file(tmp_path / "file.h5", kspace))
    assert scan.mask[0].nonzero().flatten().tolist() == [1, 3, 5, 7, 9, 11]
    assert scan.mask_source == "assumed from zeros"
    assert "48 of 96 samples that are zero" in scan.notes[0]
    assert not scan.fully_sampled


def test_undersampled_file_with_a_header_but_no_mask(tmp_path: Path) -> None:
    kspace = padded(3, 2, 32, 20, left=3, right=19)
    kspace[..., 4:8] = 0
    scan = load(fastmri_file(tmp_path / "file.h5", kspace, header=header(32, 20, 16, maximum=15, center=7)))
    assert scan.mask[0].nonzero().flatten().tolist() == [3, *range(8, 19)]
    assert not scan.fully_sampled
    assert "128 of 512" in scan.notes[0]


def test_header_that_k_space_contradicts(tmp_path: Path) -> None:
    """Columns with data are never thrown away; a header of another matrix says nothing about sampling."""
    kspace = gaussian(1, 2, 32, 20)
    scan = load(fastmri_file(tmp_path / "a.h5", kspace, header=header(32, 20, 16, maximum=15, center=7)))
    assert scan.mask.all()
    assert "4 columns that the header calls padding hold data" in scan.notes[0]
    scan = load(fastmri_file(tmp_path / "b.h5", kspace, header=header(64, 20, 48, maximum=15, center=7)))
    assert scan.mask_source == "assumed from zeros"
    assert scan.recon_shape is None
    assert any("64 x 20" in note for note in scan.notes)
    assert any("larger than k-space" in note for note in scan.notes)
    scan = load(fastmri_file(tmp_path / "c.h5", kspace, header="<broken"))
    assert "XML header cannot be read" in scan.notes[0]


def test_two_dimensional_mask_has_no_readout(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((8, 12)) < 0.5
    scan = load(fastmri_file(tmp_path / "file.h5", gaussian(1, 2, 8, 12) * mask, mask=mask))
    assert np.array_equal(scan.mask.numpy(), mask)
    assert scan.readout_axis is None


def test_scan_travels_to_workers_without_its_data(tmp_path: Path) -> None:
    kspace = gaussian(6, 4, 32, 32)
    scan = load(fastmri_file(tmp_path / "file.h5", kspace, mask=np.ones(32), reconstruction_rss=np.ones((6, 32, 32))))
    pickled = pickle.dumps(scan)
    assert len(pickled) < 10_000  # k-space alone is 196,608 bytes
    assert np.array_equal(pickle.loads(pickled)[3:5].kspace.numpy(), kspace[3:5])


MEASURE = """
import resource, sys
import numpy as np
from recon.io import load
unit = 1024**2 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
for path in sys.argv[1:]:
    load(path)[0:1].kspace.abs().sum()   # libraries, one slice
ballast, before = [], peak()
while peak() == before:   # fill up to the peak that the imports reached, so that anything more shows
    ballast.append(np.ones(2**16))
before = peak()
for path in sys.argv[1:]:
    scan = load(path)
    total = sum(float(scan[i : i + 1].kspace.abs().sum()) for i in range(len(scan)))
    print(peak() - before)
scan[0:40].kspace.abs().sum()
print(peak() - before)
"""


def test_forty_slices_need_the_memory_of_a_few(tmp_path: Path) -> None:
    one = gaussian(1, 4, 256, 256)  # 2 MiB; the volumes hold 80 MiB
    volume = np.broadcast_to(one, (40, *one.shape[1:]))
    fastmri_file(tmp_path / "a.h5", volume, mask=np.ones(256))
    cfl.write(tmp_path / "b.cfl", volume, readout_axis=-2)
    np.save(tmp_path / "c.npy", volume)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in ("a.h5", "b.cfl", "c.npy"))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    *streamed, whole = map(float, done.stdout.split())
    # MiB. A slice, its checks, its magnitude and what the allocator keeps: measured 11 to 14, whether 5 slices or 40.
    assert len(streamed) == 3
    assert max(streamed) < 20
    assert whole > 60  # the measure sees what it should see


# -- BART and NumPy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "readout_axis", "dims"),
    [
        ((1, 3, 6, 5), -2, "6 5 1 3 1 1 1 1 1 1 1 1 1 1 1 1"),
        ((1, 3, 6, 5), None, "1 6 5 3 1 1 1 1 1 1 1 1 1 1 1 1"),
        ((4, 3, 6, 5), -2, "6 5 1 3 1 1 1 1 1 1 1 1 1 4 1 1"),
        ((2, 3, 4, 6, 5), -3, "4 6 5 3 1 1 1 1 1 1 1 1 1 2 1 1"),
    ],
)
def test_cfl_round_trip_is_exact(tmp_path: Path, shape: tuple[int, ...], readout_axis: int | None, dims: str) -> None:
    kspace = gaussian(*shape)
    cfl.write(tmp_path / "scan.v1", kspace, readout_axis=readout_axis)
    assert (tmp_path / "scan.v1.hdr").read_text().splitlines()[1] == dims
    for name in ("scan.v1", "scan.v1.cfl", "scan.v1.hdr"):
        scan = load(tmp_path / name)
        assert np.array_equal(scan[0 : shape[0]].kspace.numpy(), kspace)
        assert scan.readout_axis == readout_axis
        assert scan.fully_sampled
    assert pickle.loads(pickle.dumps(scan))[0:1].kspace.shape == (1, *shape[1:])


def test_cfl_is_column_major(tmp_path: Path) -> None:
    array = gaussian(4, 3, 2)
    cfl.write_array(tmp_path / "a", array)
    assert np.array_equal(np.fromfile(tmp_path / "a.cfl", np.complex64), array.flatten(order="F"))
    assert np.array_equal(cfl.read_array(tmp_path / "a").squeeze(), array)


def test_npy_and_npz(tmp_path: Path) -> None:
    kspace, mask = gaussian(2, 3, 8, 12), np.arange(12) % 2 == 0
    np.save(tmp_path / "a.dat", kspace[0])  # np.save adds .npy
    (tmp_path / "a.dat.npy").rename(tmp_path / "a.dat")  # the content tells, not the name
    assert np.array_equal(load(tmp_path / "a.dat")[0:1].kspace.numpy(), kspace[:1])
    np.savez(
        tmp_path / "b.npz",
        kspace=kspace * mask,
        mask=mask,
        noise=gaussian(3, 100),
        reference=np.ones((2, 4, 6), np.float32),
        recon_shape=(4, 6),
        voxel_size=(5.0, 1.0, 2.0),
        readout_axis=-2,
        patient="none",
    )
    scan = load(tmp_path / "b.npz")
    assert np.array_equal(scan[0:2].kspace.numpy(), kspace * mask)
    assert np.array_equal(scan.mask.numpy(), np.broadcast_to(mask, (8, 12)))
    assert scan.noise.shape == (3, 100)
    assert (scan.recon_shape, scan.voxel_size, scan.readout_axis) == ((4, 6), (5.0, 1.0, 2.0), -2)
    assert scan.mask_source == "mask of the file"
    assert "Not used: patient" in scan.notes[0]


def test_arrays_in_memory() -> None:
    kspace = torch.as_tensor(gaussian(2, 3, 4, 6, 5))
    scan = from_arrays(kspace.to(torch.complex128), torch.ones(6, 5).expand(4, 6, 5))
    assert torch.equal(scan[0:2].kspace, kspace)
    assert scan.mask_source == "mask given"
    assert scan.fully_sampled


# -- scanner data -----------------------------------------------------------------------------------------------------


def test_one_scan_in_two_formats(data_dir: Path) -> None:
    """The BART file holds the k-space of the HDF5 file, bit for bit and axis for axis."""
    hdf5, bart = load(data_dir / "mri" / "brain_8ch.h5"), load(data_dir / "mri" / "bart_espirit_full")
    assert torch.equal(hdf5[0:1].kspace, bart[0:1].kspace)
    assert torch.equal(hdf5.mask, bart.mask)
    assert hdf5.fully_sampled
    assert bart.fully_sampled
    assert (hdf5.readout_axis, bart.readout_axis) == (-2, None)
    assert (hdf5.mask_source, bart.mask_source) == ("encoding limits of the file's header", "assumed from zeros")


@pytest.mark.parametrize("name", ["brain_8ch.h5", "brain_mprage_4ch.h5"])
def test_reference_is_the_root_sum_of_squares(data_dir: Path, name: str) -> None:
    scan = load(data_dir / "mri" / name)[0:1]
    image = ifftc(scan.kspace, (-2, -1)).abs().square().sum(1).sqrt()
    # float32 sums over 4 to 8 coils after an FFT of 2^16 samples: a few units in the last place of the maximum
    assert float((image - scan.reference).abs().max() / image.max()) < 2e-6
    assert scan.voxel_size == (5.0, 1.0, 1.0)


def test_prospective_poisson_mask(data_dir: Path) -> None:
    scan = load(data_dir / "mri" / "bart_workshop_pics_brain_poisson.cfl")
    assert scan.shape == (180, 230)
    assert float(scan.mask.float().mean()) == pytest.approx(0.1266, abs=5e-5)
    assert not scan.fully_sampled
    assert "36160 of 41400" in scan.notes[0]
