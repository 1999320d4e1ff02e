"""Networks that reconstruct directly: their training pairs, their training, the methods that run them, bad input."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training_images import ball, write_nifti
from torch import Tensor, nn

import priors
from operators.linop import Matrix
from operators.masks import MASKS, acceleration, readout_axes
from operators.mri import sense
from priors import EDM, PostProcessing, Supervised, VarNet
from priors.networks import UNet
from priors.train import TrainConfig
from priors.train import train as optimise
from recon import reconstruct
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.methods.supervised import noise_of_full_data, unet, varnet
from recon.methods.zero_filled import combination, zero_filled
from recon.mri import MRIScan
from recon.phantom import head
from recon.settings import Settings
from recon.train import train
from recon.training_images import TrainingImages, Volume
from recon.training_scans import Supervision, TrainingScans

SMALL = {"widths": (8, 12), "blocks": (1, 1), "features": 8}
SHAPE = (32, 24)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are tiny
    yield
    torch.set_num_threads(threads)


def unet_network(**changes: Any) -> PostProcessing:
    torch.manual_seed(0)
    return PostProcessing(**SMALL | changes)


def varnet_network(**changes: Any) -> VarNet:
    torch.manual_seed(0)
    return VarNet(**SMALL | {"cascades": 3} | changes)


NETWORKS = pytest.mark.parametrize("make", [unet_network, varnet_network])


def stirred(network: nn.Module, std: float = 0.05) -> Any:
    """At its start a network does nothing, which would hide mistakes."""
    for parameter in network.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return network.eval().requires_grad_(False)


def volume() -> Volume:
    data = ball().astype(np.float16)
    return Volume(data / data.max(), (5.0, 5.0, 5.0))


def scans(**changes: Any) -> TrainingScans:
    settings = {"mask": "random", "accelerations": (2.0, 4.0), "shape": SHAPE} | changes
    return TrainingScans(TrainingImages([volume()], shape=(48, 48)), **settings)


def problem(mask: Tensor | None = None, shape: tuple[int, int] = SHAPE, sigma: float = 0.01) -> tuple[Gaussian, Tensor]:
    """Data of a random image, and that image; maps of unit energy, except for a border that no coil sees."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(1, 4, *shape, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    maps[..., :3] = 0
    A = sense(torch.ones(shape, dtype=torch.bool) if mask is None else mask, maps / sigma)
    x = A.domain.randn(generator=generator) * (maps[:, 0] != 0)
    return Gaussian(A, A(x) + A.codomain.randn(generator=generator) * A.mask), x


# Pairs


def test_pairs_are_data_of_their_image() -> None:
    """Where maps are as given, A image explains the data to the noise; 0.03 is the largest error of the maps."""
    series = scans()
    for i in range(6):
        kspace, mask, maps, image = series[i]
        assert kspace.shape == (8, *SHAPE)
        assert maps.shape == (1, 8, *SHAPE)
        assert image.shape == (1, *SHAPE)
        assert readout_axes(mask) == (-2,)
        assert round(acceleration(mask)) in (2, 4)
        assert not kspace[:, ~mask].any()
        likelihood = Gaussian(sense(mask, maps), kspace)
        sigma = noise_of_full_data(likelihood)
        assert 0.005 <= sigma <= 0.03
        residual = (likelihood.A(image) - kspace)[:, mask]
        error = 0.03 * math.sqrt(2 * 8) * image.abs().square().mean().sqrt() / sigma
        assert residual.abs().square().mean().sqrt() < math.sqrt(2) + 2 * error


def test_a_pair_depends_on_seed_and_index_alone() -> None:
    first, again, other = scans()[5], scans()[5], scans(seed=1)[5]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "poisson"}, "mask poisson: expected a pattern of lines"),
        ({"mask": "nothing"}, "nothing"),
        ({"accelerations": (0.5,)}, "mask random: "),
        ({"accelerations": ()}, "accelerations: expected at least one"),
    ],
)
def test_pairs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scans(**changes)


# Training


class Four:
    """The same four pairs over and over."""

    def __init__(self) -> None:
        series = scans()
        self.pairs = [series[i] for i in range(4)]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.pairs[index % 4]


@NETWORKS
def test_training_reduces_the_error(make: Any, tmp_path: Path) -> None:
    """Of four pairs that come again and again: more would take longer."""
    examples = Four()
    before = Supervision(make()).errors(examples.pairs)
    settings = TrainConfig(
        steps=60, images_per_step=2, shards=2, learning_rate=1e-2, warmup=5, workers=0, bf16=False, ema=(0.1,)
    )
    records: list[dict] = []
    model = optimise(
        Supervision(make()),
        examples,
        settings,
        folder=tmp_path,
        validation=examples.pairs,
        on_export=lambda _, record: records.append(record),
    )
    after = Supervision(model).errors(examples.pairs)
    assert after.keys() == before.keys() == {2.0, 4.0}
    assert all(after[factor] < 0.7 * before[factor] for factor in after)
    assert records[-1]["rmse"] == {0.1: after}


def folder(tmp_path: Path) -> Path:
    where = tmp_path / "scans"
    where.mkdir()
    for name in ("a", "b"):
        write_nifti(where / f"{name}.nii.gz", ball().astype(np.float32), (5.0, 5.0, 5.0))
    return where


def test_recon_train_makes_one_continues_and_starts_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of one step each are one of two; fine-tuning with next to no step changes next to nothing."""
    monkeypatch.setattr("recon.train.VALIDATION_IMAGES", 1)
    monkeypatch.setattr("priors.VarNet", varnet_network)
    where = folder(tmp_path)
    arguments = {"task": "varnet", "accelerations": (3.0,), "name": "mine"}
    for steps in (1, 2):
        card = train(where, out=tmp_path / "out", steps=steps, **arguments)
    other = r"the training there is of accelerations \[3.0\], not \[2.0\].* seed 0, not 5"
    with pytest.raises(InputError, match=other):
        train(where, out=tmp_path / "out", steps=3, **arguments | {"accelerations": (2.0,), "seed": 5})
    network = priors.load(card)
    assert isinstance(network, VarNet)
    assert network.card["training"]["step"] == 2
    recipe = network.card["recipe"]
    assert (recipe["task"], recipe["mask"], recipe["accelerations"]) == ("varnet", "random", [3.0])
    assert "noise" not in network.card
    assert [len(network.steps), network.card["network"]["arguments"]["widths"]] == [3, [8, 12]]
    second = priors.load(
        train(where, out=tmp_path / "second", steps=1, start=card, learning_rate=1e-9, seed=1, **arguments)
    )
    for before, after in zip(network.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-6)  # float16 on disk
    for task in ("unet", "denoiser"):
        with pytest.raises(InputError, match=f"expected a prior for the task {task}, got one for varnet"):
            train(where, out=tmp_path / "third", steps=1, start=card, task=task)
    with pytest.raises(InputError, match="unknown task 'gan'; expected one of denoiser, unet, varnet"):
        train(where, out=tmp_path / "third", steps=1, task="gan")
    with pytest.raises(InputError, match="a denoiser learns from images alone"):
        train(where, out=tmp_path / "third", steps=1, mask="random")


# Methods


class NoDenoiser(nn.Module):
    """D(x, sigma) = x."""

    sigma_min = 0.002

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return x


def bare(cascades: int) -> VarNet:
    network = varnet_network(cascades=cascades).requires_grad_(False)
    network.denoiser = NoDenoiser()
    return network


def test_of_full_data_they_start_from_the_least_squares_image() -> None:
    """A new U-Net returns 0, and steps towards the data do not move."""
    likelihood, _ = problem()
    expected = likelihood.backprojection * 1e-4  # sigma^2, as the energy of the maps is 1
    for x in (unet(likelihood, unet_network().requires_grad_(False)), varnet(likelihood, bare(5))):
        assert torch.allclose(x, expected, atol=1e-5)  # float32 rounding
        assert (x[..., :3] == 0).all()


def test_steps_without_a_denoiser_fit_the_data() -> None:
    """Many of them solve the least-squares problem of undersampled data."""
    likelihood, _ = problem(MASKS["random"](SHAPE, 1.5, axis=-1, seed=0))
    x = varnet(likelihood, bare(200))
    assert likelihood.nll(x) < 1.02 * likelihood.nll(likelihood.project(x, iterations=200))


def test_weights_in_the_maps_do_not_matter() -> None:
    """Data in other units of noise; the noise itself is below what the denoiser is told in either."""
    likelihood, _ = problem(sigma=1e-3)
    A, network = likelihood.A, stirred(varnet_network())
    scaled = Gaussian(sense(A.mask, 10 * A.sens_maps), 10 * likelihood.y)
    expected = varnet(likelihood, network)
    assert torch.allclose(varnet(scaled, network), expected, atol=1e-4 * float(expected.abs().max()))  # float32


def test_it_may_start_from_a_denoiser() -> None:
    """And is then plug and play with it, written out here."""
    torch.manual_seed(0)
    denoiser = stirred(EDM(UNet(**SMALL), sigma_min=0.01, sigma_max=5.0, sigma_data=0.5))
    network = VarNet.unrolled(denoiser).requires_grad_(False)
    assert network.evaluations == 8
    likelihood, _ = problem(MASKS["random"](SHAPE, 2, axis=-1, seed=0), sigma=0.02)
    inverse = combination(likelihood)
    before = x = zero_filled(likelihood)
    for k in range(8):
        z = x + 0.7 * (x - before)
        for _ in range(4):
            z = z - 1.3 * inverse * likelihood.grad(z)
        before, x = x, denoiser(z, 0.1 ** (1 - k / 7) * 0.02 ** (k / 7))
    assert torch.allclose(varnet(likelihood, network), x, atol=1e-4 * float(x.abs().max()))  # float32, 8 evaluations
    real = EDM(UNet(is_complex=False, **SMALL), sigma_min=0.01, sigma_max=5.0, sigma_data=0.5)
    with pytest.raises(ValueError, match="expected a denoiser of complex images"):
        VarNet.unrolled(real)


@NETWORKS
def test_lines_along_the_other_axis_are_the_image_turned(make: Any) -> None:
    network = stirred(make())
    method = {"unet": unet, "varnet": varnet}[network.task]
    likelihood, _ = problem(MASKS["random"](SHAPE, 2, axis=-1, seed=0))
    A = likelihood.A
    turned = Gaussian(sense(A.mask.mT, A.sens_maps.mT), likelihood.y.mT)
    expected = method(likelihood, network)
    assert torch.allclose(method(turned, network).mT, expected, atol=1e-4 * float(expected.abs().max()))  # float32


@pytest.mark.parametrize("name", ["unet", "varnet"])
def test_the_whole_line(name: str, tmp_path: Path) -> None:
    """One image, no samples, no interval; data in other units give the image in those; a part of slices is as all."""
    scan = head((48, 40), coils=3)
    network = stirred({"unet": unet_network, "varnet": varnet_network}[name]())
    arguments = {"method": name, "mask": "random", "acceleration": 2.0, "prior": network}
    result = reconstruct(scan, out=tmp_path, **arguments)
    assert result.samples is None
    assert result.std is None
    assert result.run["evaluations"] == network.evaluations
    scaled = MRIScan(**{**vars(scan), "kspace": 1000 * torch.as_tensor(scan.kspace[:])})
    expected = 1000 * result.mean
    assert torch.allclose(reconstruct(scaled, **arguments).mean, expected, atol=1e-3 * float(expected.max()))  # float32
    rounded = reconstruct(scan, precision="bf16", **arguments).mean
    assert 0 < (rounded - result.mean).norm() / result.mean.norm() < 0.05  # bfloat16 rounds to 0.4 %, in ten layers


@pytest.mark.parametrize(("name", "gain"), [("unet", 2.5), ("varnet", 10.0)])
def test_the_embedded_networks(name: str, gain: float) -> None:
    """On a phantom, lines missing as in training: dB above the zero-filled image; measured were 3.8 and 12.4."""
    scan = head((96, 80), coils=4)
    measured = [
        reconstruct(scan, method=method, mask="random", acceleration=4.0).metrics["psnr_scaled"]
        for method in ("zero-filled", name)
    ]
    assert measured[1] > measured[0] + gain


def test_they_have_priors_of_their_own() -> None:
    assert Settings(method="unet").resolved().prior == "brain-unet"
    assert Settings(method="varnet").resolved().prior == "brain-varnet"
    for arguments, message in [
        ({"samples": 4}, "samples: varnet draws no samples"),
        ({"steps": 4}, "steps: varnet has no noise levels"),
        ({"options": {"cascades": 4}}, "method varnet: unknown option 'cascades'"),
    ]:
        with pytest.raises(InputError, match=message):
            Settings(method="varnet", **arguments).resolved()


# Bad input


class Identity:
    """A denoiser of the user's own."""

    ndim, is_complex, sigma_min, sigma_max = 2, True, 0.002, 10.0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("method", "prior", "message"),
    [
        (
            "varnet",
            Identity(),
            r"varnet needs a network trained for it \(recon train --task varnet\), .* is a denoiser",
        ),
        ("varnet", "brain", "varnet needs a network trained for it .* this prior is a denoiser"),
        ("unet", varnet_network(), "unet needs a network trained for it .* this prior is a network for varnet"),
        ("dds", varnet_network(), "dds needs a denoiser, and this prior is a network for varnet; use varnet"),
        ("csgm", unet_network(), "csgm needs a denoiser, and this prior is a network for unet; use unet"),
        ("tv", unet_network(), "prior: tv uses no prior"),
    ],
)
def test_a_prior_of_another_kind_is_refused(method: str, prior: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reconstruct(head((48, 40), coils=3), method=method, mask="random", acceleration=2.0, prior=prior)


def test_images_of_another_kind_are_refused() -> None:
    network = unet_network()
    volume_maps = torch.ones(1, 1, 8, 8, 8, dtype=torch.complex64)
    A = sense(torch.ones(8, 8, 8, dtype=torch.bool), volume_maps)
    with pytest.raises(InputError, match="unet: the network is for 2-D complex images, got 3-D complex images"):
        unet(Gaussian(A, A.codomain.zeros()), network)
    with pytest.raises(InputError, match="got 1-D real images"):
        unet(Gaussian(Matrix(torch.eye(4)), torch.zeros(4)), network)
    plane = Matrix(torch.eye(4, dtype=torch.complex64))
    with pytest.raises(InputError, match="2-D complex images, got 1-D"):
        varnet(Gaussian(plane, torch.zeros(4, dtype=torch.complex64)), varnet_network())
    with pytest.raises(ValueError, match="at least 2 cascades, got 1"):
        varnet_network(cascades=1)


@NETWORKS
def test_on_disk(make: Any, tmp_path: Path) -> None:
    network = stirred(make())
    card = priors.save(network, tmp_path / "mine", card={"intensity": "p99 is 1"})
    loaded = priors.load(card)
    assert isinstance(loaded, Supervised)
    assert loaded.task == network.task
    assert loaded.card["intensity"] == "p99 is 1"
    likelihood, _ = problem()
    method = {"unet": unet, "varnet": varnet}[network.task]
    assert torch.equal(method(likelihood, loaded), method(likelihood, network))
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="checksum"):
        reconstruct(head((48, 40), coils=3), method=network.task, mask="random", acceleration=2.0, prior=str(card))
