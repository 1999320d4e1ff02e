"""Training: the loss, the noise levels, the averages; a killed run ends where an uninterrupted one does."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from priors.denoising import Denoising, DenoisingConfig, crops, denoising_error, draw_sigmas, edm, edm_loss
from priors.networks import UNet
from priors.train import TrainConfig, power, schedule
from priors.train import train as optimise

TINY = {"crop": 16, "images_per_step": 2, "workers": 0, "warmup": 2, "bf16": False}


class Blobs:
    """Smooth complex images by index."""

    def __getitem__(self, index: int) -> Tensor:
        rng = torch.Generator().manual_seed(index)
        coarse = torch.randn(1, 2, 4, 4, generator=rng)
        smooth = torch.nn.functional.interpolate(coarse, (20, 24), mode="bicubic")[0]
        return torch.complex(*smooth) * 0.4


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(widths=(8, 16), blocks=(1, 1), features=8)


def config(**changes) -> DenoisingConfig:
    return DenoisingConfig(**TINY | {"steps": 8} | changes)


def train(network, images, settings, **arguments):
    return optimise(Denoising(network, settings), images, settings, **arguments)


def weights(trained) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained.network.parameters()])


def test_noise_levels_fill_the_range_as_stated() -> None:
    settings = config(sigma_min=0.01, sigma_max=10.0, sigma_median=0.2, sigma_spread=1.0, log_uniform=0.25)
    sigmas = draw_sigmas(200_000, settings, torch.Generator().manual_seed(0))
    assert sigmas.min() >= 0.01
    assert sigmas.max() <= 10.0
    # P(sigma < 0.2), the median: half of the (slightly cut) log-normal and ln 20 / ln 1000 of the log-uniform.
    cut = torch.special.ndtr(torch.tensor([math.log(0.05), math.log(50.0)], dtype=torch.float64))
    expected = 0.75 * ((0.5 - cut[0]) / (cut[1] - cut[0])).item() + 0.25 * math.log(20) / math.log(1000)
    assert (sigmas < 0.2).float().mean().item() == pytest.approx(expected, abs=0.005)  # 4 standard errors: .0045


def test_averages_have_the_width_asked_for() -> None:
    """The weights beta of steps 1 .. T, written out, have standard deviation `width` in units of T (Karras 2024)."""
    for width in (0.05, 0.1):
        gamma, total = power(width), 20_000
        steps = torch.arange(1, total + 1, dtype=torch.float64)
        profile = steps**gamma
        profile /= profile.sum()
        mean = (profile * steps).sum()
        spread = (profile * (steps - mean) ** 2).sum().sqrt() / total
        assert spread.item() == pytest.approx(width, rel=1e-3)  # a sum over 20,000 steps for an integral


def test_schedule_warms_up_and_falls_to_zero() -> None:
    settings = config(warmup=10)
    assert schedule(0.0, 0, settings) == pytest.approx(0.1)
    assert schedule(0.5, 100, settings) == 1.0
    assert schedule(0.75, 100, settings) == pytest.approx(0.5)
    assert schedule(1.0, 100, settings) == 0.0


def test_crops_differ_in_place_orientation_and_phase_only() -> None:
    settings = config(crop=16, crops_per_image=3)
    images = torch.stack([Blobs()[0], Blobs()[1]])
    patches = crops(images, settings, torch.Generator().manual_seed(0))
    assert patches.shape == (6, 16, 16)
    for patch, image in zip(patches, images.repeat_interleave(3, dim=0), strict=True):
        corners = image.abs().unfold(0, 16, 1).unfold(1, 16, 1).flatten(0, 1)
        turned = [patch.abs().rot90(k) for k in range(4)] + [patch.abs().T.rot90(k) for k in range(4)]
        assert min((c - t).abs().max() for c in corners for t in turned) < 1e-6  # float32 rounding of the phase factor
    with pytest.raises(ValueError, match="smaller than crops"):
        crops(images, config(crop=32), torch.Generator())


@pytest.mark.parametrize("shards", [1, 2])
def test_training_learns(tmp_path: Path, shards: int) -> None:
    """120 steps on smooth images denoise them far better than doing nothing (error sigma) or returning zero (0.4)."""
    validation = [Blobs()[1000 + i][:16, :16] for i in range(4)]
    records = []
    denoiser = train(
        network(),
        Blobs(),
        config(steps=120, learning_rate=3e-3, shards=shards),
        folder=tmp_path,
        validation=validation,
        on_export=lambda _, record: records.append(record),
    )
    errors = denoising_error(denoiser, validation, sigmas=(0.2, 1.0))
    assert errors[0.2] < 0.15
    assert errors[1.0] < 0.33
    assert records[-1]["step"] == 120
    assert set(records[-1]["rmse"]) == {0.05, 0.1}


def test_shards_share_a_batch_without_changing_it(tmp_path: Path) -> None:
    """Gradients of two halves add up to that of the whole: float32 rounding, through 8 steps of Adam."""
    one, two = (train(network(), Blobs(), config(shards=n), folder=tmp_path / str(n)) for n in (1, 2))
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-3, atol=1e-4)


def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop_at_five(state: dict) -> None:
        if state["step"] == 5:
            raise Stop

    settings = config(checkpoint_minutes=0.0)
    whole = train(network(), Blobs(), settings, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        train(network(), Blobs(), settings, folder=tmp_path / "parts", progress=stop_at_five)
    seen: list[int] = []
    resumed = train(
        network(), Blobs(), settings, folder=tmp_path / "parts", progress=lambda state: seen.append(state["step"])
    )
    assert seen == [6, 7, 8]
    assert torch.equal(weights(whole), weights(resumed))


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """SIGKILL at a moment of the system's choosing, after the first checkpoint."""
    settings = config(steps=40, checkpoint_minutes=0.0)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1); import test_train as t;"
        "t.train(t.network(), t.Blobs(), t.config(steps=40, checkpoint_minutes=0.0), folder=t.Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "killed")]
    process = subprocess.Popen(arguments, env=os.environ)
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order as in the process that was killed
    resumed = train(network(), Blobs(), settings, folder=tmp_path / "killed")
    whole = train(network(), Blobs(), settings, folder=tmp_path / "whole")
    torch.set_num_threads(threads)
    assert torch.equal(weights(whole), weights(resumed))


def test_pauses_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in which the process was stopped (here: every step, by a limit of zero seconds) is no training time."""
    monkeypatch.setattr("priors.train.PAUSE", 0.0)
    states: list[dict] = []
    train(network(), Blobs(), config(steps=3), folder=tmp_path, progress=states.append)
    assert states[-1]["seconds"] == 0.0


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give minutes or steps"):
        TrainConfig()
    train(network(), Blobs(), config(steps=1), folder=tmp_path)
    with pytest.raises(ValueError, match="checkpoint of another network"):
        train(UNet(widths=(8, 24), blocks=(1, 1), features=8), Blobs(), config(), folder=tmp_path)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for damaged in (b"", b"none", whole[: len(whole) // 2]):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
            train(network(), Blobs(), config(), folder=tmp_path)
    broken = network()
    with torch.no_grad():
        broken.tail.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="at step 0"):
        train(broken, Blobs(), config(), folder=tmp_path / "nan")


def test_no_global_random_state_is_touched(tmp_path: Path) -> None:
    start = network()
    before = torch.get_rng_state()
    train(start, Blobs(), config(steps=2), folder=tmp_path, validation=[Blobs()[0]])
    assert torch.equal(torch.get_rng_state(), before)


def test_edm_weights_make_the_loss_one_for_an_ideal_start() -> None:
    """c_out^2 lambda = 1: with F = 0, a loss of E|x0 c_out^-1 (1 - c_skip) - ...|^2 = 2 for images of sigma_data."""
    settings = config()
    rng = torch.Generator().manual_seed(0)
    x0, noise = (torch.view_as_complex(torch.randn(64, 16, 16, 2, generator=rng)) for _ in range(2))
    for sigma in (0.05, 0.3, 3.0):
        loss = edm_loss(edm(network(), settings), settings.sigma_data * x0, torch.full((64,), sigma), noise, settings)
        assert loss.item() == pytest.approx(2.0, rel=0.03)  # 4 standard errors of 32,768 chi-squared values: .031
