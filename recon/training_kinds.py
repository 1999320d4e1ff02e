"""What training images show, and the network and the noise that suit a denoiser of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recon.training_ct import WATER, HeadImages
from recon.training_discs import PLASTIC, DiscImages
from recon.training_images import TrainingImages, Volume

if TYPE_CHECKING:
    from priors.train import Examples


@dataclass(frozen=True)
class Kind:
    """A kind of training images.

    Attributes
    ----------
    images : from volumes and a seed; the volumes are those of a folder, or none if the images are synthetic.
    intensity : the convention of the images, for the card.
    is_complex, is_synthetic : whether they are complex; whether they need no folder.
    scale : 1/mm of attenuation that is 1 in the images; None if images have no unit.
    network : arguments of priors.networks.UNet.
    batch : arguments of priors.denoising.DenoisingConfig: patches and noise levels.
    """

    images: "Callable[[Sequence[Volume], int], Examples]"
    intensity: str
    is_complex: bool = True
    is_synthetic: bool = False
    scale: float | None = None
    network: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """For the card."""
        return {"intensity": self.intensity} | ({} if self.scale is None else {"scale_per_mm": self.scale})


KINDS = {
    "mri": Kind(
        lambda volumes, seed: TrainingImages(volumes, seed=seed),
        "complex images; the 99th percentile of the magnitude, over the image, is near 1 (0.7 to 1.45 in training)",
    ),
    "head-ct": Kind(
        lambda volumes, seed: HeadImages(volumes, seed=seed),
        f"real images, attenuation over {WATER:g}/mm: water is near 1 (0.95 to 1.05 in training), air 0",
        is_complex=False,
        scale=WATER,
        network={"widths": (48, 96, 144), "blocks": (1, 2, 3), "features": 64},
        batch={
            "images_per_step": 1,
            "crops_per_image": 4,
            "warmup": 100,
            "sigma_median": 0.08,
            "sigma_spread": 1.3,
            "sigma_data": 0.6,
        },
    ),
    "discs-ct": Kind(
        lambda _, seed: DiscImages(seed=seed),
        f"real images, attenuation over {PLASTIC:g}/mm: the material is near 1 (0.7 to 1.4 in training), air 0",
        is_complex=False,
        is_synthetic=True,
        scale=PLASTIC,
        network={"widths": (32, 64, 96), "features": 64},
        batch={
            "images_per_step": 4,
            "crops_per_image": 1,
            "warmup": 100,
            "sigma_median": 0.15,
            "sigma_spread": 1.3,
            "sigma_data": 0.5,
        },
    ),
}
