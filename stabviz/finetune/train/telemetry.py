"""The signals of one real training step, by layer; they stay on the device until a flush writes them.

The gradient's norms cost nothing more than the total that clipping needs. What takes another pass over the
parameters (update, moments, norms of the weights) or a look into attention is measured every `signals_every`
steps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stabviz.finetune.config import OptimizerConfig, RunConfig
from stabviz.finetune.distributed import ProcessGroup, local
from stabviz.finetune.train.optimizer import Parameter
from stabviz.ops import adam_direction_from, bias_corrected, global_norm, second_moment_ratio
from stabviz.trace.log import MetricsLog

PROBED_ROWS = 8
"""Rows of the first micro-batch whose attention is measured."""
_QUERY_KEY = (("query", "key"), ("q_lin", "k_lin"))
_HEADS = ("num_attention_heads", "n_heads")


class Norms:
    """`stabviz.ops.global_norm` of a list of tensors, over everything and by layer."""

    def __init__(self, parameters: list[Parameter], processes: ProcessGroup):
        self.layers = list(dict.fromkeys(p.layer for p in parameters))
        self._layer_of = [p.layer for p in parameters]
        self._sharded = processes.size > 1 and any(local(p.tensor) is not p.tensor for p in parameters)
        self._processes = processes

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return the norm over everything, then that of each layer; non-finite where an element is.

        Shapes: one tensor a parameter, None where there is nothing -> (1 + layers,) float32
        """
        by_layer: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        zero = torch.zeros(())
        for layer, tensor in zip(self._layer_of, tensors, strict=True):
            if tensor is not None:
                by_layer[layer].append(local(tensor))
                zero = zero.to(tensor.device)
        norms = torch.stack([global_norm(held).float() if held else zero for held in by_layer.values()])
        if self._sharded:  # each process holds a share of every tensor; float32 squares could overflow
            norms = self._processes.total(norms.double().square()).sqrt().float()
        return torch.cat([global_norm(norms).reshape(1), norms])


class AttentionProbe:
    """Largest attention logit and mean attention entropy of a transformers model, by hooks, for one pass.

    Knows models that hold `query` and `key` (BERT, RoBERTa, ELECTRA, ...) or `q_lin` and `k_lin` (DistilBERT)
    beside one another and attend by scaled dot product of these two. Others are passed over. Only the first
    PROBED_ROWS rows are looked at: what is measured now and then must not set the peak of memory.
    """

    def __init__(self, model: nn.Module):
        self.places = []
        for module in model.modules():
            for query, key in _QUERY_KEY:
                counts = [getattr(module, name, None) for name in _HEADS]
                heads = next((n for n in counts if isinstance(n, int)), 0)
                if isinstance(getattr(module, query, None), nn.Linear) and hasattr(module, key) and heads:
                    self.places.append((getattr(module, query), getattr(module, key), heads))
        self._seen: list[tuple[Tensor, Tensor, int]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "AttentionProbe":
        for query, key, heads in self.places:
            held: dict[str, Tensor] = {}
            self._handles.append(
                query.register_forward_hook(
                    lambda module, inputs, out, held=held: held.__setitem__("query", _first_rows(out))
                )
            )
            self._handles.append(
                key.register_forward_hook(
                    lambda module, inputs, out, held=held, heads=heads: self._seen.append(
                        (held.pop("query"), _first_rows(out), heads)
                    )
                )
            )
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def measured(self, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return the measures of the pass, {} if the model is not known; padding neither asks nor answers.

        Shapes: attention_mask (B, L), 1 = real, or (B, 1, L, L) when rows are packed
        """
        seen, self._seen = self._seen, []
        attention_mask = attention_mask[:PROBED_ROWS]
        if not seen or any(q.ndim != 3 or q.shape != k.shape for q, k, _ in seen):
            return {}
        if attention_mask.ndim == 2:
            real = attention_mask.bool()  # neither a padded query nor a padded key counts
            may_BHLM = real[:, None, :, None] & real[:, None, None, :]
        else:
            may_BHLM = attention_mask.bool() if attention_mask.dtype != torch.float32 else attention_mask == 0
        largest, entropies = [], []
        for query, key, heads in seen:
            B, L, D = query.shape
            query_BHLK, key_BHMK = (
                x.float().view(B, L, heads, D // heads).transpose(1, 2) for x in (query, key)
            )
            logits_BHLM = query_BHLK @ key_BHMK.mT / math.sqrt(D // heads)
            largest.append(logits_BHLM.abs().masked_fill(~may_BHLM, 0.0).amax())
            log_weights = logits_BHLM.masked_fill(~may_BHLM, -torch.inf).log_softmax(dim=-1)
            # a weight of 0 has log -inf, and 0 * -inf is NaN: hidden places count log 0.0
            entropy_BHL = -(log_weights.exp() * log_weights.masked_fill(~may_BHLM, 0.0)).sum(dim=-1)
            asks_BHL = may_BHLM.any(dim=-1).expand_as(entropy_BHL)
            entropies.append(entropy_BHL[asks_BHL].mean())
        return {
            "max_attention_logit": torch.stack(largest).amax(),
            "attention_entropy": torch.stack(entropies).mean(),
        }


def _first_rows(out: Tensor) -> Tensor:
    """A copy of its own: a slice would keep the whole tensor."""
    return out.detach()[:PROBED_ROWS].clone()


class Telemetry:
    """Collects the signals of the steps and writes them to the log in groups."""

    def __init__(
        self,
        parameters: list[Parameter],
        optimizer: OptimizerConfig,
        run: RunConfig,
        processes: ProcessGroup,
        log: MetricsLog | None,
    ):
        self.parameters, self.adam, self.run, self.log = parameters, optimizer, run, log
        self.norms = Norms(parameters, processes)
        self._pending: list[tuple[int, dict[str, float], list[str], Tensor]] = []

    def due(self, step: int) -> bool:
        """Tell whether this step measures the costly signals."""
        return step % self.run.signals_every == 0

    def _named(self, signal: str) -> list[str]:
        return [signal, *(f"{signal}/{layer}" for layer in self.norms.layers)]

    @torch.no_grad()
    def update_signals(self, optimizer) -> dict[str, Tensor]:
        """Measure the update just made and the moments behind it; call before the gradients are dropped.

        Shapes: -> name: (1 + layers,), over everything first
        Units:  update_rms in lr (of the layer); weight decay is not counted
        """
        c, sizes = self.adam, self._sizes()
        directions: list[Tensor | None] = []
        ratios: list[Tensor | None] = []
        for p in self.parameters:
            if p.tensor.grad is None:
                directions.append(None)
                ratios.append(None)
                continue
            first, second, count = (local(x) for x in optimizer.moments(p))
            grad = local(p.tensor.grad)
            m_hat = bias_corrected(first, c.beta1, count, c.bias_correction)
            v_hat = bias_corrected(second, c.beta2, count, c.bias_correction)
            directions.append(adam_direction_from(m_hat, v_hat, count, eps=c.eps, bias_correction=False))
            # one number for a whole tensor will do: the norm of such numbers is the norm over all elements
            ratios.append(second_moment_ratio(grad, v_hat, c.eps) * math.sqrt(grad.numel()))
        return {
            "update_rms": self.norms(directions) / sizes,
            "second_moment_ratio": self.norms(ratios) / sizes,
        }

    @torch.no_grad()
    def param_norms(self) -> Tensor:
        """Return the L2 norm of the trained parameters, over everything and by layer. (1 + layers,)"""
        return self.norms([p.tensor.detach() for p in self.parameters])

    def _sizes(self) -> Tensor:
        counts = dict.fromkeys(self.norms.layers, 0)
        for p in self.parameters:
            # what took no part in the step must not thin the mean
            counts[p.layer] += p.tensor.numel() if p.tensor.grad is not None else 0
        roots = [math.sqrt(sum(counts.values())), *(math.sqrt(max(n, 1)) for n in counts.values())]
        return torch.tensor(roots, device=self.parameters[0].tensor.device)

    def record(self, step: int, host: dict[str, float], device: dict[str, Tensor]) -> None:
        """Keep one step: `host` numbers are known, `device` tensors (scalar, or total and layers) not yet."""
        names, values = [], []
        # one vector a step: a flush is then one transfer, and no step waits for the device
        for signal, value in device.items():
            names += self._named(signal) if value.ndim else [signal]
            values.append(value.detach().float().reshape(-1))
        vector = torch.cat(values) if values else torch.empty(0)
        self._pending.append((step, host, names, vector))
        if len(self._pending) >= self.run.flush_every:
            self.flush()

    def flush(self) -> None:
        """Bring the kept values over in one transfer and write them."""
        pending, self._pending = self._pending, []
        if not pending or self.log is None:
            return
        numbers = torch.cat([vector for *_, vector in pending]).tolist()
        start = 0
        for step, host, names, vector in pending:
            values = dict(zip(names, numbers[start : start + vector.numel()], strict=True))
            start += vector.numel()
            self.log.step(step, {**host, **values})
        self.log.flush()
