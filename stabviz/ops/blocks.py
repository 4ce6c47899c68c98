"""An optimizer step on one big flat tensor, in place and one cache-sized block after another."""

from collections.abc import Callable

import torch
from torch import Tensor

from stabviz.ops.optimizers import OPTIMIZERS, Scalar, State, UpdateMeasures


@torch.no_grad()
def in_blocks(
    step: Callable[..., tuple[Tensor, State, UpdateMeasures]],
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    block: int = 65536,
    **hyperparameters: Scalar | bool,
) -> UpdateMeasures:
    """Apply a pure elementwise step IN PLACE, one cache-sized block of the tensor after another.

    A pure step on millions of parameters asks the system for fresh memory at each operation, and the page
    faults cost more than the arithmetic. Blocks of 64k elements stay in the cache, and the step is still the
    one above. `param` and `state` are overwritten. Hyperparameters of param's shape are cut along.

    Shapes: param, grad any equal shape, contiguous
    Raises: ValueError if a tensor is not contiguous, block < 1, or the step mixes elements
            (stable_adamw_step)
    Lesson: 10-precision-and-memory

    >>> from stabviz.ops import sgd_init, sgd_step
    >>> param, state = torch.ones(5), sgd_init(torch.ones(5))
    >>> measured = in_blocks(sgd_step, param, torch.ones(5), state, block=2, lr=0.25)
    >>> param
    tensor([0.7500, 0.7500, 0.7500, 0.7500, 0.7500])
    """
    if any(optimizer.per_tensor and optimizer.step is step for optimizer in OPTIMIZERS.values()):
        raise ValueError(f"in_blocks: step must be elementwise; got {step.__name__!r}. Call it per tensor.")
    if block < 1:
        raise ValueError(f"in_blocks: block must be at least 1; got {block!r}")
    moments = {name: value for name, value in state.items() if name != "step"}
    for name, value in {"param": param, "grad": grad, **moments}.items():
        if not value.is_contiguous():
            raise ValueError(f"in_blocks: {name} must be contiguous; got strides {value.stride()!r}")
    whole = {"param": param, "grad": grad, **moments}
    whole |= {name: h for name, h in hyperparameters.items() if getattr(h, "shape", ()) == param.shape != ()}
    pieces = {name: value.view(-1).split(block) for name, value in whole.items()}
    # On the CPU a plain number: the bias corrections then cost no tensor operations in every block.
    count = state["step"].item() if param.device.type == "cpu" else state["step"]
    shares, measured = [], []
    for index, piece in enumerate(pieces["param"]):
        here = {name: split[index] for name, split in pieces.items()}
        old = {"step": count} | {name: here[name] for name in moments}
        cut = {name: here.get(name, h) for name, h in hyperparameters.items()}
        measures = step(piece, here["grad"], old, **cut, out=here)[2]
        shares.append(piece.numel() / max(param.numel(), 1))
        measured.append(measures)
    state["step"] += 1
    return _joined(measured, shares)


def _joined(measured: list[UpdateMeasures], shares: list[float]) -> UpdateMeasures:
    """Mean squares add up, weighted by the blocks' sizes; RMS values do not."""
    stacked = UpdateMeasures(*map(torch.stack, zip(*measured, strict=True)))
    weight = torch.tensor(shares, dtype=stacked[0].dtype, device=stacked[0].device)
    return UpdateMeasures(*((rms.square() * weight).sum().sqrt() for rms in stacked))
