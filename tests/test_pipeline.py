"""reconstruct(): the whole line on small files; what a volume costs, what repeats."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.errors import InputError
from recon.io import load
from recon.io.writers import RESULT_NAMES
from recon.methods import METHODS, has_levels, takes_prior
from recon.mri import MRIScan
from recon.partial import FOLDER
from recon.phantom import head
from recon.pipeline import reconstruct

FAST = {"method": "cg-sense", "mask": "random", "acceleration": 2.0, "options": {"iterations": 8}}


def volume(slices: int, shape: tuple[int, int] = (48, 40), coils: int = 3) -> Tensor:
    """(slice, coil, y, x): heads that differ in brightness and noise."""
    return torch.cat([(1 + 0.5 * i) * head(shape, coils=coils, seed=i).kspace for i in range(slices)])


def write(path: Path, kspace: Tensor | np.ndarray, **datasets: np.ndarray) -> Path:
    """A fastMRI file."""
    with h5py.File(path, "w") as file:
        file["kspace"] = np.asarray(kspace)
        for name, values in datasets.items():
            file[name] = values
    return path


def in_memory(kspace: Tensor) -> MRIScan:
    return replace(head((48, 40), coils=3), kspace=kspace)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scan") / "head.h5", volume(3))


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def stored(folder: Path, name: str = "reconstruction") -> Tensor:
    with h5py.File(folder / "reconstruction.h5") as result:
        return torch.as_tensor(result[name][()])


# Results


def test_a_path_and_its_scan_give_the_same(file: Path, tmp_path: Path) -> None:
    from_path = reconstruct(file, out=tmp_path / "a", **FAST)
    from_scan = reconstruct(load(file), **FAST)
    assert from_path.mean.shape == (3, 48, 40)
    assert torch.equal(from_path.mean, from_scan.mean)
    assert from_path.metrics == from_scan.metrics
    assert from_path.metrics["psnr_scaled"] > 20
    assert visible(tmp_path / "a") == set(RESULT_NAMES)
    assert not (tmp_path / "a" / FOLDER).exists()
    assert torch.equal(stored(tmp_path / "a"), from_path.mean)
    assert from_path.std is None
    assert from_path.samples is None
    assert from_path.run["acceleration"] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("method", ["zero-filled", "rss", "cg-sense", "l1-wavelet", "tv"])
def test_every_classical_method_runs_by_name(file: Path, method: str) -> None:
    options = {} if method in ("zero-filled", "rss") else {"iterations": 5}
    result = reconstruct(file, method=method, options=options, mask="equispaced", slices=(1, 2))
    assert result.mean.shape == (1, 48, 40)
    assert torch.isfinite(result.mean).all()
    assert result.metrics["psnr_scaled"] > 10


def test_slices_do_not_depend_on_their_neighbours(file: Path) -> None:
    everything = reconstruct(file, **FAST)
    for first, last in [(0, 1), (1, 3)]:
        assert torch.equal(reconstruct(file, slices=(first, last), **FAST).mean, everything.mean[first:last])


@pytest.mark.parametrize("slices", [(0, 4), (2, 2), (2, 1), (-1, 2)])
def test_slices_that_are_not_there_are_refused(file: Path, slices: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"slices: expected a range within 0:3, got"):
        reconstruct(file, slices=slices, **FAST)


def test_the_record_of_a_run_repeats_it(file: Path, tmp_path: Path) -> None:
    arguments = {**FAST, "slices": (1, 3), "coils": 2, "seed": 5}
    first = reconstruct(file, out=tmp_path, **arguments)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["input"] == first.run["input"]
    assert record["seed"] == 5
    again = reconstruct(file, **record["arguments"])
    assert torch.equal(again.mean, first.mean)
    assert not torch.equal(reconstruct(file, **{**record["arguments"], "seed": 6}).mean, first.mean)


def test_the_complex_image_is_kept_on_request(file: Path, tmp_path: Path) -> None:
    result = reconstruct(file, out=tmp_path, complex_image=True, **FAST)
    image = stored(tmp_path, "reconstruction_complex")
    assert image.dtype == torch.complex64
    assert torch.allclose(image.abs(), result.mean, rtol=1e-6)


def test_fully_sampled_data_are_left_alone_unless_asked(file: Path) -> None:
    result = reconstruct(file, method="rss", slices=(0, 1))
    assert result.run["acceleration"] == 1
    assert result.metrics == {}  # no reference but the data themselves
    expected = torch.linalg.vector_norm(load(file)[0:1].kspace, dim=1)
    assert result.mean.norm() == pytest.approx(float(expected.norm()), rel=1e-5)  # Parseval


def test_the_reference_of_a_file_is_used(tmp_path: Path) -> None:
    kspace = volume(2)
    file = write(tmp_path / "a.h5", kspace, reconstruction_rss=np.ones((2, 40, 40), np.float32))
    result = reconstruct(file, method="rss")
    assert result.mean.shape == (2, 40, 40)
    assert torch.equal(result.reference, torch.ones(2, 40, 40))
    assert set(result.metrics) == {"psnr", "ssim", "nmse", "psnr_scaled", "ssim_scaled", "nmse_scaled"}


def test_a_volume_of_three_axes(tmp_path: Path) -> None:
    """Its slices come out as those of any other scan."""
    z = torch.linspace(-1, 1, 13)[:-1, None, None]
    slices = head((32, 28), coils=3, noise=0).kspace[0]
    ball = slices[:, None] * torch.exp(-4 * z**2)
    kspace = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(ball, dim=1), dim=1, norm="ortho"), dim=1)
    kspace += 0.005 * torch.randn(kspace.shape, dtype=kspace.dtype, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "volume.npy", kspace[None].numpy())
    full = reconstruct(tmp_path / "volume.npy", method="zero-filled", out=tmp_path / "out", complex_image=True)
    assert full.mean.shape == (12, 32, 28)
    assert full.zero_filled.shape == (12, 32, 28)
    assert torch.allclose(stored(tmp_path / "out", "reconstruction_complex").abs(), full.mean, rtol=1e-5)
    brightness = full.mean.mean((1, 2))
    assert int(brightness.argmax()) == 6  # the centre of z
    less = reconstruct(
        tmp_path / "volume.npy", method="cg-sense", mask="poisson", acceleration=2.0, options={"iterations": 10}
    )
    assert less.reference.shape == less.mean.shape == (12, 32, 28)
    assert less.metrics["psnr_scaled"] > 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["zero-filled", "rss", "cg-sense", "l1-wavelet", "tv"])
def test_a_gpu_gives_the_same_image(method: str) -> None:
    noise = 0.01 * 2**0.5 * torch.randn(3, 5000, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    scan = replace(in_memory(volume(1)), noise=noise)
    cpu, gpu = (reconstruct(scan, method=method, mask="random", device=device) for device in ("cpu", "cuda"))
    assert gpu.mean.device.type == "cpu"
    assert (gpu.mean - cpu.mean).norm() < 1e-3 * cpu.mean.norm()  # float32 sums in another order, over the iterations


def test_lines_are_never_left_out_along_the_readout() -> None:
    scan = head((64, 64), coils=2)
    turned = replace(scan, kspace=scan.kspace.mT, readout_axis=-1)
    shown = reconstruct(scan, method="zero-filled", mask="random").mean
    found = reconstruct(turned, method="zero-filled", mask="random").mean.mT
    error = torch.linalg.vector_norm(found - shown) / torch.linalg.vector_norm(shown)
    assert error < 0.01  # maps in float32, of transposed calibrations; other lines would differ by a third


def test_options_of_the_mask_reach_it() -> None:
    scan = head((64, 64), coils=2)
    wide, narrow = (
        reconstruct(scan, method="zero-filled", mask="random", mask_options={"calibration": c}).mean for c in (16, 6)
    )
    assert not torch.allclose(wide, narrow, rtol=1e-2)


def test_the_reference_is_of_all_coils() -> None:
    scan = head((64, 64), coils=6)
    few = reconstruct(scan, method="zero-filled", mask="random", coils=2).reference
    every = reconstruct(scan, method="zero-filled", mask="random").reference
    assert few is not None
    assert every is not None
    assert torch.equal(few, every)


def test_a_reference_that_cannot_serve_does_not_lose_the_image() -> None:
    scan = replace(head((64, 64), coils=2), reference=torch.zeros(1, 64, 64))
    result = reconstruct(scan, method="zero-filled")
    assert result.metrics == {}
    assert any(note.startswith("no metrics: ") for note in result.run["notes"])


# Samplers


class Wiener:
    """A denoiser in five lines: the posterior mean of pixels that are white noise of unit variance."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, True

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.real.dtype)
        return x / (1 + sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) ** 2)


SAMPLER: dict[str, Any] = {
    "method": "dds",
    "mask": "random",
    "acceleration": 2.0,
    "steps": 4,
    "prior": Wiener(),
    "check": False,  # of the prior, which does not suit
}


def test_a_denoiser_of_the_users_own(file: Path, tmp_path: Path) -> None:
    result = reconstruct(file, out=tmp_path, slices=(1, 2), samples=3, **SAMPLER)
    assert result.samples.shape == (1, 3, 48, 40)
    assert result.mean.shape == result.std.shape == result.lower.shape == (1, 48, 40)
    assert torch.allclose(result.samples.mean(1), result.mean, rtol=1e-5)
    assert (result.std > 0).any()
    assert "3 samples" in result.statement
    assert torch.equal(stored(tmp_path, "samples"), result.samples)
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["prior"] == "Wiener"


def test_samples_do_not_depend_on_their_number(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the batches they are drawn in, nor on the slices drawn before; but on the seed."""
    few = reconstruct(file, slices=(1, 2), samples=2, **SAMPLER).samples
    many = reconstruct(file, slices=(0, 2), samples=10, **SAMPLER).samples
    monkeypatch.setattr("recon.apply.BATCH", 3)
    other_batches = reconstruct(file, slices=(1, 2), samples=10, **SAMPLER).samples
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(few.max())}  # float32 in batches of other sizes
    assert torch.allclose(many[1:, :2], few, **tolerance)
    assert torch.allclose(many[1:], other_batches, **tolerance)
    assert not torch.allclose(many[1, 8], many[1, 0], rtol=0.01)
    fixed_mask = {**SAMPLER, "mask": None, "acceleration": None, "slices": (1, 2), "samples": 2}
    assert not torch.equal(reconstruct(file, **fixed_mask).samples, reconstruct(file, seed=1, **fixed_mask).samples)


def test_precision_is_that_of_the_network(file: Path) -> None:
    arguments = {"method": "dds", "mask": "random", "steps": 5, "samples": 1, "slices": (0, 1), "check": False}
    full, rounded = (reconstruct(file, precision=precision, **arguments) for precision in ("float32", "bf16"))
    assert rounded.run["arguments"]["precision"] == "bf16"
    difference = (full.mean - rounded.mean).norm() / full.mean.norm()
    assert 0 < difference < 0.02  # 5 evaluations, each of which moves by a few per cent of its noise


def test_every_method_with_a_prior_has_a_schedule() -> None:
    """But for networks that were trained for a method: they have no noise levels."""
    with_prior = {name for name, method in METHODS.items() if takes_prior(method)}
    networks = {"unet", "varnet", "fbp-unet", "fbp-gan"}
    assert with_prior - networks == {name for name, method in METHODS.items() if has_levels(method)}


# Progress


@pytest.mark.parametrize(
    "arguments",
    [
        FAST,
        {**FAST, "method": "tv"},
        {"method": "zero-filled"},
        {**SAMPLER, "samples": 9},
        {**SAMPLER, "method": "split-gibbs", "samples": 2},
        pytest.param({**SAMPLER, "check": True}, marks=pytest.mark.filterwarnings("ignore::UserWarning")),
    ],
)
def test_progress_rises_from_0_to_1(file: Path, arguments: dict[str, Any]) -> None:
    seen: list[tuple[str, float]] = []
    reconstruct(file, slices=(0, 2), progress=lambda what, done: seen.append((what, done)), **arguments)
    fractions = [done for _, done in seen]
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert fractions == sorted(fractions)
    assert {what for what, _ in seen} >= {"slice 1 of 2", "slice 2 of 2"}


def test_an_early_end_is_the_end_of_the_progress(file: Path) -> None:
    """Iterations that a tolerance leaves out are done."""
    seen: list[float] = []
    options = {"tolerance": 0.5}
    reconstruct(file, method="tv", options=options, slices=(0, 1), progress=lambda _, done: seen.append(done))
    assert len(seen) < 50
    assert seen[-1] == 1


# Memory


def peak_memory(file: Path) -> int:
    """Bytes that a run on a file needs at most, in a process of its own."""
    code = (
        "import sys, torch; from recon.pipeline import reconstruct; torch.set_num_threads(1)\n"
        "reconstruct(sys.argv[1], method='zero-filled')\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])\n"
    )
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }  # what is freed goes back, and does not blur the peak
    command = [sys.executable, "-c", code, str(file)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return 1024 * int(process.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to read the peak memory of a process")
def test_a_long_volume_needs_the_memory_of_a_short_one(tmp_path: Path) -> None:
    """40 slices of 2 MiB are 72 MiB more of data than 4; results are small."""
    kspace = head((512, 512), coils=1).kspace
    peaks = []
    for slices in (4, 40):
        file = tmp_path / f"{slices}.h5"
        with h5py.File(file, "w") as opened:
            opened["mask"] = np.ones(512)
            opened["reconstruction_rss"] = np.ones((slices, 32, 32), np.float32)  # the size of the image
            dataset = opened.create_dataset("kspace", (slices, 1, 512, 512), np.complex64)
            for i in range(slices):
                dataset[i] = kspace[0]
        peaks.append(peak_memory(file))
    assert peaks[1] - peaks[0] < 16 * 2**20  # a fifth of the additional data; 1 to 3 MiB
