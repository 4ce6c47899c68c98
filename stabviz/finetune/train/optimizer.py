"""AdamW for a whole model, ours or torch's fused one: the same groups, trajectory and saved names.

Groups: biases and layer norms are not decayed; with `layer_decay` a layer below the head learns more slowly
than the one above it; frozen parameters take no part.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stabviz.finetune.config import OptimizerConfig
from stabviz.finetune.distributed import assign, local, whole
from stabviz.ops import adam_init, adamw_step

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"embed|(?:^|\.)wte\.|(?:^|\.)wpe\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One trained tensor and how it is treated."""

    name: str
    tensor: nn.Parameter
    layer: str
    lr_factor: float
    weight_decay: float


def layer_of(name: str) -> str:
    """Name the layer that a parameter belongs to: "embeddings", "layer0" ... from the bottom, or "head".

    >>> [layer_of(n) for n in ("encoder.layer.3.output.bias", "embeddings.LayerNorm.bias", "classifier.bias")]
    ['layer3', 'embeddings', 'head']
    """
    numbered = _LAYER.search(name)
    if numbered:
        return f"layer{numbered.group(1)}"
    return "embeddings" if _EMBEDDINGS.search(name.lower()) else "head"


def usual_rate(model: nn.Module) -> float:
    """Return a peak learning rate that suits the size of a pretrained model, to two digits.

    1e-3 up to a million parameters outside of the embeddings, then falling with their number to the power of
    -2/3. That runs through what suits stabviz-mini and MiniLM (measured) and what is usual for BERT-base and
    BERT-large: 5e-5 and 2e-5.

    >>> [usual_rate(nn.Linear(n, 1000, bias=False)) for n in (100, 10_600, 85_000, 302_000)]
    [0.001, 0.00021, 5.2e-05, 2.2e-05]
    """
    size = sum(p.numel() for name, p in model.named_parameters() if layer_of(name) != "embeddings")
    return float(f"{1e-3 * min(1.0, (1e6 / size) ** (2 / 3)):.1e}")


def trained_parameters(model: nn.Module, config: OptimizerConfig) -> list[Parameter]:
    """List what is trained, with layer, share of the learning rate and weight decay; freeze the rest.

    Raises: ValueError if a word of `freeze` matches no parameter, or nothing is left to train
    Source: layer-wise rates: Howard and Ruder 2018, arXiv:1801.06146
    """
    named = list(model.named_parameters())
    for word in config.freeze:
        if not any(word in name for name, _ in named):
            layers = sorted({layer_of(name) for name, _ in named})
            raise ValueError(
                f"finetune: freeze must match a parameter's name; got {word!r}, which matches none. "
                f"The layers are {layers}; names look like {named[0][0]!r}"
            )
    undecayed = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }
    depths = _depths({layer_of(name) for name, _ in named})
    chosen = []
    for name, tensor in named:
        tensor.requires_grad_(tensor.requires_grad and not any(word in name for word in config.freeze))
        if not tensor.requires_grad:
            continue
        layer = layer_of(name)
        # decay pulls towards 0, which would shut the gain of a norm; a bias has no scale to restrain
        plain = name in undecayed or name.endswith("bias")
        chosen.append(
            Parameter(
                name=name,
                tensor=tensor,
                layer=layer,
                lr_factor=config.layer_decay ** depths[layer],
                weight_decay=0.0 if plain else config.weight_decay,
            )
        )
    if not chosen:
        raise ValueError(f"finetune: freeze must leave something to train; got {list(config.freeze)!r}")
    return chosen


def _depths(layers: set[str]) -> dict[str, int]:
    """How many layers lie above each, the head being the top."""
    numbered = sorted(
        (layer for layer in layers if layer.startswith("layer")), key=lambda layer: -int(layer[5:])
    )
    return {layer: depth for depth, layer in enumerate(["head", *numbered, "embeddings"])}


class AdamW:
    """Our AdamW, `stabviz.ops.adamw_step` on one tensor after another, the result copied over the old."""

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig):
        self.parameters, self.config = parameters, config
        self.states = {p.name: adam_init(local(p.tensor.detach())) for p in parameters}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter from its gradient."""
        c = self.config
        for p in self.parameters:
            if p.tensor.grad is None:
                continue
            param, state = local(p.tensor.data), self.states[p.name]
            updated, fresh, _ = adamw_step(
                param,
                local(p.tensor.grad),
                state,
                lr=lr * p.lr_factor,
                beta1=c.beta1,
                beta2=c.beta2,
                eps=c.eps,
                weight_decay=p.weight_decay,
                bias_correction=c.bias_correction,
                measure=False,
            )
            # into the old memory: the model and what wraps it hold these very tensors
            param.copy_(updated)
            for name, value in state.items():
                value.copy_(fresh[name])

    def moments(self, parameter: Parameter) -> tuple[Tensor, Tensor, Tensor]:
        """Return first moment, second moment and step count of a parameter."""
        state = self.states[parameter.name]
        return state["first_moment"], state["second_moment"], state["step"]


class FusedAdamW:
    """torch.optim.AdamW(fused=True) on the same groups."""

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig):
        self.parameters = parameters
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for p in parameters:
            groups.setdefault((p.lr_factor, p.weight_decay), []).append(p.tensor)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": tensors, "lr_factor": factor, "weight_decay": decay}
                for (factor, decay), tensors in groups.items()
            ],
            lr=0.0,  # set anew at each step
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        for p in parameters:  # all memory is asked for here, so that no step can fail for want of it
            self.optimizer.state[p.tensor] = {
                "step": torch.zeros((), device=p.tensor.device),
                "exp_avg": torch.zeros_like(p.tensor),
                "exp_avg_sq": torch.zeros_like(p.tensor),
            }

    def step(self, lr: float) -> None:
        """Update every parameter from its gradient."""
        for group in self.optimizer.param_groups:
            # by hand: the schedule's clock counts updates, and a dropped step is none
            group["lr"] = lr * group["lr_factor"]
        self.optimizer.step()

    def moments(self, parameter: Parameter) -> tuple[Tensor, Tensor, Tensor]:
        """Return first moment, second moment and step count of a parameter."""
        state = self.optimizer.state[parameter.tensor]
        return state["exp_avg"], state["exp_avg_sq"], state["step"]


OPTIMIZERS: dict[str, type[AdamW] | type[FusedAdamW]] = {"adamw": AdamW, "adamw_fused": FusedAdamW}
_SAVED = ("first_moment", "second_moment", "step")


def drop_gradients(parameters: list[Parameter]) -> None:
    """Forget the gradients, and give back their memory."""
    for p in parameters:
        p.tensor.grad = None


def is_untouched(optimizer: AdamW | FusedAdamW, updates: int) -> bool:
    """Tell whether a step that failed had changed nothing yet: every step count is still at `updates`."""
    return all(
        float(optimizer.moments(p)[2]) == updates for p in optimizer.parameters if p.tensor.grad is not None
    )


def save_moments(optimizer: AdamW | FusedAdamW) -> dict[str, Tensor]:
    """Return the optimizer's whole state by name; either class can go on from it. All processes must call."""
    return {
        f"{p.name}/{kind}": whole(value).detach()
        for p in optimizer.parameters
        for kind, value in zip(_SAVED, _stored(optimizer, p), strict=True)
    }


@torch.no_grad()
def load_moments(optimizer: AdamW | FusedAdamW, saved: dict[str, Tensor]) -> None:
    """Overwrite the optimizer's state with what `save_moments` returned.

    Raises: ValueError if it belongs to other parameters
    """
    wanted = {f"{p.name}/{kind}" for p in optimizer.parameters for kind in _SAVED}
    if wanted != set(saved):
        odd = sorted(wanted ^ set(saved))[:3]
        raise ValueError(
            f"load_moments: saved must be the state of the parameters that are trained; got others: {odd}"
        )
    for p in optimizer.parameters:
        for kind, value in zip(_SAVED, _stored(optimizer, p), strict=True):
            assign(value, saved[f"{p.name}/{kind}"])


def _stored(optimizer, parameter):
    """The moments as they are kept: ours are local tensors, torch's are shared out like the parameter."""
    moments = optimizer.moments(parameter)
    like = parameter.tensor
    if local(like) is not like and isinstance(optimizer, AdamW):
        first, second, count = moments
        moments = (
            *(
                DTensor.from_local(
                    m, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                )
                for m in (first, second)
            ),
            count,
        )
    return moments


class WeightAverage:
    """Exponential moving average of the trained weights (EMA), kept in float32 beside them."""

    def __init__(self, parameters: list[Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.averages = {p.name: p.tensor.detach().clone() for p in parameters}

    @torch.no_grad()
    def update(self) -> None:
        """Move each average a share 1 - decay of the way to the weight."""
        averages = [local(self.averages[p.name]) for p in self.parameters]
        torch._foreach_lerp_(averages, [local(p.tensor.data) for p in self.parameters], 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages: once before an evaluation, once after it."""
        for p in self.parameters:
            kept = local(p.tensor.data).clone()
            local(p.tensor.data).copy_(local(self.averages[p.name]))
            local(self.averages[p.name]).copy_(kept)

    def whole(self) -> dict[str, Tensor]:
        """Return the averages by name, gathered where they are shared out: all processes must call."""
        return {name: whole(average) for name, average in self.averages.items()}

    def load(self, saved: dict[str, Tensor]) -> None:
        """Overwrite the averages with what `whole` returned."""
        for name, value in saved.items():
            assign(self.averages[name], value)
