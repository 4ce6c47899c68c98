"""Recurrent language models, LSTM and plain: the classical place to see gradients explode along time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stabviz.models.sizes import check_sizes
from stabviz.ops import embedding, linear


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConfig:
    """The structure of a recurrent language model."""

    vocab_size: int
    """Number of token ids, V."""
    width: int = 32
    """Width of the embedding and of the hidden state, D."""
    layers: int = 1
    """Recurrent layers, one on top of the other."""
    cell: str = "lstm"
    """lstm: gates and a cell state; rnn: tanh of one matrix, what the gates were invented against."""
    detach_state: bool = False
    """True: no gradient travels back through the state from place to place; the forward pass is the same."""

    def __post_init__(self):
        check_sizes(self)
        if self.cell not in ("lstm", "rnn"):
            raise ValueError(f"RecurrentConfig: cell must be 'lstm' or 'rnn'; got {self.cell!r}")


def init_recurrent(
    config: RecurrentConfig, generator: Generator, init_scale: float = 1.0, recurrent_scale: float = 1.0
) -> dict[str, Tensor]:
    """Draw the parameters: weights of standard deviation init_scale / sqrt(width), an LSTM's forget bias 1.

    The recurrent weights alone are multiplied by `recurrent_scale` too. Those of the plain network have a
    spectral radius of about init_scale recurrent_scale: above 1, tanh alone bounds the state, and what the
    gradient is multiplied by from place to place is bounded by nothing.

    Shapes: -> {name: float32 tensor}; "layer0.recurrent.weight" (D, D), or (4 D, D) with the gates in
            torch's order: in, forget, cell, out
    Raises: ValueError if init_scale or recurrent_scale <= 0
    Source: forget bias 1: Jozefowicz et al. 2015 (An Empirical Exploration of Recurrent Network
            Architectures)
    Lesson: 04-gradient-clipping
    """
    for name, scale in (("init_scale", init_scale), ("recurrent_scale", recurrent_scale)):
        if not scale > 0:
            raise ValueError(f"init_recurrent: {name} must be > 0; got {scale!r}")
    D, V = config.width, config.vocab_size
    gates = 4 if config.cell == "lstm" else 1
    params = {"embedding.token": torch.randn(V, D, generator=generator) * init_scale}
    for layer in range(config.layers):
        for name, scale in (("input", init_scale), ("recurrent", init_scale * recurrent_scale)):
            drawn = torch.randn(gates * D, D, generator=generator)
            params[f"layer{layer}.{name}.weight"] = drawn * scale / D**0.5
        bias = torch.zeros(gates * D)  # of the input map alone: torch's have two, which are added
        if config.cell == "lstm":
            bias[D : 2 * D] = 1.0
        params[f"layer{layer}.input.bias"] = bias
    params["head.weight"] = torch.randn(V, D, generator=generator) * init_scale / D**0.5
    return params


def recurrent_logits(
    params: Mapping[str, Tensor], tokens_BL: Tensor, config: RecurrentConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the network from a zero state over each sequence; logits at place l predict the token after it.

    Shapes: tokens_BL (B, L) integer -> logits_BLV (B, L, V), {}
    Raises: torch's own IndexError for a token outside 0..V-1
    Source: lstm: Hochreiter and Schmidhuber 1997, with forget gate, as torch.nn.LSTM; rnn: Elman 1990
            (Finding Structure in Time), h = tanh(W_in x + b + W_rec h), as torch.nn.RNN
    Lesson: 04-gradient-clipping
    """
    states_BLD = embedding(params["embedding.token"], tokens_BL)
    for layer in range(config.layers):
        weight, bias = params[f"layer{layer}.input.weight"], params[f"layer{layer}.input.bias"]
        recurrent = params[f"layer{layer}.recurrent.weight"]
        # The inputs' share needs no recurrence: one product for all places.
        drive_BLG = linear(states_BLD, weight, bias)
        hidden_BD = cell_BD = torch.zeros_like(states_BLD[:, 0])
        outputs = []
        for drive_BG in drive_BLG.unbind(1):
            if config.detach_state:
                hidden_BD, cell_BD = hidden_BD.detach(), cell_BD.detach()
            sums_BG = drive_BG + linear(hidden_BD, recurrent)
            if config.cell == "lstm":
                hidden_BD, cell_BD = _lstm_cell(sums_BG, cell_BD)
            else:
                hidden_BD = torch.tanh(sums_BG)
            outputs.append(hidden_BD)
        states_BLD = torch.stack(outputs, dim=1)
    return linear(states_BLD, params["head.weight"]), {}


def _lstm_cell(gates_BG: Tensor, cell_BD: Tensor) -> tuple[Tensor, Tensor]:
    entry, forget, candidate, exit_ = gates_BG.chunk(4, dim=-1)
    cell_BD = torch.sigmoid(forget) * cell_BD + torch.sigmoid(entry) * torch.tanh(candidate)
    return torch.sigmoid(exit_) * torch.tanh(cell_BD), cell_BD
