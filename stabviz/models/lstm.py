"""An LSTM language model: the classical place to see gradients explode along time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stabviz.models.sizes import check_sizes
from stabviz.ops import embedding, linear


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmConfig:
    """The structure of an LSTM language model."""

    vocab_size: int
    """Number of token ids, V."""
    width: int = 32
    """Width of the embedding and of the hidden state, D."""
    layers: int = 1
    """LSTM layers, one on top of the other."""
    detach_state: bool = False
    """True: no gradient travels back through the state from place to place; the forward pass is the same."""

    def __post_init__(self):
        check_sizes(self)


def init_lstm(
    config: LstmConfig, generator: Generator, init_scale: float = 1.0, recurrent_scale: float = 1.0
) -> dict[str, Tensor]:
    """Draw the parameters: weights of standard deviation init_scale / sqrt(width), forget bias 1.

    The recurrent weights alone are multiplied by `recurrent_scale` too.

    Shapes: -> {name: float32 tensor}; "layer0.input.weight" (4 D, D), gates in torch's order: in, forget,
            cell, out
    Raises: ValueError if init_scale or recurrent_scale <= 0
    Source: forget bias 1: Jozefowicz et al. 2015 (An Empirical Exploration of Recurrent Network
            Architectures)
    Lesson: 04-gradient-clipping
    """
    for name, scale in (("init_scale", init_scale), ("recurrent_scale", recurrent_scale)):
        if not scale > 0:
            raise ValueError(f"init_lstm: {name} must be > 0; got {scale!r}")
    D, V = config.width, config.vocab_size
    params = {"embedding.token": torch.randn(V, D, generator=generator) * init_scale}
    for layer in range(config.layers):
        for name, scale in (("input", init_scale), ("recurrent", init_scale * recurrent_scale)):
            params[f"layer{layer}.{name}.weight"] = (
                torch.randn(4 * D, D, generator=generator) * scale / D**0.5
            )
        bias = torch.zeros(4 * D)  # of the input map alone: torch.nn.LSTM has two, which are added
        bias[D : 2 * D] = 1.0
        params[f"layer{layer}.input.bias"] = bias
    params["head.weight"] = torch.randn(V, D, generator=generator) * init_scale / D**0.5
    return params


def lstm_logits(
    params: Mapping[str, Tensor], tokens_BL: Tensor, config: LstmConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the LSTM from a zero state over each sequence; the logits at place l predict the token after it.

    Shapes: tokens_BL (B, L) integer -> logits_BLV (B, L, V), {}
    Raises: torch's own IndexError for a token outside 0..V-1
    Source: Hochreiter and Schmidhuber 1997; with forget gate, as torch.nn.LSTM computes it
    Lesson: 04-gradient-clipping
    """
    states_BLD = embedding(params["embedding.token"], tokens_BL)
    for layer in range(config.layers):
        weights = {
            name: params[f"layer{layer}.{name}"]
            for name in ("input.weight", "input.bias", "recurrent.weight")
        }
        states_BLD = _lstm_layer(states_BLD, weights, config.detach_state)
    return linear(states_BLD, params["head.weight"]), {}


def _lstm_layer(inputs_BLD, params, detach_state):
    # The inputs' share of every gate needs no recurrence: one product for all places.
    drive_BLG = linear(inputs_BLD, params["input.weight"], params["input.bias"])
    hidden_BD = cell_BD = torch.zeros_like(inputs_BLD[:, 0])
    outputs = []
    for drive_BG in drive_BLG.unbind(1):
        if detach_state:
            hidden_BD, cell_BD = hidden_BD.detach(), cell_BD.detach()
        gates_BG = drive_BG + linear(hidden_BD, params["recurrent.weight"])
        entry, forget, candidate, exit_ = gates_BG.chunk(4, dim=-1)
        cell_BD = torch.sigmoid(forget) * cell_BD + torch.sigmoid(entry) * torch.tanh(candidate)
        hidden_BD = torch.sigmoid(exit_) * torch.tanh(cell_BD)
        outputs.append(hidden_BD)
    return torch.stack(outputs, dim=1)
