"""What a user asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from operators.masks import mask_function

from .errors import InputError
from .methods import check_options


@dataclass(frozen=True)
class Settings:
    """Everything that was asked of a run. With the file and the versions it determines the result.

    Parameters
    ----------
    method : a name in METHODS; `options` are its keywords.
    mask : a name in MASKS to undersample with, None to take the data as they are; `acceleration` is its own.
    slices : first and last (exclusive), None for all.
    samples, prior, steps : for methods that draw samples; steps of the noise schedule, None for the method's own.
    seed : of the mask and of the samples.
    coils : virtual coils to compress to, None for all.
    sets : ESPIRiT map sets; 2 where the field of view is smaller than the object.
    device : where to compute, "cpu" or "cuda".
    check : for methods that draw samples: whether to look if the prior suits the data. It costs 4 samples of one slice.
    """

    method: str = "l1-wavelet"
    options: dict[str, Any] = field(default_factory=dict)
    mask: str | None = None
    acceleration: float = 4.0
    slices: tuple[int, int] | None = None
    samples: int = 8
    prior: str = "brain"
    steps: int | None = None
    seed: int = 0
    coils: int | None = None
    sets: int = 1
    device: str = "cpu"
    check: bool = True

    def validate(self) -> None:
        """Raise InputError for what can be refused before any data are read."""
        check_options(self.method, self.options)
        for name in ("samples", "steps", "coils", "sets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        if self.seed < 0:
            raise InputError(f"seed: expected 0 or more, got {self.seed}")
        try:
            if self.mask is not None:
                mask_function(self.mask)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {self.device!r} cannot be used here ({error}); use cpu") from error
        except ValueError as error:
            raise InputError(str(error)) from error
