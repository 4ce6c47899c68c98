"""What low precision does to numbers: rounding, stochastic rounding, and the dynamic loss scale.

The rounding functions return the dtype they were given: a float32 tensor that holds only values that the
short format has, so that one line of a lesson shows what a whole model in that format would see.
"""

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def round_to_fp16(x: Tensor) -> Tensor:
    """Round to the nearest value that float16 has (ties to even): 65520 and above become inf, 1e-8 becomes 0.

    Its gradient is rounded in the same way: it passes through float16 too.

    Shapes: x any -> same
    Raises: ValueError if x is not floating point
    Lesson: 10-precision-and-memory

    >>> round_to_fp16(torch.tensor([65519.0, 65520.0, 1e-8]))
    tensor([65504.,    inf,     0.])
    """
    return _floating("round_to_fp16", x).to(torch.float16).to(x.dtype)


def round_to_bf16(x: Tensor) -> Tensor:
    """Round to the nearest value that bfloat16 has (ties to even): float32's range with 8 significant bits.

    Shapes: x any -> same
    Raises: ValueError if x is not floating point
    Lesson: 10-precision-and-memory

    >>> round_to_bf16(torch.tensor([1.001, 1.005, 70000.0]))
    tensor([1.0000e+00, 1.0078e+00, 7.0144e+04])
    """
    return _floating("round_to_bf16", x).to(torch.bfloat16).to(x.dtype)


def stochastic_round_to_bf16(
    x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Round to one of the two bfloat16 neighbours, the nearer the likelier, so that the MEAN is x.

    bfloat16 is the upper half of float32's bits: add a random number to the lower half, then drop it. Pass
    `noise` to own the randomness (under vmap, say), or a generator. No gradient passes.

    Shapes: x any float32, noise the same shape in [0, 1) -> float32
    Raises: ValueError if x is not float32 or noise is of another shape
    Lesson: 10-precision-and-memory

    >>> x = torch.full((4,), 1.0 + 2**-9)          # a quarter of the way from 1 to 1 + 2**-7
    >>> stochastic_round_to_bf16(x, noise=torch.tensor([0.0, 0.5, 0.74, 0.75]))
    tensor([1.0000, 1.0000, 1.0000, 1.0078])
    """
    if x.dtype != torch.float32:
        raise ValueError(f"stochastic_round_to_bf16: x must be float32; got {x.dtype!r}. Try x.float().")
    if noise is None:
        noise = torch.rand(x.shape, generator=generator, device=x.device)
    if noise.shape != x.shape:
        raise ValueError(
            f"stochastic_round_to_bf16: noise must be of x's shape {tuple(x.shape)}; got "
            f"{tuple(noise.shape)!r}"
        )
    # A carry may run into the exponent: that is the next power of two, which is right.
    bits = x.detach().view(torch.int32) + (noise * 65536).to(torch.int32)
    rounded = (bits & -65536).view(torch.float32)
    # NaN carries its mark in the lower bits too: left to the addition it could turn into inf.
    return torch.where(torch.isfinite(x), rounded, x.detach())


def loss_scale_state(scale: float = 65536.0, device: torch.device | str | None = None) -> State:
    """Make the state of `update_loss_scale`; multiply the loss by state["scale"], divide the gradients by it.

    Raises: ValueError if scale is not positive and finite
    Lesson: 10-precision-and-memory

    >>> loss_scale_state()["scale"]
    tensor(65536.)
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"loss_scale_state: scale must be positive and finite; got {scale!r}")
    return {
        "scale": torch.full((), float(scale), device=device),
        "good_steps": torch.zeros((), device=device),
    }


def update_loss_scale(
    state: State,
    finite: bool | Tensor,
    *,
    growth: float | Tensor = 2.0,
    backoff: float | Tensor = 0.5,
    interval: int | Tensor = 2000,
) -> State:
    """Halve the scale after a non-finite gradient, double it after `interval` finite ones in a row.

    "Overflow, skipping step" is the rule at work: skip the update when not finite, and call this either way.

    Shapes: finite () bool, True = every gradient is finite -> state
    Raises: ValueError if growth <= 1, backoff outside (0, 1) or interval < 1
    Source: the rule of torch.amp.GradScaler; Micikevicius et al. 2018, arXiv:1710.03740
    Lesson: 10-precision-and-memory

    >>> update_loss_scale(loss_scale_state(1024.0), False)["scale"]
    tensor(512.)
    """
    for name, number, fits, constraint in (
        ("growth", growth, lambda x: x > 1, "above 1"),
        ("backoff", backoff, lambda x: 0 < x < 1, "in (0, 1)"),
        ("interval", interval, lambda x: x >= 1, "at least 1"),
    ):
        if not isinstance(number, Tensor) and not fits(number):
            raise ValueError(f"update_loss_scale: {name} must be {constraint}; got {number!r}")
    scale = state["scale"]
    finite = torch.as_tensor(finite, device=scale.device)
    good_steps = torch.where(finite, state["good_steps"] + 1, 0.0)
    due = good_steps >= interval
    grown = scale * growth
    # A scale of inf would have no way back: halved it stays inf.
    grown = torch.where(due & torch.isfinite(grown), grown, scale)
    return {
        "scale": torch.where(finite, grown, scale * backoff),
        "good_steps": torch.where(due, 0.0, good_steps),
    }


def _floating(function: str, x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"{function}: x must be floating point; got {x.dtype!r}")
    return x
