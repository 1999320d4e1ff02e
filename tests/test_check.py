"""The check of the prior in a run, the cost that is said, memory that runs out, and sampling that is interrupted."""

import json
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import priors
from operators.fourier import fftc, ifftc
from operators.masks import MASKS
from priors.networks import UNet
from recon.apply import Images
from recon.checks import FRACTION, SAMPLES, check_data_fit
from recon.cli import main
from recon.methods.diffusion import NonFiniteError
from recon.methods.zero_filled import zero_filled
from recon.modalities import mri
from recon.mri import MRIScan, PreparedMRI, likelihood, prepare, undersample
from recon.partial import FOLDER
from recon.phantom import head
from recon.pipeline import reconstruct
from recon.result import Reconstruction
from recon.settings import Settings

SIZE = 64


class Smooth:
    """E[x0 | x] of Gaussian images whose spectrum falls as (scale k)^-4 from the variance `power` at k = 0."""

    sigma_min, sigma_max, ndim, is_complex = 1e-3, 10.0, 2, True

    def __init__(self, *, scale: float = 8.0, power: float = 100.0) -> None:
        self.card = {"name": "smooth", "scale": scale, "power": power}
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.calls += 1
        ky, kx = (torch.fft.fftshift(torch.fft.fftfreq(n)) for n in x.shape[-2:])
        spectrum = self.card["power"] / (1 + (self.card["scale"] ** 2 * (ky[:, None] ** 2 + kx**2)) ** 2)
        variance = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return ifftc(spectrum / (spectrum + variance) * fftc(x, (-2, -1)), (-2, -1))


def blurring() -> Smooth:
    """It takes all but the coarsest for noise: its images do not hold the data."""
    return Smooth(scale=200.0, power=4.0)


DDS: dict[str, Any] = {"method": "dds", "mask": "random", "acceleration": 2.0, "samples": 3, "steps": 6}


@pytest.fixture(scope="module")
def scan() -> MRIScan:
    return head((SIZE, SIZE), coils=4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slices of a head as a fastMRI file."""
    path = tmp_path_factory.mktemp("scan") / "head.h5"
    with h5py.File(path, "w") as target:
        target["kspace"] = torch.cat([head((SIZE, SIZE), coils=4, seed=seed).kspace for seed in range(2)]).numpy()
        target["mask"] = np.ones(SIZE)
    return path


# The verdict


def test_a_prior_that_suits_is_said_to(scan: MRIScan, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = reconstruct(scan, prior=Smooth(), out=tmp_path, **DDS)
    fit = result.data_fit
    assert fit is not None
    assert fit.ok
    assert fit.places == round(FRACTION * SIZE * SIZE / result.run["acceleration"])
    record = json.loads((tmp_path / "run.json").read_text())
    assert fit.statement in record["notes"]
    found = record["data_fit"]
    assert found["statement"] == fit.statement
    assert found["ok"] is True
    assert found["slice"] == 0
    assert found["samples"] == SAMPLES
    assert found["z"] == fit.z
    assert np.shape(found["z_by_coil"]) == (4,)
    assert np.shape(found["z_by_sector"]) == (3, 8)
    assert 0 < found["seconds"] == record["timings_s"]["check"]


def test_a_prior_that_does_not_suit_is_a_warning_that_names_the_fallback(scan: MRIScan) -> None:
    with pytest.warns(UserWarning, match=f"the prior does not suit these data.* Use {mri.FALLBACK} instead") as caught:
        result = reconstruct(scan, prior=blurring(), **DDS)
    assert len(caught) == 1
    assert result.data_fit is not None
    assert not result.data_fit.ok
    assert result.data_fit.z > 3  # beyond what chance makes of exchangeable data; 3.8 here
    assert any(note.startswith("WARNING") for note in result.run["notes"])


@pytest.mark.parametrize("method", ["ddrm", "score-mri-rss", "score-mri-ssos"])
def test_methods_without_maps_are_not_checked(scan: MRIScan, method: str) -> None:
    """Their images have no phase, and predict no data."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = reconstruct(scan, prior=Smooth(), **{**DDS, "method": method})
    assert result.data_fit is None
    assert result.run["data_fit"] is None


def test_the_middle_slice_is_checked_before_the_others(file: Path) -> None:
    said: list[str] = []
    result = reconstruct(file, prior=Smooth(), progress=lambda what, _: said.append(what), **DDS)
    assert result.run["data_fit"]["slice"] == 1
    assert list(dict.fromkeys(said)) == ["checking the prior", "slice 1 of 2", "slice 2 of 2"]


def test_what_is_withheld_is_not_seen(scan: MRIScan) -> None:
    """By the sampler nor the fallback; and the maps come from a region of which nothing is withheld."""
    prepared = prepare(undersample(scan, MASKS["random"](scan.shape, 2, seed=0)))
    seen: dict[str, PreparedMRI] = {}

    def apply(data: PreparedMRI, settings: Settings, name: str) -> Images:
        seen[settings.method] = data
        x = zero_filled(likelihood(data))
        noise = torch.randn(settings.samples or 1, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        return Images(x + noise, 0.0, 0)

    check_data_fit(prepared, Settings(method="dds"), apply, slice_index=0)
    assert seen.keys() == {"dds", mri.FALLBACK}
    for data in seen.values():
        withheld = prepared.mask & ~data.mask
        assert int(withheld.sum()) == round(FRACTION * int(prepared.mask.sum()))
        assert not data.kspace[..., ~data.mask].any()
        assert not data.measured[..., ~data.mask].any()
        assert torch.equal(data.kspace[..., data.mask], prepared.kspace[..., data.mask])
        assert not withheld[SIZE // 2 - 12 : SIZE // 2 + 12, SIZE // 2 - 12 : SIZE // 2 + 12].any()


def test_too_few_samples_are_no_obstacle() -> None:
    """All of a 24 x 24 k-space is calibration."""
    result = reconstruct(head((24, 24), coils=2), prior=Smooth(), **DDS)
    assert result.data_fit is None
    assert "was not checked: cannot withhold" in result.run["data_fit"]["statement"]
    assert result.run["data_fit"]["statement"] in result.run["notes"]


def test_without_a_check_nothing_is_drawn_for_it(scan: MRIScan) -> None:
    prior = Smooth()
    checked = reconstruct(scan, prior=prior, **DDS)
    assert prior.calls == 6 + 6
    prior = blurring()
    unchecked = reconstruct(scan, prior=prior, check=False, **DDS)
    assert prior.calls == 6
    assert unchecked.data_fit is None
    assert unchecked.run["data_fit"] is None
    assert "check" not in unchecked.run["timings_s"]
    same = reconstruct(scan, prior=Smooth(), check=False, **DDS)
    assert torch.equal(same.samples, checked.samples)


def test_methods_that_draw_no_samples_are_not_checked(scan: MRIScan) -> None:
    result = reconstruct(scan, method="cg-sense", mask="random", options={"iterations": 3})
    assert result.data_fit is None
    assert result.run["data_fit"] is None
    assert result.run["evaluations"] == 0


# What is said


@pytest.mark.parametrize(("method", "evaluations"), [("dds", 5), ("dds-hard", 5), ("split-gibbs", 10)])
def test_evaluations_and_the_spread_of_the_sampler_are_said(scan: MRIScan, method: str, evaluations: int) -> None:
    arguments = {**DDS, "method": method, "steps": 5, "samples": 9}
    result = reconstruct(scan, prior=Smooth(), check=False, **arguments)
    assert result.run["evaluations"] == evaluations  # of each of 9 samples, drawn in two batches
    assert "std map is known to +-25 %" in result.statement  # 1 / sqrt(2 (9 - 1))
    said = "under-dispersed" in result.statement and "0.4 to 0.6" in result.statement
    assert said == method.startswith("dds")


def untrained(folder: Path) -> Path:
    """A prior of random weights on disk."""
    network, generator = UNet(widths=(8, 16), blocks=(1, 1), features=8), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    denoiser = priors.EDM(network, sigma_min=0.002, sigma_max=10.0, sigma_data=0.3)
    return priors.save(denoiser, folder / "untrained", card={"intensity": "any"})


def test_the_command_warns_once_and_says_the_cost(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = f"recon reconstruct {file} --method dds --mask random --acceleration 2 --steps 4 --samples 2 --slices 0:1"
    command += f" --prior {untrained(tmp_path)} --out {out}"
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # what main sets is undone
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setattr(sys, "argv", command.split())
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings(action="always"), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count(f"Use {mri.FALLBACK} instead") == 1
    assert "warning: " in printed.err
    assert any(note.startswith("WARNING") for note in json.loads((out / "run.json").read_text())["notes"])
    assert "4 network evaluations a sample" in printed.out
    assert re.search(r"and [0-9.]+ s for the check of the prior", printed.out)
    monkeypatch.setattr(sys, "argv", [*command.split(), "--overwrite", "--no-check"])
    with warnings.catch_warnings(action="error"), pytest.raises(SystemExit) as end:
        main()
    signal.signal(signal.SIGTERM, before)
    assert end.value.code == 0
    assert "warning" not in capfd.readouterr().err


# What goes wrong


def test_memory_that_runs_out_is_said_once(file: Path) -> None:
    class Greedy(Smooth):
        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("too many images")
            return super().__call__(x, sigma)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = reconstruct(file, prior=Greedy(), **{**DDS, "samples": 8})
    assert [str(w.message) for w in caught] == [
        f"out of memory with 4 images of {SIZE * SIZE} pixels at a time: continuing with 2"
    ]
    whole = reconstruct(file, prior=Smooth(), **{**DDS, "samples": 8})
    assert torch.allclose(result.samples, whole.samples, rtol=1e-3, atol=1e-5 * float(whole.mean.max()))  # float32


def test_a_network_of_nans_ends_the_run_with_step_and_sigma(scan: MRIScan, tmp_path: Path) -> None:
    class Diverging(Smooth):
        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return super().__call__(x, sigma) * (torch.nan if self.calls == 3 else 1)

    with pytest.raises(NonFiniteError, match=r"NaN or infinity at step 2 \(sigma = "):
        reconstruct(scan, prior=Diverging(), out=tmp_path, check=False, **DDS)
    assert not list(tmp_path.glob("[!.]*"))


# Interruptions


def interrupt(file: Path, out: Path, prior: Smooth, *, part: str, at: float) -> None:
    """Ctrl-C while a part of the run is worked on, after a fraction of the whole."""

    def progress(what: str, done: float) -> None:
        if what == part and done > at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(file, prior=prior, out=out, progress=progress, **DDS, slices=(0, 1))


def continued(file: Path, out: Path, prior: Smooth, **arguments: Any) -> Reconstruction:
    return reconstruct(file, prior=prior, out=out, **DDS, slices=(0, 1), **arguments)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two: three samples are two batches, the four of the check two more."""
    monkeypatch.setattr("recon.apply.BATCH", 2)


@pytest.mark.usefixtures("pairs")
def test_sampling_that_is_interrupted_continues_between_batches(file: Path, tmp_path: Path) -> None:
    whole = reconstruct(file, prior=Smooth(), **DDS, slices=(0, 1))
    # 4 samples for the check and 3 of the slice: the last of these begins at 6 / 7.
    interrupt(file, tmp_path, Smooth(), part="slice 1 of 1", at=6.5 / 7)
    assert not list(tmp_path.glob("[!.]*"))
    names = sorted(path.name for path in (tmp_path / FOLDER).rglob("*.pt"))
    assert names == [
        "check-0000-fallback-samples-0000-0000.pt",
        "check-0000-samples-samples-0000-0001.pt",
        "check-0000-samples-samples-0002-0003.pt",
        "slice-0000-samples-0000-0001.pt",
    ]
    prior = Smooth()
    result = continued(file, tmp_path, prior)
    assert prior.calls == 6  # of the last batch alone
    assert torch.equal(result.samples, whole.samples)
    assert result.data_fit is not None
    assert whole.data_fit is not None
    assert result.data_fit.z == whole.data_fit.z
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.usefixtures("pairs")
def test_a_check_that_is_interrupted_continues(file: Path, tmp_path: Path) -> None:
    interrupt(file, tmp_path, Smooth(), part="checking the prior", at=2.5 / 7)
    prior = Smooth()
    result = continued(file, tmp_path, prior)
    assert prior.calls == 3 * 6  # a batch of the check, two of the slice
    assert result.data_fit is not None


@pytest.mark.usefixtures("pairs")
def test_what_was_finished_serves_without_the_check(file: Path, tmp_path: Path) -> None:
    interrupt(file, tmp_path, Smooth(), part="slice 1 of 1", at=6.5 / 7)
    prior = Smooth()
    result = continued(file, tmp_path, prior, check=False)
    assert prior.calls == 6
    assert result.data_fit is None


@pytest.mark.usefixtures("pairs")
def test_another_prior_starts_anew(file: Path, tmp_path: Path) -> None:
    interrupt(file, tmp_path, Smooth(), part="slice 1 of 1", at=6.5 / 7)
    prior = Smooth(power=50.0)
    continued(file, tmp_path, prior)
    assert prior.calls == 4 * 6
