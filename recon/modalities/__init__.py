"""What a run asks of the physics, in one file for each: MRI, CT. A record says by its type which one it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, cast

from torch import Tensor

from priors.denoiser import Denoiser
from priors.library import names

from ..ct import CTScan, PreparedCT
from ..datafit import Withheld
from ..errors import InputError
from ..likelihood import Gaussian, Randn
from ..methods import method_named, own_prior, scan_of
from ..mri import MRIScan, PreparedMRI
from ..posterior import Coverage
from ..settings import Settings
from . import ct, mri

Scan = MRIScan | CTScan
Prepared = PreparedMRI | PreparedCT


class Modality(Protocol):
    """What a module of this package offers. Scans, prepared data, noise and parts are records of its own.

    A `part` is what is kept of a scan that is undersampled on request, a mask for example; None is all of it.

    Attributes
    ----------
    NAME : for the user.
    SETTINGS : those of `recon.settings.Settings` that mean something to this modality alone.
    PRIOR : name of the prior that is taken if none is asked for.
    UNIT : of images.
    COMPLEX : whether images are complex.
    DATA : the field of a scan that is read slice by slice.
    FALLBACK : the classical method to turn to where the prior does not suit the data.
    METHODS, PARTS : what `recon benchmark` compares, and undersamples by, if nothing else is asked for.
    """

    NAME: str
    SETTINGS: tuple[str, ...]
    PRIOR: str
    UNIT: str
    COMPLEX: bool
    DATA: str
    FALLBACK: str
    METHODS: tuple[str, ...]
    PARTS: tuple[str, ...]

    def read(self, scan: Any, index: int, device: str) -> Any:
        """One slice, in memory and on the device."""
        ...

    def adjusted(self, scan: Any, settings: Settings) -> Any:
        """The scan with its geometry as it was asked for, where the file's is not meant.

        Raises
        ------
        InputError
            If that cannot be.
        """
        ...

    def missing(self, scan: Any) -> str:
        """Why the image of all the data cannot be made of the scan, "" if it can."""
        ...

    def undersampling(self, scan: Any, kind: str, acceleration: float, options: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `reconstruct` that leave one part in `acceleration` of the data, by a kind of undersampling.

        Raises
        ------
        InputError
            If there is no such kind.
        """
        ...

    def choose_part(self, scan: Any, settings: Settings) -> Any:
        """The part that was asked for, None if all."""
        ...

    def undersample(self, scan: Any, part: Any, *, stream: tuple[int, ...]) -> Any:
        """The scan of that part; `stream` names random numbers, where some are drawn."""
        ...

    def describe(self, scan: Any, part: Any) -> str:
        """What is given of all that could be measured, for the user."""
        ...

    def acceleration(self, scan: Any, part: Any) -> float:
        """All that could be measured over what is given."""
        ...

    def info(self, scan: Any) -> dict[str, str]:
        """What `recon info` says."""
        ...

    def noise(self, scan: Any) -> Any:
        """Of the middle slice."""
        ...

    def prepare(self, scan: Any, settings: Settings, noise: Any) -> Any:
        """Ready for a method."""
        ...

    def likelihood(self, prepared: Any) -> Gaussian:
        """Of images whose bright parts are about 1."""
        ...

    def denoiser(self, denoiser: Denoiser, card: Mapping[str, Any], prepared: Any) -> Denoiser:
        """A prior with its card, told what is 1 in these images if it was trained on images in a unit."""
        ...

    def preview_name(self, scan: Any) -> str:
        """What `preview` is called."""
        ...

    def preview(self, prepared: Any) -> Tensor:
        """(*spatial) real; what a slice shows without a model."""
        ...

    def reference(self, scan: Any, part: Any, settings: Settings, noise: Any) -> Tensor | None:
        """(*spatial) real; the image of all the data if a part was given, else that of the file, if any."""
        ...

    def describe_reference(self, scan: Any, part: Any) -> str:
        """What `reference` is, for the record."""
        ...

    def water(self, scan: Any) -> float | None:
        """Attenuation of water in 1/mm, where images have HU."""
        ...

    def coverage(
        self, x: Tensor, prepared: Any, given: Any, scan: Any, part: Any, settings: Settings, noise: Any, rng: Randn
    ) -> Coverage | None:
        """Whether samples (sample, *domain) given a part hold the image of all the data; None if that is not there.

        Raises
        ------
        InputError
            If it cannot be said.
        """
        ...

    def withhold(self, prepared: Any, *, seed: int, fraction: float) -> tuple[Any, Gaussian, Withheld]:
        """The data without a fraction of them, the likelihood of that fraction, and where it lies.

        Raises
        ------
        InputError
            If too little was measured.
        """
        ...


_MODALITIES: dict[type, ModuleType] = {MRIScan: mri, PreparedMRI: mri, CTScan: ct, PreparedCT: ct}
SCANS = (MRIScan, CTScan)


def modality_of(record: Scan | Prepared) -> Modality:
    """The modality of a scan, or of what was prepared of one."""
    return cast(Modality, _MODALITIES[type(record)])


def check_settings(settings: Settings, scan: Scan) -> None:
    """Raise InputError if something was asked that only scans of another modality have, the method among it."""
    own = modality_of(scan)
    needed = scan_of(method_named(settings.method))
    for record, module in _MODALITIES.items():
        if record.__name__ == needed and module is not own:
            raise InputError(
                f"{settings.method}: is for {module.NAME} scans, and {scan.name} is one of {own.NAME}; take "
                f"{' or '.join(own.METHODS[:3])}, say"
            )
    shipped = own_prior(settings.method, own.PRIOR)
    if settings.prior is None and shipped != own.PRIOR and shipped not in names():
        raise InputError(
            f"{settings.method}: no network of it comes with the package for {own.NAME} scans; choose another"
        )
    for other in _all():
        for name in set(other.SETTINGS) - set(own.SETTINGS):
            if getattr(settings, name) != getattr(Settings(), name):
                raise InputError(
                    f"{name}: is for {other.NAME} scans, and {scan.name} is one of {own.NAME}; leave it out"
                    + (f", or see {', '.join(own.SETTINGS)}" if own.SETTINGS else "")
                )


def check_images(prior: object, scan: Scan) -> None:
    """Raise InputError if a prior is for complex images and those of the scan are real."""
    own = modality_of(scan)
    if getattr(prior, "is_complex", False) and not own.COMPLEX:
        raise InputError(
            f"prior: expected one of real images for {scan.name}, a scan of {own.NAME}, got one of complex images; "
            f"take {own.PRIOR}, say"
        )


def _all() -> Sequence[Modality]:
    return [cast(Modality, module) for module in dict.fromkeys(_MODALITIES.values())]
