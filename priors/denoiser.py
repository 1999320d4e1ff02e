"""The Denoiser: every prior in one form, D(x, sigma) = E[x0 | x0 + sigma n = x].

Networks that predict something else (a score, noise, velocity) are wrapped into this form, so any prior runs with any
sampler. A denoiser of your own is any object with a `__call__(x, sigma)` and the four attributes of the protocol.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Denoiser(Protocol):
    """D(x, sigma) = E[x0 | x0 + sigma n = x], with n of unit standard deviation per real component.

    It acts on the trailing `ndim` axes; every leading axis is batch. It is differentiable, and neither turns gradients
    off nor lowers the precision by itself.

    Attributes
    ----------
    sigma_min, sigma_max : the noise range it was made for, standard deviation per real component.
    ndim : how many trailing axes make one image.
    is_complex : whether images are complex.
    """

    sigma_min: float
    sigma_max: float
    ndim: int
    is_complex: bool

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The denoised x; sigma is one number, or one for each index of the leading axis (axes) of x."""
        ...


def per_sample(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma as a real tensor that broadcasts against x: its axes are the leading axes of x."""
    value = torch.as_tensor(sigma, dtype=x.real.dtype, device=x.device)
    if value.shape != x.shape[: value.ndim]:
        raise ValueError(
            f"expected one sigma, or one for each leading index of x {tuple(x.shape)}; got sigma of shape "
            f"{tuple(value.shape)}"
        )
    return value.reshape(*value.shape, *[1] * (x.ndim - value.ndim))


def check_call(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> None:
    """Refuse images of another kind and noise levels outside the range, by name."""
    if x.ndim < denoiser.ndim:
        raise ValueError(f"the denoiser acts on {denoiser.ndim} trailing axes; got x of shape {tuple(x.shape)}")
    if x.is_complex() != denoiser.is_complex:
        kinds = {True: "complex", False: "real"}
        advice = "wrap it: real_imag(denoiser)" if x.is_complex() else "give complex images"
        raise ValueError(
            f"the denoiser expects {kinds[denoiser.is_complex]} images, got {kinds[x.is_complex()]} ones: {advice}"
        )
    low, high = sigma.detach().min().item(), sigma.detach().max().item()
    if not (denoiser.sigma_min * 0.999 <= low and high <= denoiser.sigma_max * 1.001):  # 0.1 %: rounding of schedules
        raise ValueError(
            f"sigma from {low:g} to {high:g} is outside the denoiser's range {denoiser.sigma_min:g} to "
            f"{denoiser.sigma_max:g}: choose the schedule inside it"
        )


# --- networks into denoisers ---------------------------------------------------------------------------------------


class EDM(nn.Module):
    """Preconditioned network: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

    With sd = sigma_data: c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4.

    Parameters
    ----------
    network : F(x, noise label), with attributes ndim and is_complex; labels have the shape of the leading axes.
    sigma_min, sigma_max : noise range, standard deviation per real component.
    sigma_data : standard deviation per real component of the images.

    Attributes
    ----------
    card : the model card, where it was loaded from one.

    References
    ----------
    Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS (2022), table 1.
    """

    def __init__(self, network: nn.Module, *, sigma_min: float, sigma_max: float, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.card: dict[str, Any] = {}
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.ndim: int = network.ndim  # type: ignore[assignment]
        self.is_complex: bool = network.is_complex  # type: ignore[assignment]

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        s = per_sample(sigma, x)
        check_call(self, x, s)
        total = (s**2 + self.sigma_data**2).sqrt()
        f = self.network(x / total, labels(s.log() / 4, x, self.ndim))
        return (self.sigma_data / total) ** 2 * x + s * self.sigma_data / total * f


class VE(nn.Module):
    """Score network of the variance-exploding process: D = x + sigma^2 s(x, sigma) (Tweedie's formula).

    Parameters
    ----------
    network : s(x, sigma) = the gradient of log p_sigma at x, per real component.
    sigma_min, sigma_max, ndim, is_complex : as in Denoiser.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR (2021).
    """

    def __init__(
        self, network: nn.Module, *, sigma_min: float, sigma_max: float, ndim: int = 2, is_complex: bool = True
    ) -> None:
        super().__init__()
        self.network, self.sigma_min, self.sigma_max = network, sigma_min, sigma_max
        self.ndim, self.is_complex = ndim, is_complex

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        s = per_sample(sigma, x)
        check_call(self, x, s)
        return x + s**2 * self.network(x, labels(s, x, self.ndim))


class VP(nn.Module):
    """Noise-predicting network of the variance-preserving process, conditioned on a timestep.

    x_t = sqrt(abar) x0 + sqrt(1 - abar) n is x / sqrt(1 + sigma^2) at abar = 1 / (1 + sigma^2), so
    D = x - sigma eps(x_t, t). Between timesteps, t is interpolated linearly in ln(sigma).

    Parameters
    ----------
    network : eps(x_t, t), with t real, counted from 0, in the shape of the leading axes.
    alphas_cumprod : (timesteps,) abar, decreasing.
    ndim, is_complex : as in Denoiser; the noise has unit standard deviation per real component.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS (2020).
    """

    log_sigmas: Tensor

    def __init__(self, network: nn.Module, alphas_cumprod: Tensor, *, ndim: int = 2, is_complex: bool = False) -> None:
        super().__init__()
        sigmas = (1 / alphas_cumprod.double() - 1).sqrt()
        if not (sigmas.diff() > 0).all():
            raise ValueError("alphas_cumprod must decrease from close to 1 to close to 0 with the timestep")
        self.network = network
        self.register_buffer("log_sigmas", sigmas.log(), persistent=False)
        self.sigma_min, self.sigma_max = sigmas[0].item(), sigmas[-1].item()
        self.ndim, self.is_complex = ndim, is_complex

    def timestep(self, sigma: Tensor) -> Tensor:
        value = sigma.log().double()
        upper = torch.searchsorted(self.log_sigmas, value.detach()).clamp(1, len(self.log_sigmas) - 1)
        low, high = self.log_sigmas[upper - 1], self.log_sigmas[upper]
        return (upper - 1 + (value - low) / (high - low)).to(sigma.dtype)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        s = per_sample(sigma, x)
        check_call(self, x, s)
        output = self.network(x / (1 + s**2).sqrt(), labels(self.timestep(s), x, self.ndim))
        return self.tweedie(x, s, output)

    def tweedie(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        return x - sigma * output


class V(VP):
    """Velocity-predicting network: v = sqrt(abar) n - sqrt(1 - abar) x0, so D = x / (1 + s^2) - s v / sqrt(1 + s^2).

    Parameters as for VP.

    References
    ----------
    Salimans and Ho, Progressive distillation for fast sampling of diffusion models, ICLR (2022).
    """

    def tweedie(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        return x / (1 + sigma**2) - sigma / (1 + sigma**2).sqrt() * output


def labels(value: Tensor, x: Tensor, ndim: int) -> Tensor:
    """A value that broadcasts against x, as one label for each image: the shape of the leading axes."""
    batch = x.shape[: x.ndim - ndim]
    return value.expand(*batch, *[1] * ndim).reshape(batch)


# --- denoisers into denoisers: classes in the manner of functools.partial, named as functions -----------------------


class real_imag:
    """A prior for real images on complex ones: D(Re x) + i D(Im x)."""

    is_complex = True

    def __init__(self, denoiser: Denoiser) -> None:
        if denoiser.is_complex:
            raise ValueError("real_imag is for denoisers of real images; this one takes complex images as it is")
        self.denoiser, self.ndim = denoiser, denoiser.ndim
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        check_call(self, x, per_sample(sigma, x))
        parts = torch.view_as_real(x).movedim(-1, -self.ndim - 1)  # after the leading axes, with which sigma is aligned
        return torch.view_as_complex(self.denoiser(parts, sigma).movedim(-self.ndim - 1, -1).contiguous())


class affine:
    """A prior with an intensity convention of its own: (D(a x + b, a sigma) - b) / a.

    Parameters
    ----------
    denoiser : the prior, trained on images a x + b.
    a, b : numbers, or tensors that broadcast against the leading axes (from the right): one per slice, say. a > 0.
    """

    def __init__(self, denoiser: Denoiser, a: Tensor | float, b: Tensor | float = 0.0) -> None:
        self.denoiser, self.a, self.b = denoiser, exact(a), exact(b)
        if not (self.a > 0).all():
            raise ValueError(f"the intensity factor a must be positive, got {a}")
        self.ndim, self.is_complex = denoiser.ndim, denoiser.is_complex
        self.sigma_min = denoiser.sigma_min / self.a.min().item()
        self.sigma_max = denoiser.sigma_max / self.a.max().item()

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        a, b = (v.to(x.device)[(..., *[None] * self.ndim)] for v in (self.a, self.b))
        a, b = a.to(x.real.dtype), b.to(x.dtype)
        scaled = labels(a * per_sample(sigma, x), x, self.ndim)
        return (self.denoiser(a * x + b, scaled) - b) / a


def exact(value: Tensor | float) -> Tensor:
    """A tensor as it is; a number in double precision, to be rounded to that of the images."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


class within:
    """A prior that knows where the image is 0: D(x, sigma) inside the support, 0 outside.

    Where no coil sees anything the data say nothing, and samples would hold whatever the network imagines there.

    Parameters
    ----------
    denoiser : the prior; it sees x as it is, noise outside the support included.
    support : bool, broadcasts against the images from the right.
    """

    def __init__(self, denoiser: Denoiser, support: Tensor) -> None:
        self.denoiser, self.support = denoiser, support
        self.ndim, self.is_complex = denoiser.ndim, denoiser.is_complex
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.denoiser(x, sigma) * self.support


class along:
    """A prior on slices, applied to volumes: slices across `axis` are batch.

    Parameters
    ----------
    denoiser : acts on ndim axes.
    axis : which of the trailing ndim + 1 axes counts the slices, from the end: -1 .. -(ndim + 1).
    """

    def __init__(self, denoiser: Denoiser, axis: int) -> None:
        self.denoiser, self.axis, self.ndim = denoiser, axis, denoiser.ndim + 1
        if not -self.ndim <= axis <= -1:
            raise ValueError(f"axis counts from the end, -1 to {-self.ndim} for this denoiser; got {axis}")
        self.is_complex, self.sigma_min, self.sigma_max = denoiser.is_complex, denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.denoiser(x.movedim(self.axis, -self.ndim), sigma).movedim(-self.ndim, self.axis)


class chunked:
    """A prior within a memory budget: the batch goes through it in pieces, and gradients are recomputed piece by piece.

    When memory runs out all the same, the pieces are halved from then on, with a warning.

    Parameters
    ----------
    denoiser : the prior.
    max_pixels : pixels that go through it at a time; at least one image does.
    threads : pieces that go through it side by side, each on one thread of the processor, where no gradient is asked
        for. Threads meet once for each piece so, not once for each operation: 8 images of 230 x 180 take 10 % less time
        on two threads, 25 % less in bfloat16. The prior must bear several calls at a time.
    """

    def __init__(self, denoiser: Denoiser, max_pixels: int, *, threads: int = 1) -> None:
        if max_pixels < 1 or threads < 1:
            raise ValueError(f"max_pixels and threads must be positive, got {max_pixels} and {threads}")
        self.denoiser, self.max_pixels, self.threads = denoiser, max_pixels, threads
        self.ndim, self.is_complex = denoiser.ndim, denoiser.is_complex
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.warned = False

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigmas = labels(per_sample(sigma, x), x, self.ndim).reshape(-1)
        images = x.reshape(-1, *x.shape[x.ndim - self.ndim :])
        done: list[Tensor] = []
        start = 0
        while start < len(images):
            count = min(max(1, self.max_pixels // images[0].numel()), len(images) - start)
            together = 1 if torch.is_grad_enabled() and x.requires_grad else self.threads
            piece = slice(start, start + count * together)
            try:
                done += self.side_by_side(images[piece].split(count), sigmas[piece].split(count))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or count * together == 1:
                    raise
                self.lower(count, together, images[0].numel())
                continue
            start = piece.stop
        return torch.cat(done).reshape(x.shape)

    def side_by_side(self, images: Sequence[Tensor], sigmas: Sequence[Tensor]) -> list[Tensor]:
        if len(images) == 1:
            return [self.denoise(images[0], sigmas[0])]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # also of the threads that begin while it is so
        try:
            with ThreadPoolExecutor(len(images)) as pool:
                return list(pool.map(torch.no_grad()(self.denoiser), images, sigmas))
        finally:
            torch.set_num_threads(threads)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return checkpoint(self.denoiser, x, sigma, use_reentrant=False)
        return self.denoiser(x, sigma)

    def lower(self, count: int, together: int, pixels: int) -> None:
        """Half the images at a time from now on: first fewer side by side, then smaller pieces."""
        if together > 1:
            self.threads = together // 2
        else:
            self.max_pixels = count // 2 * pixels
        if not self.warned:
            self.warned = True
            before = count * together
            warnings.warn(
                f"out of memory with {before} images of {pixels} pixels at a time: continuing with {before // 2}",
                stacklevel=3,
            )


class bf16:
    """A prior whose network computes in bfloat16, with images in single precision around it.

    Three times as fast where a processor has matrix instructions for it (AMX), slower where it has none. Its rounding
    moves a result of the prior `brain` by 0.1 % (sigma 1) to 6 % (sigma 0.003) of the noise, an eighth or less of the
    error that remains anyway.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.ndim, self.is_complex = denoiser, denoiser.ndim, denoiser.is_complex
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.denoiser(x, sigma)


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has a class of its own for it; the CPU allocator says so in words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
