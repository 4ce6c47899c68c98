"""Your function in the lab: a plain function of ONE model, where the lab takes a name.

    grid(optimizer=my_step, clip=my_clip, attention=my_attention, loss=my_loss, schedule=my_schedule)
    grid(block=my_block)

optimizer
    (param_P, grad_P, state, lr) -> (param_P, state), where state holds "step", "first_moment" and
    "second_moment", all 0 at first; or as on paper, (param_P, grad_P, m, v, t, lr) -> (param_P, m, v), with
    moments under any names, all 0 at first, and t = 1, 2, ...
clip
    (grad_P, max_norm) -> clipped_P, or (clipped_P, norm); max_norm is the knob clip_norm
attention
    (query_BHLK, key_BHMK, value_BHMK, mask) -> out_BHLK, or (out_BHLK, anything); mask_LM True = may attend.
    It must hide later tokens: with `mask`, with `causal` (True), or by itself; not in the task "masked",
    where `mask` is all True and `causal` False
block
    (params, stream_BLD) -> stream_BLD, or (stream_BLD, anything); params are those of ONE block, by their
    names in `models.init_transformer` without "block0.", such as "attention.query.weight". It must hide later
    tokens: with `mask` (mask_LM True = may attend), with `causal` (True), or by itself; `heads` is a knob.
    What stands before and after the blocks is ours: with norm "pre" a layer norm on the last stream.
    max_attention_logit and attention_entropy are not measured
loss
    (logits_NV, targets_N) -> loss (), or (loss, anything); in "copy" and "masked" a target of -100 is none.
    In the task "pairs" (x_BE, y_BE) -> loss (), embeddings as the encoder gives them, not of length 1; one
    that asks for x_predicted and y_predicted gets both once more, through a linear map that learns as well
schedule
    (step, total_steps, warmup_steps) -> multiplier of the peak rate; numbers, step = 0, 1, ...

P are all parameters of one model in one vector. An argument named like a knob (beta1, eps, softcap, ...) is
fed from that knob, unless it stands where one of the table above is missing: that is refused.
Arguments that are not needed are left out of the signature.

A function depends on its arguments alone and edits none in place. The engine maps it over runs (`torch.vmap`)
and records it like its own. One that looks at a tensor's value (an `if`, `.item()`) runs as written, run by
run, and the Trace's config says so under "note".
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from stabviz.lab.experiment import KNOBS, Run, named
from stabviz.lab.replay import NotReplayable, record
from stabviz.seeds import generator

Sources = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yours:
    """A function of the reader's, and which of its parameters is fed from what."""

    knob: str
    function: Callable
    fed_from: dict[str, str]
    """Name of a parameter -> name of its source: an argument of the table above, or a knob."""
    positional: tuple[str, ...]
    """Sources handed over by place, to functions that take no names."""

    def __call__(self, sources: Sources) -> Any:
        # A knob that the engine did not hand over keeps the function's own default.
        by_name = {name: sources[source] for name, source in self.fed_from.items() if source in sources}
        return self.function(*(sources[name] for name in self.positional), **by_name)

    @property
    def knobs(self) -> tuple[str, ...]:
        """The knobs that it asks for."""
        return tuple(source for source in self.fed_from.values() if source in KNOBS)

    def refuse(self, must: str, got: Any = None, *, did: str = "") -> ValueError:
        """Return the error that names the function, what it must do and what came (or it did) instead."""
        words = did or _described(got)
        return ValueError(f"train: {self.knob} {named(self.function)} must {must}; got {words}")


def yours(knob: str, function: Callable, places: Sequence[str], others: Sequence[str] = ()) -> Yours:
    """Read a function's signature: a parameter is fed by its name, else by its place.

    Raises: ValueError for a parameter that is neither, is no knob and has no default
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return Yours(knob=knob, function=function, fed_from={}, positional=tuple(places))
    # A place that another parameter takes by name is no longer free for one of another name.
    names = {SAME.get(p.name, p.name) if SAME.get(p.name) in places else p.name for p in parameters}
    open_places = [name for name in places if name not in names]
    fed_from, positional = {}, []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
        if SAME.get(parameter.name) in places:
            source = SAME[parameter.name]
        elif parameter.name in (*places, *others):
            source = parameter.name
        elif parameter.name in KNOBS and open_places and required:
            must = f"must say whether {parameter.name!r} is {open_places[0]} or the knob"
            hint = f"Call it {open_places[0]}, or put it behind a * to have the knob"
            raise ValueError(f"train: {knob} {named(function)} {must}; got both. {hint}")
        elif parameter.name in KNOBS:
            source = parameter.name
        elif open_places and parameter.kind is not parameter.KEYWORD_ONLY:
            source = open_places.pop(0)
        elif parameter.default is not parameter.empty:
            continue
        elif knob == "optimizer":
            source = f"moment {parameter.name}"
        else:
            must = f"must take only {', '.join((*places, *others))} and knobs without a default"
            raise ValueError(f"train: {knob} {named(function)} {must}; got {parameter.name!r}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(source)
        else:
            fed_from[parameter.name] = source
    return Yours(knob=knob, function=function, fed_from=fed_from, positional=tuple(positional))


SAME = {"steps": "total_steps", "clip_norm": "max_norm"}
"""Knobs that are the same as a place of another name."""


class YourOptimizer:
    """An optimizer step of the reader's, in the engine's form."""

    per_tensor = False

    def __init__(self, function: Callable):
        self.yours = yours("optimizer", function, ("param", "grad"), ("state", "t", "step", "lr"))
        self.hyperparameters = tuple(name for name in self.yours.knobs if name != "lr")
        sources = (*self.yours.positional, *self.yours.fed_from.values())
        self.moments = [source.removeprefix("moment ") for source in sources if source.startswith("moment ")]
        self.with_state = "state" in sources

    def init(self, param: Tensor) -> dict[str, Tensor]:
        """Make the first state; the count is float64: in float32 1 - 0.999**t has three digits."""
        moments = ("first_moment", "second_moment") if self.with_state else self.moments
        wide = torch.float32 if param.device.type == "mps" else torch.float64  # MPS has no float64
        count = torch.zeros((), dtype=wide, device=param.device)
        return {"step": count} | {name: torch.zeros_like(param) for name in moments}

    def step(self, param, grad, state, *, lr, measure, **knobs):
        """Call the function, check what it returns, and measure the update from the parameters."""
        count = state["step"] + 1
        # A copy of the dict: what a function puts into it must not reach the state before the step is taken.
        sources = {"param": param, "grad": grad, "state": dict(state), "t": count, "step": count, "lr": lr}
        result = self.yours(sources | {f"moment {name}": state[name] for name in self.moments} | knobs)
        new, after, seen = self._taken_apart(result, param, state)
        measured = {}
        if measure:
            update = ((new - param) / lr).square().mean().sqrt()
            measured["update_rms"] = getattr(seen, "update_rms", update)
            if hasattr(seen, "second_moment_ratio"):
                measured["second_moment_ratio"] = seen.second_moment_ratio
        return new, state | after | ({} if self.with_state else {"step": count}), measured

    def _taken_apart(self, result, param, state):
        seen = None
        if self.with_state:
            must = f"return (param, state), the state a dict of {sorted(state)}"
            if not isinstance(result, tuple) or len(result) not in (2, 3) or not isinstance(result[1], dict):
                raise self.yours.refuse(must, result)
            new, after, seen = (*result, None)[:3]
            if not after.keys() <= state.keys():
                raise self.yours.refuse(f"{must} (other moments: take them as arguments)", result)
            after = {name: torch.as_tensor(value).to(state[name].device) for name, value in after.items()}
            after |= {"step": after["step"].to(state["step"].dtype)} if "step" in after else {}
        else:
            must = f"return ({', '.join(('param', *self.moments))})" if self.moments else "return param"
            parts = result if isinstance(result, tuple) else (result,)
            if len(parts) != 1 + len(self.moments):
                raise self.yours.refuse(must, result)
            new, after = parts[0], dict(zip(self.moments, parts[1:], strict=True))
        for name, value, like in (("param", new, param), *((n, v, state[n]) for n, v in after.items())):
            if not _alike(value, like):
                raise self.yours.refuse(f"{must}, {name} being {_described(like)}", value)
        return new, after, seen


PLACES = {
    "clip": (("grad", "max_norm"), ()),
    "attention": (("query", "key", "value"), ("mask", "causal")),
    "block": (("params", "stream"), ("mask", "causal")),
    "loss": (("logits", "targets"), ()),
    "loss of pairs": (("x", "y"), ("x_predicted", "y_predicted")),
}
"""What a function of one tensor gets: first by place or name, then by name alone."""


class YourTensor:
    """A clip rule, attention, block or loss of the reader's: call(*what PLACES says, knobs) -> one tensor."""

    def __init__(self, knob: str, function: Callable, places: str = ""):
        first, by_name = PLACES[places or knob]
        self.names = (*first, *by_name)
        self.yours = yours(knob, function, first, by_name)

    def __call__(self, *arguments: Any) -> Tensor:
        *given, knobs = arguments
        result = self.yours(dict(zip(self.names, given, strict=True)) | knobs)
        value = result[0] if isinstance(result, tuple) and result else result
        # A loss is one number, a block's result is as the stream it got; the others as their first argument.
        like = given[1] if self.yours.knob == "block" else given[0]
        like = like[0, 0] if self.yours.knob == "loss" else like
        if not _alike(value, like):
            raise self.yours.refuse(f"return {_described(like)}", value)
        return value


def your_multipliers(function: Callable, run: Run) -> Tensor:
    """Ask a schedule for the multiplier of every step, (S,) float64; it gets plain numbers."""
    mine = yours("schedule", function, ("step", "total_steps", "warmup_steps"))
    knobs = {name: getattr(run, name) for name in KNOBS}
    shares = []
    for step in range(run.steps):
        sources = knobs | {"total_steps": run.steps, "warmup_steps": min(run.warmup_steps, run.steps)}
        try:
            share = mine(sources | {"step": step})
        except TypeError:  # written for tensors: torch.cos takes no number
            share = mine(sources | {"step": torch.tensor(step, dtype=torch.float64)})
        try:
            shares.append(float(share))
        except (TypeError, ValueError, RuntimeError) as error:
            raise mine.refuse("return one number, the multiplier of the peak rate", share) from error
    return torch.tensor(shares, dtype=torch.float64)


def _alike(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype


def _described(value: Any) -> str:
    """A tensor by dtype and shape, everything else as it prints."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return f"a dict of {sorted(value)}" if isinstance(value, dict) else repr(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an examination found: may the function be mapped over runs, and recorded; and a line if not."""

    mapped: bool = True
    recorded: bool = True
    note: str = ""


def made_up(*shape: int) -> Tensor:
    """Return normal numbers to try a function on, always the same ones."""
    return torch.randn(*shape, generator=generator(0, "made up"))


def examine(mine: Yours, call: Callable, examples: tuple) -> Finding:
    """Try a function on tensors of the shapes to come: one run alone, then the runs mapped and recorded.

    `call` is the engine's form and gets `examples`, trees of tensors with a leading axis of runs. What stands
    inside the loss is differentiated too.

    Raises: ValueError, naming the function, if it fails alone, edits an argument or returns what cannot be
            used
    """
    differentiable = mine.knob in ("attention", "block", "loss")
    _try_alone(mine, call, examples, differentiable)
    examples = tree_map(torch.clone, examples)

    def found(reason: str, how: str, mapped: bool = True) -> Finding:
        note = f"{mine.knob} {named(mine.function)} {reason}: it runs {how}, which takes longer"
        return Finding(mapped=mapped, recorded=False, note=note)

    def step():
        with torch.enable_grad():
            leaves = tree_map(
                lambda x: x.detach().requires_grad_(differentiable and x.is_floating_point()), examples
            )
            result = torch.vmap(call)(*leaves)
            if not differentiable:
                return result
            wanted = [x for x in tree_leaves(leaves) if x.requires_grad]
            return torch.autograd.grad(result.sum(), wanted, allow_unused=True, materialize_grads=True)

    try:
        step()
    except Exception as error:
        return found(_reason(error), "run by run, as written", mapped=False)
    try:
        actions, replayed = record(step, tree_leaves(examples))
    except NotReplayable:
        return found("hands a tensor's value to Python", "as written")
    # Other values: what a recording takes for constant, a counter or a random draw, now shows.
    for x in tree_leaves(examples):
        if x.is_floating_point():
            x.mul_(0.75)
    with torch.no_grad():
        for action in actions:
            action()
    for ours, theirs in zip(tree_leaves(replayed), tree_leaves(step()), strict=True):
        if not torch.allclose(ours, theirs, rtol=1e-4, equal_nan=True):
            return found("depends on more than its arguments", "as written")
    return Finding()


def _try_alone(mine: Yours, call: Callable, examples: tuple, differentiable: bool) -> None:
    """Call the function on one run; what it must not do is an error that names it."""
    with torch.enable_grad():
        # Times 1: not a leaf, so that an edit in place reaches our own check and its words.
        def first_run(x: Tensor) -> Tensor:
            leaf = x[0].clone()
            return leaf.requires_grad_() * 1 if differentiable and x.is_floating_point() else leaf

        alone = tree_map(first_run, examples)
        # Torch counts the edits of a tensor: one more than before is an edit in place.
        versions = [x._version for x in tree_leaves(alone)]
        try:
            result = call(*alone)
        except Exception as error:
            if str(error).startswith("train: "):  # our own refusal says more already
                raise
            raise mine.refuse("run on one model", error) from error
    if versions != [x._version for x in tree_leaves(alone)]:
        raise mine.refuse("leave its arguments as they are (x = x + y, not x += y)", did="an edit in place")
    if differentiable and not result.requires_grad:
        raise mine.refuse("return what can be differentiated", did="a result without a graph (detach?)")


def _reason(error: Exception) -> str:
    words = str(error)
    if "data-dependent control flow" in words:
        return "branches on a tensor's value"
    if ".item()" in words:
        return "hands a tensor's value to Python"
    return f"cannot be mapped over runs ({words.splitlines()[0][:100] if words else type(error).__name__})"
