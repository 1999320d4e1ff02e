"""Ray kernels: Joseph's projector and its adjoint as torch operators, each the derivative of the other.

Both take the lines as two tensors that `operators.ct` makes once for a geometry and a grid:

rays : (3, views, bins) of the dtype of the data: start, step, length. In row k of the image the ray passes pixel
    start + step k, |step| <= 1; length is what lies between two rows, in mm.
runs : (runs, 3) int32: first ray (counted over views and bins), count, axis. Neighbouring rays of one view that meet
    the grid and are all closest to y (axis 0: rows are those of the image) or to x (axis 1: rows are its columns), in
    the order in which they meet a row. Rays in no run miss the grid.

On the processor they run in compiled C++ (cpu.cpp), on a GPU in CUDA (cuda.cu), and anywhere in plain torch
(reference.py). They are not differentiable by the geometry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import libraries, reference

# torch.library.custom_op would be shorter, but loads torch's compiler at the first call, which takes a second.
_TAGS = (torch.Tag.pt2_compliant_tag,)
torch.library.define("tweedie::joseph", "(Tensor images, Tensor rays, Tensor runs) -> Tensor", tags=_TAGS)
torch.library.define(
    "tweedie::joseph_adjoint",
    "(Tensor sinograms, Tensor rays, Tensor runs, SymInt height, SymInt width) -> Tensor",
    tags=_TAGS,
)


def joseph(images: Tensor, rays: Tensor, runs: Tensor) -> Tensor:
    """Line integrals (batch, views, bins) of images (batch, y, x)."""
    result: Tensor = torch.ops.tweedie.joseph.default(images, rays, runs)
    return result


def joseph_adjoint(sinograms: Tensor, rays: Tensor, runs: Tensor, height: int, width: int) -> Tensor:
    """The adjoint: images (batch, y, x) from sinograms (batch, views, bins)."""
    result: Tensor = torch.ops.tweedie.joseph_adjoint.default(sinograms, rays, runs, height, width)
    return result


@torch.library.impl("tweedie::joseph", "default")
def _forward(images: Tensor, rays: Tensor, runs: Tensor) -> Tensor:
    _check(images, rays, runs, "images (batch, y, x)")
    compiled = libraries.load(images.device.type)
    if compiled is None:
        return reference.forward(images, rays, runs)
    result = images.new_zeros(len(images), *rays.shape[1:])
    compiled.forward(images.contiguous(), result, rays, runs)
    return result


@torch.library.impl("tweedie::joseph_adjoint", "default")
def _adjoint(sinograms: Tensor, rays: Tensor, runs: Tensor, height: int, width: int) -> Tensor:
    _check(sinograms, rays, runs, "sinograms (batch, views, bins)")
    if sinograms.shape[1:] != rays.shape[1:]:
        raise ValueError(f"sinograms: expected (batch, *{tuple(rays.shape[1:])}), got {tuple(sinograms.shape)}")
    compiled = libraries.load(sinograms.device.type)
    if compiled is None:
        return reference.adjoint(sinograms, rays, runs, height, width)
    result = sinograms.new_empty(len(sinograms), height, width)
    compiled.adjoint(sinograms.contiguous(), result, rays, runs)
    return result


def _check(x: Tensor, rays: Tensor, runs: Tensor, name: str) -> None:
    """What the compiled kernels take on trust."""
    if x.ndim != 3 or x.dtype != rays.dtype or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: expected 3 axes and the dtype of rays, float32 or float64, got {x.dtype} of shape "
            f"{tuple(x.shape)} and rays of {rays.dtype}"
        )
    if not x.device == rays.device == runs.device:
        raise ValueError(f"{name} on {x.device}, rays on {rays.device}, runs on {runs.device}; move them to one device")
    if runs.dtype != torch.int32 or not (rays.is_contiguous() and runs.is_contiguous()):
        raise ValueError(f"expected contiguous rays and contiguous runs of int32, got runs of {runs.dtype}")


@torch.library.register_fake("tweedie::joseph")
def _(images: Tensor, rays: Tensor, runs: Tensor) -> Tensor:
    return images.new_empty(images.shape[0], *rays.shape[1:])


@torch.library.register_fake("tweedie::joseph_adjoint")
def _(sinograms: Tensor, rays: Tensor, runs: Tensor, height: int, width: int) -> Tensor:
    return sinograms.new_empty(sinograms.shape[0], height, width)


def _remember_forward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    images, *geometry = inputs
    ctx.save_for_backward(*geometry)
    ctx.size = images.shape[1:]


def _remember_adjoint(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _derivative(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return joseph_adjoint(gradient, *ctx.saved_tensors, *ctx.size), None, None


def _derivative_of_adjoint(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    return joseph(gradient, *ctx.saved_tensors), None, None, None, None


torch.library.register_autograd("tweedie::joseph", _derivative, setup_context=_remember_forward)
torch.library.register_autograd("tweedie::joseph_adjoint", _derivative_of_adjoint, setup_context=_remember_adjoint)
