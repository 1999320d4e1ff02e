"""What a user asks for."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from operators.masks import mask_function

from .errors import InputError
from .methods import check_options, has_levels, inputs_of, method_named, own_prior, takes_prior
from .records import tuned_options


@dataclass(frozen=True)
class Settings:
    """Everything that was asked of a run. With the file and the versions it determines the result.

    Parameters
    ----------
    method : a name in METHODS; `options` are its keywords.
    mask : a name in MASKS to undersample with, None to take the data as they are.
    acceleration, mask_options : of the mask (4 if None); its keywords, such as calibration or offset.
    slices : first and last (exclusive), None for all.
    samples : for methods that draw samples; 8 if None.
    prior : for methods that use one; if None "brain", or for a network's method its own: "brain-varnet".
    steps : of the noise schedule, for methods that have one; None for the method's own.
    seed : of the mask and of the samples.
    coils : virtual coils to compress to, None for all.
    sets : ESPIRiT map sets; 2 where the field of view is smaller than the object.
    views : of CT, how many to keep, evenly of all; None for all.
    angular_range : of CT, first and last angle in degrees of the views to keep; None for all.
    dose : of CT, the fraction to lower it to, by simulation; None for all of it.
    rings : of CT, an odd number of bins: stripes of up to half as many are taken out; None to leave them.
    rotation_centre : of CT by a parallel beam, the bin (from 0) that the axis projects onto, or "find"; None for what
        the file says.
    device : where to compute, "cpu" or "cuda".
    precision : in which the prior's network computes, "float32" or "bf16" (see priors.bf16).
    check : for methods that draw samples with maps: whether to look if the prior suits the data, which costs 4
        samples of one slice.
    tuned : file that `recon tune` wrote; its options are taken where `options` says nothing.
    calibrated : file that `recon calibrate` wrote; its factor is applied to std and intervals.
    """

    method: str = "l1-wavelet"
    options: dict[str, Any] = field(default_factory=dict)
    mask: str | None = None
    acceleration: float | None = None
    mask_options: dict[str, Any] = field(default_factory=dict)
    slices: tuple[int, int] | None = None
    samples: int | None = None
    prior: str | None = None
    steps: int | None = None
    seed: int = 0
    coils: int | None = None
    sets: int = 1
    views: int | None = None
    angular_range: tuple[float, float] | None = None
    dose: float | None = None
    rings: int | None = None
    rotation_centre: float | str | None = None
    device: str = "cpu"
    precision: str = "float32"
    check: bool = True
    tuned: str | None = None
    calibrated: str | None = None

    def resolved(self, *, prior: str = "brain") -> Settings:
        """These settings with the defaults of mask and method filled in; what has no bearing on them is None.

        Parameters
        ----------
        prior : that methods with a denoiser take where none is asked for: it depends on the modality.

        Raises
        ------
        InputError
            For what can be refused before any data are read, arguments without effect among it.
        """
        options = {} if self.tuned is None else tuned_options(self.tuned, method=self.method)
        options |= self.options
        check_options(self.method, options)
        self._check_ranges()
        method = method_named(self.method)
        draws, has_prior = "rng" in inputs_of(method), takes_prior(method)
        for name, used, why in [
            ("samples", draws, "draws no samples"),
            ("calibrated", draws, "draws no samples"),
            ("prior", has_prior, "uses no prior"),
            ("steps", has_levels(method), "has no noise levels"),
        ]:
            if getattr(self, name) is not None and not used:
                raise InputError(f"{name}: {self.method} {why}; leave it out, or use dds, say")
        if self.precision != "float32" and not has_prior:
            raise InputError(f"precision: {self.method} has no network; leave it out")
        if self.calibrated is not None and self.samples == 1:
            raise InputError("calibrated: expected at least 2 samples, got 1: there is no interval to scale")
        if self.mask is None and (self.acceleration is not None or self.mask_options):
            raise InputError(
                "acceleration: expected a mask to undersample with, got none; give mask='random', say, or for CT "
                "views, angular_range or dose in its place"
            )
        if self.mask is not None:
            self._check_mask()
        return replace(
            self,
            options=options,
            acceleration=4.0 if self.mask is not None and self.acceleration is None else self.acceleration,
            samples=8 if draws and self.samples is None else self.samples,
            prior=own_prior(self.method, prior) if has_prior and self.prior is None else self.prior,
        )

    def _check_ranges(self) -> None:
        for name in ("samples", "steps", "coils", "sets", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        if self.dose is not None and not 0 < self.dose <= 1:
            raise InputError(f"dose: expected a fraction above 0 and at most 1, got {self.dose:g}")
        if self.rings is not None and (self.rings < 3 or self.rings % 2 == 0):
            raise InputError(f"rings: expected an odd number of bins, at least 3, got {self.rings}")
        if isinstance(self.rotation_centre, str) and self.rotation_centre != "find":
            raise InputError(f"rotation_centre: expected a bin, such as 245.1, or find, got {self.rotation_centre!r}")
        if self.angular_range is not None and not 0 < self.angular_range[1] - self.angular_range[0] <= 360:
            first, last = self.angular_range
            raise InputError(f"angular_range: expected FIRST < LAST degrees within one turn, got {first:g} to {last:g}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        if self.precision not in ("float32", "bf16"):
            raise InputError(f"precision: expected float32 or bf16, got {self.precision!r}")
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", self.device):
            raise InputError(f"device: expected cpu, cuda, cuda:N or mps, got {self.device!r}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {self.device!r} cannot be used here ({error}); use cpu") from error

    def _check_mask(self) -> None:
        try:
            known = inspect.signature(mask_function(str(self.mask))).parameters
        except ValueError as error:
            raise InputError(str(error)) from error
        unknown = sorted(set(self.mask_options) - (set(known) - {"shape", "acceleration", "seed", "axis", "axes"}))
        if unknown:
            options = ", ".join(name for name in known if name not in ("shape", "acceleration", "seed", "axis", "axes"))
            raise InputError(f"mask {self.mask}: unknown option {', '.join(unknown)}; expected among: {options}")
        for option, value in self.mask_options.items():
            kind = str(known[option].annotation).removesuffix(" | None")  # int, float or bool
            fits = {"int": int, "float": int | float, "bool": bool}[kind]
            unset = value is None and known[option].default is None
            if not unset and (not isinstance(value, fits) or isinstance(value, bool) != (kind == "bool")):
                raise InputError(f"mask {self.mask}: option {option} expects {kind}, got {value!r}")
