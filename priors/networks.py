"""The compact U-Net. Complex images become two real channels here and nowhere else."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoiseEmbedding(nn.Module):
    """Fourier features of the noise label, then a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi / 2 * torch.arange(1, 9), persistent=False)
        self.hidden = nn.Linear(16, features)
        self.out = nn.Linear(features, features)

    def forward(self, noise_label: Tensor) -> Tensor:
        phase = noise_label[:, None] * self.frequencies
        return F.silu(self.out(F.silu(self.hidden(torch.cat([phase.cos(), phase.sin()], dim=1)))))


class ResidualBlock(nn.Module):
    """x + conv(silu(film(conv(silu(x))))); the second convolution starts at zero, so the block starts as the identity.

    There is no normalisation: statistics over a patch differ from those over a whole image with its dark background.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(features, 2 * channels)
        for parameter in (*self.second.parameters(), *self.film.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.first(F.silu(x))
        return x + self.second(F.silu(h * (1 + scale) + shift))


class Level(nn.ModuleList):
    """Residual blocks at one resolution."""

    def __init__(self, width: int, count: int, features: int) -> None:
        super().__init__(ResidualBlock(width, features) for _ in range(count))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            h = block(h, embedding)
        return h


class UNet(nn.Module):
    """Residual U-Net on 2-D images, conditioned on a noise label.

    The image is first folded into blocks of `fold` x `fold` pixels (pixel unshuffle): the widest layers then run on a
    quarter of the pixels and the receptive field doubles. Any image size is accepted: the image is padded by reflection
    to a multiple of the total stride and cropped afterwards.

    Parameters
    ----------
    is_complex : whether images are complex (two real channels) or real (one).
    widths : channels at each resolution, finest first; each level halves the resolution of the one before.
    blocks : residual blocks at each resolution, on the way down and again on the way up (once at the coarsest).
    fold : side of the pixel blocks folded into channels at the input.
    features : width of the noise embedding.

    References
    ----------
    Ronneberger et al., MICCAI (2015). Shi et al., CVPR (2016) (pixel shuffle). Perez et al., AAAI (2018) (FiLM).
    """

    ndim = 2

    def __init__(
        self,
        *,
        is_complex: bool = True,
        widths: tuple[int, ...] = (64, 128, 192),
        blocks: tuple[int, ...] = (2, 2, 3),
        fold: int = 2,
        features: int = 128,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"widths and blocks describe the same levels: got {len(widths)} and {len(blocks)} of them")
        self.is_complex, self.fold = is_complex, fold
        self.arguments = {
            "is_complex": is_complex,
            "widths": list(widths),
            "blocks": list(blocks),
            "fold": fold,
            "features": features,
        }
        self.stride = fold * 2 ** (len(widths) - 1)
        channels = (2 if is_complex else 1) * fold**2

        self.embedding = NoiseEmbedding(features)
        self.head = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Level(w, n, features) for w, n in zip(widths[:-1], blocks[:-1], strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.bottom = Level(widths[-1], blocks[-1], features)
        self.grow = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Level(w, n, features) for w, n in zip(widths[:-1], blocks[:-1], strict=True))
        self.tail = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def of_real_images(self) -> "UNet":
        """A network of real images that starts from this one of complex images: its real channel is kept."""
        if not self.is_complex:
            raise ValueError("expected a network of complex images, got one of real images: it is one already")
        real = UNet(**self.arguments | {"is_complex": False})  # type: ignore[arg-type]
        count = self.fold**2
        state = {key: value.clone() for key, value in self.state_dict().items()}
        state["head.weight"] = state["head.weight"][:, :count]
        state |= {key: state[key][:count] for key in ("tail.weight", "tail.bias")}
        real.load_state_dict(state)
        return real

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """(..., y, x) images, and a noise label for each leading index (or one for all), to images of that shape."""
        *batch, height, width = x.shape
        channels = torch.view_as_real(x).movedim(-1, -3) if self.is_complex else x[..., None, :, :]
        channels = channels.reshape(-1, *channels.shape[-3:])
        labels = noise_label.expand(batch).reshape(-1)
        padding = (0, -width % self.stride, 0, -height % self.stride)
        mode = "reflect" if padding[1] < width and padding[3] < height else "replicate"  # reflection needs the room
        out = self.real(F.pad(channels, padding, mode=mode), labels)[..., :height, :width].to(channels.dtype)
        out = out.reshape(*batch, *out.shape[1:])
        return torch.view_as_complex(out.movedim(-3, -1).contiguous()) if self.is_complex else out[..., 0, :, :]

    def real(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """The real-valued part, (batch, channel, y, x) to the same shape; sizes are multiples of the stride."""
        embedding = self.embedding(noise_label)
        h = self.head(F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            h = level(h, embedding)
            skips.append(h)
            h = shrink(h)
        h = self.bottom(h, embedding)
        for level, grow, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips), strict=True):
            h = level(F.pixel_shuffle(grow(h), 2) + skip, embedding)
        return F.pixel_shuffle(self.tail(F.silu(h)), self.fold)
