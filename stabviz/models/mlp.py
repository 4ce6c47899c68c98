"""A multi-layer perceptron with tanh: smooth, small, and enough to see the edge of stability."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stabviz.models.sizes import check_sizes
from stabviz.ops import linear


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """The structure of a perceptron: `layers` linear maps with tanh between them."""

    inputs: int
    """Width of the input."""
    outputs: int = 1
    """Width of the output."""
    width: int = 32
    """Width of the hidden layers."""
    layers: int = 3
    """Number of linear maps."""

    def __post_init__(self):
        check_sizes(self)


def init_mlp(config: MlpConfig, generator: Generator, init_scale: float = 1.0) -> dict[str, Tensor]:
    """Draw weights of standard deviation init_scale / sqrt(inputs) and zero biases.

    Shapes: -> {"layer0.weight": (out, in), "layer0.bias": (out,), ...}
    Raises: ValueError if init_scale <= 0
    """
    if not init_scale > 0:
        raise ValueError(f"init_mlp: init_scale must be > 0; got {init_scale!r}")
    widths = [config.inputs] + [config.width] * (config.layers - 1) + [config.outputs]
    params = {}
    for layer, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        params[f"layer{layer}.weight"] = (
            torch.randn(outputs, inputs, generator=generator) * init_scale / inputs**0.5
        )
        params[f"layer{layer}.bias"] = torch.zeros(outputs)
    return params


def mlp_outputs(params: Mapping[str, Tensor], x: Tensor, config: MlpConfig) -> Tensor:
    """Apply the perceptron to the last axis.

    Shapes: x (..., inputs) -> (..., outputs)
    Lesson: 06-infonce
    """
    for layer in range(config.layers):
        x = linear(
            x if layer == 0 else torch.tanh(x), params[f"layer{layer}.weight"], params[f"layer{layer}.bias"]
        )
    return x
