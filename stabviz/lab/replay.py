"""Record the tensor operations of one training step, and replay them: what a CUDA graph does, for a CPU.

A step of tiny models is hundreds of operations of a few microseconds each. Finding out which operation comes
next (Python, vmap, autograd) and asking for fresh memory for its result take longer than the arithmetic. But
the list is the same at every step, so it is written down once. From then on each operation is called with the
very tensors of the first time: inputs where they were, the result written to its place. Results that are no
longer needed give their place to later ones, so that a step asks for no fresh memory and touches as little of
it as it can.

The price is what a CUDA graph asks for too: what lasts from step to step (parameters, state, counters) must
be edited in place, and nothing may branch on the value of a tensor.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Action = Callable[[], Any]

_READS_NO_VALUES = {
    getattr(torch.ops.aten, name)
    for name in ("new_full", "new_zeros", "new_ones", "full_like", "zeros_like", "ones_like")
}
"""Operations that look at the shape of a tensor alone."""


class NotReplayable(RuntimeError):
    """The step did something that a list of tensor operations cannot repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One operation as it was called."""

    function: torch._ops.OpOverload
    inputs: tuple
    """(args, kwargs), tensors detached."""
    results: tuple[Tensor, ...]
    mutates: tuple[Tensor, ...]
    """Tensors among the inputs that the operation writes to."""
    writer: Callable | None
    """What computes the same into `out`, if there is such a thing."""

    @property
    def reads(self) -> list[Tensor]:
        return [x for x in tree_leaves(self.inputs) if isinstance(x, Tensor)]


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd and vmap, with the tensors that it really works on."""

    def __init__(self):
        super().__init__()
        self.calls: list[_Call] = []
        self.writers: dict[Any, Callable | None] = {}

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else torch imports its compiler first, which takes a second

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = function(*args, **kwargs)
        inputs, given_detached = tree_map_only(Tensor, torch.Tensor.detach, ((args, kwargs), given))
        results = tuple(x for x in tree_leaves(given_detached) if isinstance(x, Tensor))
        if function is torch.ops.aten._local_scalar_dense.default:
            raise NotReplayable(
                f"{function} gave {given!r} to Python: a step must not look at a tensor's value"
            )
        mutates = _written(function, *inputs)
        if function not in self.writers:
            self.writers[function] = None if mutates else _writer(function, *inputs, results)
        self.calls.append(
            _Call(
                function=function,
                inputs=inputs,
                results=results,
                mutates=mutates,
                writer=self.writers[function],
            )
        )
        return given


def _written(function, args, kwargs) -> tuple[Tensor, ...]:
    """The tensors among the arguments that the schema says are written to."""
    found = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[index] if index < len(args) else None)
            found += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return tuple(found)


def _memory(x: Tensor) -> int:
    """What tells one piece of memory from another; views of it share the number."""
    return x.untyped_storage()._cdata


def record(step: Callable[[], Any], changing: Iterable[Tensor]) -> tuple[list[Action], Any]:
    """Do one step; return the calls that repeat it, and its result, whose tensors each repetition overwrites.

    `changing` are the tensors that change between repetitions by other hands than the step's own.

    Raises: NotReplayable if the step hands the value of a tensor to Python; the step itself is then half done
    """
    with _Recorder() as recorder:
        returned = step()
    calls = [call for call in recorder.calls if call.mutates or (call.results and not _is_view(call))]
    calls = _without_constants(calls, {_memory(x) for x in changing})
    place = _places(calls, keep={_memory(x) for x in tree_leaves(returned) if isinstance(x, Tensor)})
    with torch.no_grad():
        return [_action(call, place) for call in calls], tree_map_only(Tensor, torch.Tensor.detach, returned)


def _is_view(call: _Call) -> bool:
    read = {_memory(x) for x in call.reads}
    return all(_memory(x) in read for x in call.results)


def _without_constants(calls: list[_Call], changing: set[int]) -> list[_Call]:
    """Leave out what comes out equal at every step, such as a causal mask: it is kept instead."""
    changing = changing | {_memory(x) for call in calls for x in call.mutates}
    kept = []
    for call in calls:
        results = {_memory(x) for x in call.results}
        reads = (
            set() if call.function.overloadpacket in _READS_NO_VALUES else {_memory(x) for x in call.reads}
        )
        if changing & (results | reads):
            changing |= results
            kept.append(call)
    return kept


def _places(calls: list[_Call], keep: set[int]) -> Callable[[Tensor], Tensor]:
    """Give every passing result a place in memory that no other living one has, and return tensor ->
    place."""
    made: dict[int, int] = {}
    last_use: dict[int, int] = {}
    for index, call in enumerate(calls):
        for x in () if call.mutates else call.results:
            made.setdefault(_memory(x), index)
        for x in (*call.reads, *call.results):
            last_use[_memory(x)] = index
    ends: dict[int, list[int]] = {}
    for memory, index in last_use.items():
        if memory in made and memory not in keep:
            ends.setdefault(index, []).append(memory)
    slots: dict[int, torch.UntypedStorage] = {}
    free: dict[int, list[torch.UntypedStorage]] = {}
    for index, call in enumerate(calls):
        for x in () if call.mutates else call.results:
            if (memory := _memory(x)) not in slots and memory not in keep:
                size = x.untyped_storage().nbytes()
                slots[memory] = free[size].pop() if free.get(size) else torch.UntypedStorage(size)
        for memory in ends.get(index, ()):
            free.setdefault(slots[memory].nbytes(), []).append(slots[memory])
    known: dict[tuple, Tensor] = {}

    def place(x: Tensor) -> Tensor:
        if (slot := slots.get(_memory(x))) is None:
            return x
        key = (_memory(x), x.dtype, x.storage_offset(), x.shape, x.stride())
        if key not in known:
            known[key] = torch.empty(0, dtype=x.dtype).set_(slot, x.storage_offset(), x.shape, x.stride())
        return known[key]

    return place


def _action(call: _Call, place: Callable[[Tensor], Tensor]) -> Action:
    """The call, writing its result to its place; an operation that cannot is followed by a copy."""
    args, kwargs = tree_map_only(Tensor, place, call.inputs)
    if call.mutates:
        return partial(call.function, *args, **kwargs)
    results = tuple(place(x) for x in call.results)
    name = call.function.overloadpacket.__name__
    if name in ("clone", "_to_copy"):
        return partial(results[0].copy_, args[0])
    if name in ("zeros_like", "new_zeros", "zeros"):
        return results[0].zero_
    if call.writer is not None:
        return partial(call.writer, *args, **kwargs, out=results[0])
    return partial(_copy_results, call.function, args, kwargs, results)


def _writer(function, args, kwargs, results) -> Callable | None:
    """What computes the same and writes it to `out`: torch's public function, or the operator's form with
    out."""
    if len(results) != 1:
        return None
    packet = function.overloadpacket
    for candidate in (getattr(torch, packet.__name__, None), getattr(packet, "out", None)):
        scratch = torch.zeros_like(results[0])
        try:
            candidate(*args, **kwargs, out=scratch)
        except (TypeError, RuntimeError):
            continue
        if scratch.shape == results[0].shape and torch.equal(scratch.nan_to_num(), results[0].nan_to_num()):
            return candidate
    return None


def _copy_results(function, args, kwargs, results):
    given = function(*args, **kwargs)
    for into, x in zip(results, tree_leaves(given), strict=True):
        into.copy_(x)
