"""Priors on disk: weights (safetensors) beside a model card (JSON) that says what they are and where they come from."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from priors.denoiser import EDM
from priors.networks import UNet
from priors.supervised import PostProcessing, Supervised, VarNet

WEIGHTS = Path(__file__).parent / "weights"
NETWORKS: dict[str, type[UNet] | type[Supervised]] = {
    "UNet": UNet,  # of a denoiser
    "PostProcessing": PostProcessing,
    "VarNet": VarNet,
}


def names() -> list[str]:
    """The embedded priors."""
    return sorted(path.stem for path in WEIGHTS.glob("*.json"))


def save(
    prior: EDM | Supervised,
    path: str | Path,
    *,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a prior as `path`.safetensors with its card, `path`.json.

    Parameters
    ----------
    prior : a preconditioned network of priors.networks, or a supervised one.
    path : without an extension, or with either of the two.
    card : what a reader should know: intensity (the convention of the images), data (with licences), recipe, and what
        was measured. The network, a denoiser's noise range and the checksum are added.
    dtype : of the weights in the file; loading always gives float32.

    Returns
    -------
    The path of the card.
    """
    from safetensors.torch import save as serialize

    network = prior.network if isinstance(prior, EDM) else prior
    noise = {k: getattr(prior, k) for k in ("sigma_min", "sigma_max", "sigma_data")} if isinstance(prior, EDM) else None
    if type(network).__name__ not in NETWORKS:
        raise ValueError(f"expected one of the networks {sorted(NETWORKS)}, got {type(network).__name__}")
    content = serialize({k: v.detach().cpu().to(dtype).contiguous() for k, v in network.state_dict().items()})
    weights, described = pair(Path(path))
    full = {
        "name": weights.stem,
        "network": {"name": type(network).__name__, "arguments": network.arguments},
        **({} if noise is None else {"noise": noise}),
        "ndim": prior.ndim,
        "is_complex": prior.is_complex,
        "parameters": sum(p.numel() for p in network.parameters()),
        "precision": str(dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(content).hexdigest(),
        **card,
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_whole(weights, content)
    write_whole(described, (json.dumps(full, indent=2) + "\n").encode())
    return described


def load(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> EDM | Supervised:
    """A prior by its name among the embedded ones, or by the path of its card or weights.

    Returns
    -------
    The denoiser or supervised network in float32, in evaluation mode, its weights needing no gradient, with its card as
    attribute `card`.

    Raises
    ------
    FileNotFoundError
        If there is no prior of that name, or one of its two files is missing.
    ValueError
        If the card is not one, or the weights are not those of the card (checksum) or not of the network that it names.
    """
    from safetensors.torch import load as deserialize

    weights, described = find(name_or_path)
    card = read_card(described)
    content = weights.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != card["sha256"]:
        raise ValueError(
            f"checksum of {weights} is {found[:12]}..., its card says {card['sha256'][:12]}...: the file is damaged or "
            "belongs to another card; fetch both again"
        )
    network = NETWORKS[card["network"]["name"]](**card["network"]["arguments"])
    state = {key: value.float() for key, value in deserialize(content).items()}
    check_weights(network.state_dict(), state, weights)
    network.load_state_dict(state)
    prior = network if isinstance(network, Supervised) else EDM(network, **card["noise"])
    prior.card = card
    return prior.to(device).eval().requires_grad_(False)


def read_card(path: Path) -> dict[str, Any]:
    """The model card, which must say what loading needs."""
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        missing = [key for key in ("network", "sha256") if key not in card]
        network = card.get("network", {}).get("name", "UNet")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected a model card, got a file that is no JSON object ({error})") from error
    if network not in NETWORKS:
        raise ValueError(f"{path} names the network {network!r}; known are {sorted(NETWORKS)}")
    if not issubclass(NETWORKS[network], Supervised) and "noise" not in card:
        missing.append("noise")
    if missing:
        raise ValueError(
            f"{path}: expected a model card, got one without {', '.join(missing)}; write it by priors.save"
        )
    return card


def check_weights(expected: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor], path: Path) -> None:
    wrong = sorted(expected.keys() ^ got.keys())
    wrong += sorted(k for k in expected.keys() & got.keys() if expected[k].shape != got[k].shape)
    if wrong:
        raise ValueError(
            f"{path} holds the weights of another network: {len(wrong)} of {len(expected)} tensors do not fit, "
            f"{wrong[0]!r} among them; correct the arguments in its card or give the weights that belong to it"
        )


def find(name_or_path: str | Path) -> tuple[Path, Path]:
    """The weights and the card, both there."""
    path = Path(name_or_path)
    if path.suffix not in (".json", ".safetensors"):
        embedded = WEIGHTS / f"{path}.json"
        path = embedded if embedded.exists() or (WEIGHTS / f"{path}.safetensors").exists() else path
    weights, card = pair(path)
    if not card.exists() and not weights.exists():
        raise FileNotFoundError(
            f"unknown prior {str(name_or_path)!r}: embedded are {', '.join(names()) or 'none'}; or give the path of a "
            "card (.json) with its weights (.safetensors) beside it"
        )
    if not weights.exists():
        raise FileNotFoundError(f"the card {card} has no weights: put {weights.name} beside it")
    if not card.exists():
        raise FileNotFoundError(f"the weights {weights} have no card: put {card.name} beside them")
    return weights, card


def pair(path: Path) -> tuple[Path, Path]:
    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def write_whole(path: Path, content: bytes) -> None:
    """Written beside and renamed, so that a kill leaves no half file."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
