"""Denoisers: every network form against the Gaussian prior, the algebra of the wrappers, and priors on disk."""

import json
import threading
import time
import warnings

import pytest
import torch
from torch import Tensor, nn

import priors
from priors import EDM, VE, VP, V, affine, along, bf16, chunked, real_imag, within
from priors.networks import UNet

# Closed form against closed form in float64: only rounding, amplified by at most the condition of C + sigma^2.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
N = 6


class Gaussian:
    """D(x, sigma) = mu + C (C + sigma^2)^-1 (x - mu) on the last axis."""

    sigma_min, sigma_max, ndim = 1e-3, 1e3, 1

    def __init__(self, *, is_complex: bool = False) -> None:
        rng = torch.Generator().manual_seed(0)
        root = torch.randn(N, N, generator=rng, dtype=torch.float64)
        self.mean = torch.randn(N, generator=rng, dtype=torch.complex128 if is_complex else torch.float64)
        self.values, self.vectors = torch.linalg.eigh(root @ root.T / N)
        self.is_complex = is_complex

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        variance = torch.as_tensor(sigma, dtype=torch.float64)[..., None] ** 2
        variance = variance.reshape(*variance.shape[:-1], *[1] * (x.ndim - variance.ndim), 1)
        vectors = self.vectors.to(x.dtype)
        return self.mean + ((x - self.mean) @ vectors * (self.values / (self.values + variance))) @ vectors.T


class Network(nn.Module):
    """A function as a network."""

    ndim = 1

    def __init__(self, function, *, is_complex: bool = False) -> None:
        super().__init__()
        self.function, self.is_complex = function, is_complex

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.function(x, label)


def noisy(*shape: int, is_complex: bool = False) -> Tensor:
    dtype = torch.complex128 if is_complex else torch.float64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def alphas_cumprod() -> Tensor:
    return torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)


def denoisers_from_networks(oracle: Gaussian) -> dict[str, nn.Module]:
    """The ideal network of each kind, each derived from the prior by its own formula."""
    mean, C = oracle.mean, oracle.vectors * oracle.values @ oracle.vectors.T
    eye = torch.eye(N, dtype=torch.float64)
    log_sigmas = (1 / alphas_cumprod() - 1).sqrt().log()

    def sigma_at(t: Tensor) -> Tensor:  # the inverse of the timestep's interpolation
        below = t.floor().long().clamp(max=998)
        return torch.lerp(log_sigmas[below], log_sigmas[below + 1], t - below).exp()

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        covariance = C + sigma[..., None, None] ** 2 * eye
        return -torch.linalg.solve(covariance.to(x.dtype), (x - mean)[..., None])[..., 0]

    def epsilon(x: Tensor, t: Tensor) -> Tensor:  # -sqrt(1 - abar) times the score of x_t
        abar = (1 / (1 + sigma_at(t) ** 2))[..., None]
        covariance = abar[..., None] * C + (1 - abar[..., None]) * eye
        shift = torch.linalg.solve(covariance.to(x.dtype), (x - abar.sqrt() * mean)[..., None])[..., 0]
        return (1 - abar).sqrt() * shift

    def velocity(x: Tensor, t: Tensor) -> Tensor:  # sqrt(abar) eps - sqrt(1 - abar) x0
        abar = (1 / (1 + sigma_at(t) ** 2))[..., None]
        eps = epsilon(x, t)
        return abar.sqrt() * eps - (1 - abar).sqrt() * (x - (1 - abar).sqrt() * eps) / abar.sqrt()

    def raw(x: Tensor, label: Tensor) -> Tensor:  # (x0 - c_skip x_noisy) / c_out
        sigma = (4 * label).exp()[..., None]
        total = (sigma**2 + 0.5**2).sqrt()
        noisy = x * total
        return (oracle(noisy, sigma[..., 0]) - (0.5 / total) ** 2 * noisy) / (sigma * 0.5 / total)

    kind = {"is_complex": oracle.is_complex}
    return {
        "EDM": EDM(Network(raw, **kind), sigma_min=1e-3, sigma_max=1e3, sigma_data=0.5),
        "VE": VE(Network(score), sigma_min=1e-3, sigma_max=1e3, ndim=1, **kind),
        "VP": VP(Network(epsilon), alphas_cumprod(), ndim=1, **kind),
        "V": V(Network(velocity), alphas_cumprod(), ndim=1, **kind),
    }


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("name", ["EDM", "VE", "VP", "V"])
def test_every_network_form_is_the_closed_form_denoiser(name: str, is_complex: bool) -> None:
    oracle = Gaussian(is_complex=is_complex)
    denoiser = denoisers_from_networks(oracle)[name]
    x = noisy(3, 2, N, is_complex=is_complex)
    for sigma in (0.05, 1.0, torch.tensor([0.03, 0.7, 9.0], dtype=torch.float64), torch.full((3, 2), 0.4).double()):
        torch.testing.assert_close(denoiser(x, sigma), oracle(x, sigma), **EXACT)
    torch.testing.assert_close(denoiser(x[0, 0], 0.3), oracle(x[0, 0], 0.3), **EXACT)


def test_sigma_belongs_to_the_leading_axes() -> None:
    """Sample i of a batch with its own sigma is what it would be alone."""
    denoiser = denoisers_from_networks(Gaussian())["EDM"]
    x, sigma = noisy(3, 2, N), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    together = denoiser(x, sigma)
    for i in range(3):
        torch.testing.assert_close(together[i], denoiser(x[i], sigma[i].item()), **EXACT)
    with pytest.raises(ValueError, match=r"each leading index of x \(3, 2, 6\)"):
        denoiser(x, torch.ones(2))


def test_refuses_what_it_was_not_made_for() -> None:
    denoiser = denoisers_from_networks(Gaussian())["VE"]
    with pytest.raises(ValueError, match="real_imag"):
        denoiser(noisy(N, is_complex=True), 0.1)
    with pytest.raises(ValueError, match="outside the denoiser's range"):
        denoiser(noisy(N), 0.0)
    with pytest.raises(ValueError, match="alphas_cumprod must decrease"):
        VP(Network(lambda x, t: x), alphas_cumprod().flip(0))


def test_real_imag_is_the_prior_on_each_part() -> None:
    oracle = Gaussian()
    x, sigma = noisy(3, N, is_complex=True), torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    expected = torch.complex(oracle(x.real, sigma), oracle(x.imag, sigma))
    torch.testing.assert_close(real_imag(oracle)(x, sigma), expected, **EXACT)
    with pytest.raises(ValueError, match="takes complex images"):
        real_imag(Gaussian(is_complex=True))


def test_affine_is_the_denoiser_of_the_shifted_gaussian() -> None:
    """If a x + b ~ N(mu, C) then x ~ N((mu - b) / a, C / a^2); one pair for all, and one for each slice."""
    oracle = Gaussian()
    x = noisy(2, 3, N)
    a, b = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64), torch.tensor([0.1, -1.0, 0.0], dtype=torch.float64)
    wrapped = affine(oracle, a, b)
    assert (wrapped.sigma_min, wrapped.sigma_max) == (1e-3 / 0.5, 1e3 / 3.0)
    for slice_ in range(3):
        moved = Gaussian()
        moved.mean, moved.values = (moved.mean - b[slice_]) / a[slice_], moved.values / a[slice_] ** 2
        sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
        torch.testing.assert_close(wrapped(x, sigma)[:, slice_], moved(x[:, slice_], sigma), **EXACT)
        single = affine(oracle, a[slice_].item(), b[slice_].item())
        torch.testing.assert_close(single(x, 0.3)[:, slice_], moved(x[:, slice_], 0.3), **EXACT)
    with pytest.raises(ValueError, match="must be positive"):
        affine(oracle, -1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_affine_keeps_the_precision_of_the_images(dtype: torch.dtype) -> None:
    class Itself:
        sigma_min, sigma_max, ndim, is_complex = 1e-3, 1e3, 1, dtype.is_complex

        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x

    x = noisy(2, N).to(dtype)
    for b in (0.5, torch.tensor([0.1, 0.2], dtype=torch.float64)):
        torch.testing.assert_close(affine(Itself(), 2.0, b)(x, 0.3), x)  # dtype included


def test_within_is_the_denoiser_inside_and_0_outside() -> None:
    denoiser, support, x = Gaussian(), torch.tensor([True, True, False, True, False, True]), noisy(3, 2, N)
    inside = within(denoiser, support)
    assert torch.equal(inside(x, 0.3)[..., support], denoiser(x, 0.3)[..., support])
    assert not inside(x, 0.3)[..., ~support].any()
    assert (inside.sigma_min, inside.sigma_max, inside.ndim, inside.is_complex) == (1e-3, 1e3, 1, False)


def test_along_denoises_the_slices_across_an_axis() -> None:
    oracle = Gaussian()
    x, sigma = noisy(2, N, 4), torch.tensor([0.3, 2.0], dtype=torch.float64)
    assert along(oracle, -1).ndim == 2
    torch.testing.assert_close(along(oracle, -1)(x, sigma)[:, :, 1], oracle(x[:, :, 1], sigma), **EXACT)
    torch.testing.assert_close(along(oracle, -2)(x.mT, sigma), oracle(x.mT, sigma), **EXACT)
    with pytest.raises(ValueError, match="-1 to -2"):
        along(oracle, 0)


@pytest.mark.parametrize("max_pixels", [1, 2 * N, 5 * N, 10**6])
def test_chunked_changes_neither_values_nor_gradients(max_pixels: int) -> None:
    oracle = Gaussian(is_complex=True)
    x = noisy(3, 3, N, is_complex=True).requires_grad_()
    sigma = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    whole, pieces = oracle(x, sigma), chunked(oracle, max_pixels)(x, sigma)
    torch.testing.assert_close(pieces, whole, **EXACT)
    (expected,) = torch.autograd.grad(whole.abs().square().sum(), x)
    (got,) = torch.autograd.grad(pieces.abs().square().sum(), x)
    torch.testing.assert_close(got, expected, **EXACT)


class Limited(Gaussian):
    """Runs out of memory above two images, as a network on a full device does."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().__call__(x, sigma)


def test_chunked_halves_when_memory_runs_out_and_says_so_once() -> None:
    limited, x = Limited(), noisy(8, N)
    denoiser = chunked(limited, 10**6)
    with pytest.warns(UserWarning, match="out of memory") as caught:
        first = denoiser(x, 0.5)
    assert len(caught) == 1  # though it had to halve twice, from 8 to 4 to 2
    torch.testing.assert_close(first, Gaussian()(x, 0.5), **EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser(x, 0.5)
    assert max(limited.sizes[-4:]) == 2  # it remembers what fits


@pytest.mark.parametrize("threads", [2, 3])
def test_pieces_side_by_side_change_nothing(threads: int) -> None:
    network = priors.load("brain")
    x, sigma = torch.randn(5, 2, 16, 24, dtype=torch.complex64), torch.linspace(0.1, 1, 5)
    before = torch.get_num_threads()
    with torch.no_grad():
        pieces = chunked(network, 1, threads=threads)(x, sigma)
        expected = chunked(network, 1)(x, sigma)
    torch.testing.assert_close(pieces, expected, rtol=0, atol=1e-6)  # small convolutions round by their threads
    assert torch.get_num_threads() == before


def test_memory_for_fewer_threads_than_asked_for() -> None:
    lock, x = threading.Lock(), noisy(8, N)

    class Crowded(Gaussian):
        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            if not lock.acquire(blocking=False):
                raise torch.OutOfMemoryError("out of memory")
            try:
                time.sleep(0.05)
                return super().__call__(x, sigma)
            finally:
                lock.release()

    denoiser = chunked(Crowded(), N, threads=4)
    with pytest.warns(UserWarning, match=f"out of memory with 4 images of {N} pixels at a time: continuing with 2"):
        denoised = denoiser(x, 0.5)
    torch.testing.assert_close(denoised, Gaussian()(x, 0.5), **EXACT)
    assert denoiser.threads == 1


def test_chunked_passes_other_errors_on() -> None:
    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    denoiser = chunked(VE(Network(broken), sigma_min=0.1, sigma_max=1.0, ndim=1, is_complex=False), 10)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        denoiser(noisy(3, N), 0.5)


def test_bf16_rounds_the_network_and_nothing_else() -> None:
    prior = priors.load("brain")
    x = torch.zeros(1, 48, 48, dtype=torch.complex64)
    x[:, 12:36, 12:36] = 0.8
    for sigma in (0.01, 0.2, 5.0):
        noisy_x = x + sigma * noisy(1, 48, 48, is_complex=True).to(torch.complex64)
        whole, rounded = prior(noisy_x, sigma), bf16(prior)(noisy_x, sigma)
        change = (whole - rounded).norm() / (noisy_x - x).norm()
        assert rounded.dtype == torch.complex64
        assert 0 < change < 0.06  # the largest measured; bfloat16 rounds to 0.4 %, through thirty layers


# --- on disk -----------------------------------------------------------------------------------------------------


def small(**changes) -> EDM:
    torch.manual_seed(0)
    network = UNet(**{"widths": (8, 16), "blocks": (1, 1), "features": 8} | changes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return EDM(network, sigma_min=0.01, sigma_max=10.0, sigma_data=0.3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 5e-3)])
def test_round_trip(tmp_path, dtype: torch.dtype, tolerance: float) -> None:
    """float32 weights come back bit by bit; float16 ones rounded by 2^-11 each, through six layers."""
    denoiser, x = small(), noisy(2, 16, 24, is_complex=True).to(torch.complex64)
    card = priors.save(denoiser, tmp_path / "some.prior", card={"intensity": "p99 is 1"}, dtype=dtype)
    assert card == tmp_path / "some.prior.json"
    loaded = priors.load(card)
    assert loaded.card["intensity"] == "p99 is 1"
    assert (loaded.sigma_min, loaded.sigma_max, loaded.sigma_data) == (0.01, 10.0, 0.3)
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(x, 0.2), denoiser(x, 0.2).detach(), rtol=tolerance, atol=tolerance)
    priors.load(tmp_path / "some.prior.safetensors")


def test_what_is_wrong_on_disk_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="unknown prior 'nonsense': embedded are"):
        priors.load("nonsense")
    priors.save(small(), tmp_path / "a", card={})
    priors.save(small(widths=(8, 24)), tmp_path / "b", card={})
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights: put b"):
        priors.load(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no card: put c"):
        priors.load(tmp_path / "c")
    (tmp_path / "c.json").write_text((tmp_path / "a.json").read_text())
    with pytest.raises(ValueError, match="checksum"):
        priors.load(tmp_path / "c")
    for text, problem in [
        ("{", "no JSON object"),
        ("3", "no JSON object"),
        ('{"noise": {}}', "without network, sha256"),
    ]:
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match=rf"c\.json: expected a model card, got .*{problem}"):
            priors.load(tmp_path / "c")
    card = json.loads((tmp_path / "a.json").read_text())
    card["sha256"] = json.loads((tmp_path / "b.json").read_text())["sha256"]
    (tmp_path / "c.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="weights of another network"):
        priors.load(tmp_path / "c")


def test_embedded_priors_load() -> None:
    """Every shipped card has its weights, of at most 10 MB, and takes images of any size."""
    for name in priors.names():
        denoiser = priors.load(name)
        assert (priors.library.WEIGHTS / f"{name}.safetensors").stat().st_size <= 10e6
        if isinstance(denoiser, priors.Supervised):  # see test_supervised.py
            continue
        dtype = torch.complex64 if denoiser.is_complex else torch.float32
        assert denoiser(torch.zeros(1, 33, 50, dtype=dtype), 0.1).shape == (1, 33, 50)
