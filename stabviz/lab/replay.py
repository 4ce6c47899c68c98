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
from dataclasses import dataclass, field
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
class Call:
    """One operation as it was called."""

    function: torch._ops.OpOverload
    inputs: tuple
    """(args, kwargs), tensors detached."""
    results: tuple[Tensor, ...]
    mutates: tuple[Tensor, ...]
    """Tensors among the inputs that the operation writes to."""
    writer: Callable | None
    """What computes the same into `out`, if there is such a thing."""
    leaves: tuple = field(init=False)
    """All that stands in `inputs`: tensors, numbers and the rest."""
    reads: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self):
        leaves = tuple(tree_leaves(self.inputs))
        object.__setattr__(self, "leaves", leaves)
        object.__setattr__(self, "reads", tuple(x for x in leaves if isinstance(x, Tensor)))


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd and vmap, with the tensors that it really works on."""

    calls: list[Call]
    writers: dict[Any, Callable | None]

    def __init__(self):
        super().__init__()
        self.calls = []
        self.writers = {}

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else torch imports its compiler first, which takes a second

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        # Detached: a recording that held the graph would keep all memory of the step alive.
        inputs, output_detached = tree_map_only(Tensor, torch.Tensor.detach, ((args, kwargs), output))
        results = tuple(x for x in tree_leaves(output_detached) if isinstance(x, Tensor))
        if function is torch.ops.aten._local_scalar_dense.default:
            raise NotReplayable(
                f"{function} gave {output!r} to Python: a step must not look at a tensor's value"
            )
        mutates = _written(function, *inputs)
        if function not in self.writers:
            self.writers[function] = None if mutates else _writer(function, *inputs, results)
        self.calls.append(
            Call(
                function=function,
                inputs=inputs,
                results=results,
                mutates=mutates,
                writer=self.writers[function],
            )
        )
        return output


def _written(function, args, kwargs) -> tuple[Tensor, ...]:
    """The tensors among the arguments that the schema says are written to."""
    found = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[index] if index < len(args) else None)
            found += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return tuple(found)


def memory_of(x: Tensor) -> int:
    """The number of a tensor's storage; its views share it."""
    # An address, unique while the storage lives: the calls hold their tensors, so none is given out twice.
    return x.untyped_storage()._cdata


def record(
    step: Callable[[], Any],
    changing: Iterable[Tensor],
    rewrite: Callable[[list[Call], set[int]], list[Call]] = lambda calls, keep: calls,
) -> tuple[list[Action], Any]:
    """Do one step; return the calls that repeat it, and its result, whose tensors each repetition overwrites.

    `changing` are the tensors that change between repetitions by other hands than the step's own.
    `rewrite(calls, keep)` may put others in the place of calls, if they write the same results.

    Raises: NotReplayable if the step hands the value of a tensor to Python; the step itself is then half done
    """
    calls, returned = recorded_calls(step, changing)
    keep = {memory_of(x) for x in tree_leaves(returned) if isinstance(x, Tensor)}
    with torch.no_grad():
        calls = rewrite(calls, keep)
        plan = MemoryPlan(calls, keep)
        return [_action(call, plan) for call in calls], tree_map_only(Tensor, torch.Tensor.detach, returned)


def recorded_calls(step: Callable[[], Any], changing: Iterable[Tensor]) -> tuple[list[Call], Any]:
    """Do one step; return the calls that have to be repeated, and its result."""
    with _Recorder() as recorder:
        returned = step()
    calls = [call for call in recorder.calls if call.mutates or (call.results and not _is_view(call))]
    return _without_constants(calls, {memory_of(x) for x in changing}), returned


def _is_view(call: Call) -> bool:
    # A view computes nothing: the call that reads it is handed its shape, strides and offset.
    read = {memory_of(x) for x in call.reads}
    return all(memory_of(x) in read for x in call.results)


def _without_constants(calls: list[Call], changing: set[int]) -> list[Call]:
    """Leave out what comes out equal at every step, such as a causal mask: it is kept instead."""
    changing = changing | {memory_of(x) for call in calls for x in call.mutates}
    kept = []
    for call in calls:
        results = {memory_of(x) for x in call.results}
        looks_at_shape_alone = call.function.overloadpacket in _READS_NO_VALUES
        reads = set() if looks_at_shape_alone else {memory_of(x) for x in call.reads}
        if changing & (results | reads):
            changing |= results
            kept.append(call)
    return kept


class MemoryPlan:
    """Where each passing result of a step lives: in memory that no other living one has.

    A result is born at the call that makes it and dies after the last call that reads it. Its memory then
    serves a later result of equal size, so that a step touches little memory and much of it stays in the
    cache. Results in `keep` outlive the step and keep the memory that they have; so does whatever the step
    did not make (parameters, constants).
    """

    def __init__(self, calls: list[Call], keep: set[int]):
        self.storage_of: dict[int, torch.UntypedStorage] = {}
        self._placed: dict[tuple, Tensor] = {}
        passing = [{memory_of(x) for x in _made_by(call)} - keep for call in calls]
        dying = self._deaths(calls, set().union(*passing))
        free: dict[int, list[torch.UntypedStorage]] = {}  # by size: only an equal one is reused
        for call, dead in zip(calls, dying, strict=True):
            for x in _made_by(call):
                if (memory := memory_of(x)) not in keep and memory not in self.storage_of:
                    size = x.untyped_storage().nbytes()
                    self.storage_of[memory] = (
                        free[size].pop() if free.get(size) else torch.UntypedStorage(size)
                    )
            # Only now: a call must not write its result over one that it reads.
            for memory in dead:
                free.setdefault(self.storage_of[memory].nbytes(), []).append(self.storage_of[memory])

    @staticmethod
    def _deaths(calls: list[Call], passing: set[int]) -> list[list[int]]:
        """For each call, the results that nothing reads after it."""
        last_use: dict[int, int] = {}
        for index, call in enumerate(calls):
            last_use.update({memory_of(x): index for x in (*call.reads, *call.results)})
        dying: list[list[int]] = [[] for _ in calls]
        # In order of first use, not of the set: the plan must not differ between runs.
        for memory in last_use:
            if memory in passing:
                dying[last_use[memory]].append(memory)
        return dying

    def place(self, x: Tensor) -> Tensor:
        """Return the tensor that stands for x: in its place if x is a passing result, else x itself."""
        storage = self.storage_of.get(memory_of(x))
        if storage is None:
            return x
        key = (memory_of(x), x.dtype, x.storage_offset(), x.shape, x.stride())
        if key not in self._placed:
            empty = torch.empty(0, dtype=x.dtype)
            self._placed[key] = empty.set_(storage, x.storage_offset(), x.shape, x.stride())
        return self._placed[key]


def _made_by(call: Call) -> tuple[Tensor, ...]:
    """The tensors that a call brings into being; what an operation in place returns was there before."""
    return () if call.mutates else call.results


def _action(call: Call, plan: MemoryPlan) -> Action:
    """The call, writing its result to its place; an operation that cannot is followed by a copy."""
    args, kwargs = tree_map_only(Tensor, plan.place, call.inputs)
    if call.mutates:
        return partial(call.function, *args, **kwargs)
    results = tuple(plan.place(x) for x in call.results)
    name = call.function.overloadpacket.__name__
    if name in ("clone", "_to_copy"):
        return partial(results[0].copy_, args[0])
    if name in ("zeros_like", "new_zeros", "zeros"):
        # Straight into its place: to make zeros and copy them would be two passes.
        return results[0].zero_
    if call.writer is not None:
        return partial(call.writer, *args, **kwargs, out=results[0])
    return partial(_copy_results, call.function, args, kwargs, results)


def _writer(function, args, kwargs, results) -> Callable | None:
    """What computes the same into `out`: torch's public function, or the operator's form with out.

    A candidate is tried on the spot: one that gives another value, or none, is not used.
    """
    if len(results) != 1:
        return None
    packet = function.overloadpacket
    candidates = (getattr(torch, packet.__name__, None), getattr(packet, "out", None))
    for candidate in filter(None, candidates):
        scratch = torch.zeros_like(results[0])
        try:
            candidate(*args, **kwargs, out=scratch)
        except (TypeError, RuntimeError):
            continue
        # nan_to_num: a NaN does not equal itself, and a step may hold one.
        if scratch.shape == results[0].shape and torch.equal(scratch.nan_to_num(), results[0].nan_to_num()):
            return candidate
    return None


def _copy_results(function, args, kwargs, results):
    output = function(*args, **kwargs)
    for place, x in zip(results, tree_leaves(output), strict=True):
        place.copy_(x)
