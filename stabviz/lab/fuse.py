"""Recognise the paper form of softmax and GELU in a recorded step, and replay torch's fused kernels instead.

The ops are written as their papers print them, and autograd writes their derivatives: five passes over the
scores for a softmax, eight for its gradient, where torch has a kernel that makes one. What such a chain looks
like is not written down here but recorded, from the op itself. A chain is replaced where the step holds it
whole, nothing else reads what it makes on the way, and the kernel gives the same values on the spot.

What a measurement did not pay for is left as it is (one AMD core, 16 runs of width 32): layer norm, whose
kernel is slower than its eight short passes at this width, and one product for query, key and value.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stabviz.lab.replay import Call, memory_of, recorded_calls
from stabviz.ops import gelu, softmax
from stabviz.seeds import generator

aten = torch.ops.aten

NARROW = 16
"""A product with at most so many columns is computed transposed: the kernels are three times as fast along
long rows (one AMD core, 512 products of 32x32 by 32x8: 0.17 against 0.56 ms)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    """An op in paper form, and torch's kernels for it and for its gradient."""

    paper: Callable
    forward: Callable
    """forward(x, out=y)"""
    backward: Callable
    """backward(grad_y, x, y, out=grad_x)"""


def _softmax(x, *, out):
    return aten._softmax.out(x, -1, False, out=out)


def _softmax_backward(grad, x, y, *, out):
    return aten._softmax_backward_data.out(grad, y, -1, x.dtype, grad_input=out)


def _gelu(x, *, out):
    return aten.gelu.out(x, out=out)


def _gelu_backward(grad, x, y, *, out):
    return aten.gelu_backward.grad_input(grad, x, grad_input=out)


KERNELS = (
    _Kernel(paper=softmax, forward=_softmax, backward=_softmax_backward),
    _Kernel(paper=gelu, forward=_gelu, backward=_gelu_backward),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """The calls that an op in paper form and its gradient are made of; tensors are known by their memory."""

    calls: tuple[Call, ...]
    x: int
    y: int
    grad_y: int
    grad_x: int


@cache
def _chain_of(paper: Callable) -> _Chain:
    """Record the op and its gradient, mapped over runs as the engine does it."""
    x, weights = torch.randn(2, 2, 3, 4, 5, generator=generator(0, "made up")).unbind()
    x, weights = x.clone(), weights.clone()  # memory of their own

    def step():
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = torch.vmap(paper)(leaf)
            # Not grad(y, leaf, weights): torch would import sympy for it, a third of a second.
            return y.detach(), *torch.autograd.grad((y * weights).sum(), leaf)

    calls, (y, grad_x) = recorded_calls(step, (x, weights))
    # `weights` makes a loss of y; what it touches is the example's own and no part of the chain.
    product, grad_y = (call for call in calls if memory_of(weights) in map(memory_of, call.reads))
    around = {memory_of(call.results[0]) for call in (product, grad_y)}
    around |= {
        memory_of(c.results[0]) for c in calls if memory_of(product.results[0]) in map(memory_of, c.reads)
    }
    return _Chain(
        calls=tuple(call for call in calls if memory_of(call.results[0]) not in around),
        x=memory_of(x),
        y=memory_of(y),
        grad_y=memory_of(grad_y.results[0]),
        grad_x=memory_of(grad_x),
    )


def fuse(calls: list[Call], keep: set[int]) -> list[Call]:
    """Return calls that compute the same in fewer passes; memories in `keep` are read after the step."""
    for kernel in KERNELS:
        calls = _replaced(calls, keep, kernel)
    scratches: dict[tuple, Tensor] = {}  # products of one shape take turns with one
    return [_transposed(call, scratches) if _is_narrow(call) else call for call in calls]


def _replaced(calls: list[Call], keep: set[int], kernel: _Kernel) -> list[Call]:
    chain = _chain_of(kernel.paper)
    readers: defaultdict[int, set[int]] = defaultdict(set)
    by_function: defaultdict[Any, list[int]] = defaultdict(list)
    for index, call in enumerate(calls):
        by_function[call.function].append(index)
        for x in call.reads:
            readers[memory_of(x)].add(index)
    taken: set[int] = set()
    new: dict[int, Call] = {}
    for start in by_function[chain.calls[0].function]:
        found = None if start in taken else _match(chain, calls, start, by_function, taken)
        if found is None:
            continue
        places, actual = found
        made = {memory_of(x) for i in places for x in calls[i].results}
        inside = made - {actual[chain.y], actual[chain.grad_x]}
        if inside & keep or any(not readers[memory] <= set(places) for memory in inside):
            continue  # something else wants to know what the chain makes on the way
        fused = _fused(kernel, chain, calls, places, actual)
        if fused is not None:
            taken |= set(places)
            new |= fused
    return [new.get(index, call) for index, call in enumerate(calls) if index in new or index not in taken]


def _match(chain: _Chain, calls: list[Call], start: int, by_function: dict[Any, list[int]], taken: set[int]):
    """Find the chain whose first call stands at `start`; return the places of its calls and their memory.

    Later calls are looked for among those of equal function that read what the chain says.
    """

    def search(position: int, places: list[int], actual: dict[int, int]):
        if position == len(chain.calls):
            return places, actual
        ours = chain.calls[position]
        # Of equal functions the wrong one may fit at first, and a later call not: hence the search.
        for index in [start] if position == 0 else by_function.get(ours.function, ()):
            if index < start or index in places or index in taken:
                continue
            more = _bound(ours, calls[index], actual)
            if more is not None and (whole := search(position + 1, [*places, index], more)):
                return whole
        return None

    return search(0, [], {})


def _bound(ours: Call, theirs: Call, actual: dict[int, int]) -> dict[int, int] | None:
    """The memories that stand for one another if `theirs` is the chain's call `ours`; None if it is not."""
    if ours.function is not theirs.function or len(ours.leaves) != len(theirs.leaves):
        return None
    actual = dict(actual)
    for a, b in zip(ours.leaves, theirs.leaves, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if actual.setdefault(memory_of(a), memory_of(b)) != memory_of(b):
                return None
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or (isinstance(a, float) and a != b):
            return None  # whole numbers may be axes, and those differ with the rank
    return actual | {memory_of(a): memory_of(b) for a, b in zip(ours.results, theirs.results, strict=True)}


def _fused(kernel: _Kernel, chain: _Chain, calls: list[Call], places: list[int], actual: dict[int, int]):
    """The two kernel calls at the places of the chain's results, or None if they give other values."""
    tensors: dict[int, Tensor] = {}
    for index in places:
        for x in (*calls[index].reads, *calls[index].results):
            tensors.setdefault(memory_of(x), x)
    x, y, grad_y, grad_x = (tensors[actual[m]] for m in (chain.x, chain.y, chain.grad_y, chain.grad_x))
    if not x.shape == y.shape == grad_y.shape == grad_x.shape:
        return None  # the kernels do not broadcast
    new = {}
    for result, writer, inputs in ((y, kernel.forward, (x,)), (grad_x, kernel.backward, (grad_y, x, y))):
        scratch = torch.empty_like(result)
        writer(*inputs, out=scratch)
        # A few roundings of the dtype: the kernel sums in another order. A run that is NaN may stay so.
        eps = torch.finfo(result.dtype).eps
        if not torch.allclose(scratch, result, rtol=100 * eps, atol=100 * eps, equal_nan=True):
            return None
        place = next(i for i in places if any(memory_of(r) == memory_of(result) for r in calls[i].results))
        new[place] = replace(calls[place], inputs=(inputs, {}), results=(result,), writer=writer)
    return new


def _is_narrow(call: Call) -> bool:
    if call.function is not aten.bmm.default:
        return False
    columns, rows = call.results[0].shape[-1], call.results[0].shape[-2]
    return columns <= NARROW and columns < rows


def _transposed(call: Call, scratches: dict[tuple, Tensor]) -> Call:
    result = call.results[0]
    scratch = scratches.setdefault((result.shape, result.dtype), result.new_empty(result.mT.shape))
    return replace(call, inputs=((*call.inputs[0], scratch), {}), writer=transposed_product)


def transposed_product(left: Tensor, right: Tensor, scratch: Tensor, *, out: Tensor) -> None:
    """Write left @ right to `out` as (right^T left^T)^T, by way of memory of its own."""
    torch.bmm(right.mT, left.mT, out=scratch)
    out.copy_(scratch.mT)
