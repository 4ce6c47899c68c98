"""A plain recurrent language model, tanh and one matrix: what the LSTM's gates were invented against."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stabviz.models.sizes import check_sizes
from stabviz.ops import embedding, linear


@dataclass(frozen=True, slots=True, kw_only=True)
class RnnConfig:
    """The structure of a plain recurrent language model."""

    vocab_size: int
    """Number of token ids, V."""
    width: int = 32
    """Width of the embedding and of the hidden state, D."""
    layers: int = 1
    """Recurrent layers, one on top of the other."""
    detach_state: bool = False
    """True: no gradient travels back through the state from place to place; the forward pass is the same."""

    def __post_init__(self):
        check_sizes(self)


def init_rnn(
    config: RnnConfig, generator: Generator, init_scale: float = 1.0, recurrent_scale: float = 1.0
) -> dict[str, Tensor]:
    """Draw the parameters: recurrent weights of standard deviation init_scale recurrent_scale / sqrt(width).

    Such a matrix has a spectral radius of about init_scale recurrent_scale: above 1, tanh alone bounds the
    state, and what the gradient is multiplied by from place to place is bounded by nothing.

    Shapes: -> {name: float32 tensor}; "layer0.recurrent.weight" (D, D)
    Raises: ValueError if init_scale or recurrent_scale <= 0
    """
    for name, scale in (("init_scale", init_scale), ("recurrent_scale", recurrent_scale)):
        if not scale > 0:
            raise ValueError(f"init_rnn: {name} must be > 0; got {scale!r}")
    D, V = config.width, config.vocab_size
    params = {"embedding.token": torch.randn(V, D, generator=generator) * init_scale}
    for layer in range(config.layers):
        for name, scale in (("input", init_scale), ("recurrent", init_scale * recurrent_scale)):
            params[f"layer{layer}.{name}.weight"] = torch.randn(D, D, generator=generator) * scale / D**0.5
        params[f"layer{layer}.input.bias"] = torch.zeros(D)
    params["head.weight"] = torch.randn(V, D, generator=generator) * init_scale / D**0.5
    return params


def rnn_logits(
    params: Mapping[str, Tensor], tokens_BL: Tensor, config: RnnConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run h = tanh(W_in x + b + W_rec h) from a zero state; the logits at place l predict the token after it.

    Shapes: tokens_BL (B, L) integer -> logits_BLV (B, L, V), {}
    Raises: torch's own IndexError for a token outside 0..V-1
    Source: Elman 1990 (Finding Structure in Time), as torch.nn.RNN computes it
    """
    states_BLD = embedding(params["embedding.token"], tokens_BL)
    for layer in range(config.layers):
        drive_BLD = linear(
            states_BLD, params[f"layer{layer}.input.weight"], params[f"layer{layer}.input.bias"]
        )
        hidden_BD, outputs = torch.zeros_like(states_BLD[:, 0]), []
        for drive_BD in drive_BLD.unbind(1):
            if config.detach_state:
                hidden_BD = hidden_BD.detach()
            hidden_BD = torch.tanh(drive_BD + linear(hidden_BD, params[f"layer{layer}.recurrent.weight"]))
            outputs.append(hidden_BD)
        states_BLD = torch.stack(outputs, dim=1)
    return linear(states_BLD, params["head.weight"]), {}
