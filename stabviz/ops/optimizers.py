"""One optimizer step on ONE tensor of any shape; a flat vector of all parameters works as well.

The shape of every step is the same:

    param, state, measured = step(param, grad, state, *, lr, ...)

`state` comes from the `init` that stands beside the step in `OPTIMIZERS`. Nothing is edited in place (except
by `in_blocks`, whose purpose it is). Every hyperparameter may be a Python number or a tensor that broadcasts
against `param`: a scalar per run under `torch.vmap`, or one entry per parameter (a weight decay that spares
the biases). Numbers are checked, tensors are not: looking at a value would break vmap and wait for the
device.
`out`, the tensors to write to ("param" and the names of the state), is for `in_blocks`, without gradients.

Our symbol -> the papers': first_moment m · second_moment v · beta1, beta2 the decay rates · lr alpha or eta.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor
State = dict[str, Tensor]


class UpdateMeasures(NamedTuple):
    """What one step measured; NaN where there is no such quantity or `measure=False`."""

    update_rms: Tensor
    """RMS of the update divided by lr (unit: lr); weight decay is not counted."""
    second_moment_ratio: Tensor
    """RMS_t = sqrt(mean(g^2 / max(v, eps^2))), v bias-corrected: far above 1 = v is stale."""


def optimizer_state(param: Tensor, names: tuple[str, ...] = ()) -> State:
    """Make a fresh state: "step" 0 (always float32) and one zero tensor like `param` for each name.

    Shapes: param any -> step (), every name param's shape
    Lesson: 03-gradient-descent-to-adam

    >>> sorted(optimizer_state(torch.ones(3), ("first_moment",)))
    ['first_moment', 'step']
    """
    return {"step": torch.zeros((), device=param.device)} | {name: torch.zeros_like(param) for name in names}


def sgd_init(param: Tensor) -> State:
    """Make the state of `sgd_step`: the step count alone."""
    return optimizer_state(param)


def momentum_init(param: Tensor) -> State:
    """Make the state of `momentum_step` and `nesterov_step`."""
    return optimizer_state(param, ("velocity",))


def rmsprop_init(param: Tensor) -> State:
    """Make the state of `rmsprop_step`."""
    return optimizer_state(param, ("second_moment",))


def adam_init(param: Tensor) -> State:
    """Make the state of `adam_step`, `adamw_step`, `adamw_independent_step` and `stable_adamw_step`."""
    return optimizer_state(param, ("first_moment", "second_moment"))


def amsgrad_init(param: Tensor) -> State:
    """Make the state of `amsgrad_step`."""
    return optimizer_state(param, ("first_moment", "second_moment", "largest_second_moment"))


def sgd_step(
    param: Tensor, grad: Tensor, state: State, *, lr: Scalar, measure: bool = True, out: State | None = None
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step against the gradient: param - lr * grad.

    Shapes: param, grad any equal shape
    Units:  update_rms in lr
    Raises: ValueError if shapes differ or lr < 0
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> sgd_step(param, torch.tensor([2.0]), sgd_init(param), lr=0.25)[0]
    tensor([0.5000])
    """
    grad = _checked("sgd_step", param, grad, state, sgd_init, lr=lr)
    measured = UpdateMeasures(_rms(grad), _nothing(param)) if measure else _unmeasured(param)
    return _descend(param, grad, lr, out), {"step": state["step"] + 1}, measured


def momentum_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along a decaying SUM of gradients, u = beta1 u + grad: up to 1/(1-beta1) times as long as sgd's
    step.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0 or beta1 outside [0, 1)
    Source: Polyak 1964; in the form of torch.optim.SGD(momentum=beta1)
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> first, state, _ = momentum_step(param, torch.tensor([1.0]), momentum_init(param), lr=0.1, beta1=0.5)
    >>> momentum_step(first, torch.tensor([1.0]), state, lr=0.1, beta1=0.5)[0]
    tensor([0.7500])
    """
    grad = _checked("momentum_step", param, grad, state, momentum_init, lr=lr, beta1=beta1)
    velocity = torch.add(beta1 * state["velocity"], grad, out=_place(out, "velocity"))
    measured = UpdateMeasures(_rms(velocity), _nothing(param)) if measure else _unmeasured(param)
    return _descend(param, velocity, lr, out), {"step": state["step"] + 1, "velocity": velocity}, measured


def nesterov_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along grad + beta1 u, where u = beta1 u + grad: momentum that looks one step ahead.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0 or beta1 outside [0, 1)
    Source: Nesterov 1983; in the form of torch.optim.SGD(momentum=beta1, nesterov=True)
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> nesterov_step(param, torch.tensor([1.0]), momentum_init(param), lr=0.1, beta1=0.5)[0]
    tensor([0.8500])
    """
    grad = _checked("nesterov_step", param, grad, state, momentum_init, lr=lr, beta1=beta1)
    velocity = torch.add(beta1 * state["velocity"], grad, out=_place(out, "velocity"))
    direction = grad + beta1 * velocity
    measured = UpdateMeasures(_rms(direction), _nothing(param)) if measure else _unmeasured(param)
    return _descend(param, direction, lr, out), {"step": state["step"] + 1, "velocity": velocity}, measured


def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along grad / (sqrt(v) + eps), v the running mean of grad^2, without bias correction.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, beta2 outside [0, 1) or eps < 0
    Source: Tieleman and Hinton 2012, lecture notes; in the form of torch.optim.RMSprop(alpha=beta2)
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> rmsprop_step(param, torch.tensor([3.0]), rmsprop_init(param), lr=0.05)[0]     # 1 - 0.05 / sqrt(0.01)
    tensor([0.5000])
    """
    grad = _checked("rmsprop_step", param, grad, state, rmsprop_init, lr=lr, beta2=beta2, eps=eps)
    eps = _like(eps, param)
    second_moment = _mean_of_squares(state["second_moment"], grad, beta2, out)
    root = second_moment.sqrt()
    way = _Way(along=grad, below=root + eps, gain=1.0, grad=grad, root=root, eps=eps, root_scale=1.0)
    measured = _measures(way) if measure else _unmeasured(param)
    state = {"step": state["step"] + 1, "second_moment": second_moment}
    return _follow(param, way, lr, out), state, measured


def adam_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool | Tensor = True,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along m_hat / (sqrt(v_hat) + eps); with bias_correction=False along m / (sqrt(v) + eps).

    Without the correction the step is (1 - beta1^t) / sqrt(1 - beta2^t) times as long: 3.16 at t = 1, 6.5 at
    t = 10.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1) or eps < 0
    Source: Kingma and Ba 2015, arXiv:1412.6980; in a rearranged order, with eps * sqrt(1 - beta2^t)
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> adam_step(param, torch.tensor([123.0]), adam_init(param), lr=0.25)[0]     # the first step is lr
    tensor([0.7500])
    """
    grad = _checked("adam_step", param, grad, state, adam_init, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
    state = _next_moments(grad, state, beta1, beta2, out)
    way = _adam_way(grad, state["second_moment"], state, beta1, beta2, eps, bias_correction)
    measured = _measures(way) if measure else _unmeasured(param)
    return _follow(param, way, lr, out), state, measured


def adamw_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.01,
    bias_correction: bool | Tensor = True,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Shrink the parameter by lr * weight_decay, then take Adam's step: the decay is coupled to lr, as in
    torch.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1), eps < 0 or weight_decay < 0
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; in the form of torch.optim.AdamW, lr multiplies the
            decay
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> adamw_step(param, torch.tensor([0.0]), adam_init(param), lr=0.5, weight_decay=0.5)[0]
    tensor([0.7500])
    """
    grad = _checked(
        "adamw_step",
        param,
        grad,
        state,
        adam_init,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )
    state = _next_moments(grad, state, beta1, beta2, out)
    way = _adam_way(grad, state["second_moment"], state, beta1, beta2, eps, bias_correction)
    shrunk = _shrunk(param, weight_decay, lr, out)
    measured = _measures(way) if measure else _unmeasured(param)
    return _follow(shrunk, way, lr, out), state, measured


def adamw_independent_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 1e-4,
    bias_correction: bool | Tensor = True,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Shrink the parameter by weight_decay, NOT multiplied by lr, then take Adam's step.

    The papers multiply both lr and the decay by the schedule: pass `weight_decay * multiplier` for that.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1), eps < 0 or weight_decay < 0
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; "independent" in Wortsman et al. 2023,
            arXiv:2309.14322
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> adamw_independent_step(param, torch.tensor([0.0]), adam_init(param), lr=0.5, weight_decay=0.5)[0]
    tensor([0.5000])
    """
    grad = _checked(
        "adamw_independent_step",
        param,
        grad,
        state,
        adam_init,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )
    state = _next_moments(grad, state, beta1, beta2, out)
    way = _adam_way(grad, state["second_moment"], state, beta1, beta2, eps, bias_correction)
    shrunk = _shrunk(param, weight_decay, 1.0, out)
    measured = _measures(way) if measure else _unmeasured(param)
    return _follow(shrunk, way, lr, out), state, measured


def amsgrad_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool | Tensor = True,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Take Adam's step with the LARGEST second moment so far: one large gradient shortens all later steps.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1) or eps < 0
    Source: Reddi et al. 2018, arXiv:1904.09237; in the form of torch.optim.Adam(amsgrad=True): the paper has
            neither bias correction nor eps; the maximum is taken before the correction
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> no_memory = {"beta1": 0.0, "beta2": 0.0}
    >>> first, state, _ = amsgrad_step(param, torch.tensor([3.0]), amsgrad_init(param), lr=0.1, **no_memory)
    >>> amsgrad_step(first, torch.tensor([-1.0]), state, lr=0.3, **no_memory)[0]     # 0.9 + 0.3 * 1/3
    tensor([1.])
    """
    grad = _checked(
        "amsgrad_step", param, grad, state, amsgrad_init, lr=lr, beta1=beta1, beta2=beta2, eps=eps
    )
    largest = state["largest_second_moment"]
    state = _next_moments(grad, state, beta1, beta2, out)
    largest = torch.maximum(largest, state["second_moment"], out=_place(out, "largest_second_moment"))
    way = _adam_way(grad, largest, state, beta1, beta2, eps, bias_correction)
    state = state | {"largest_second_moment": largest}
    measured = _measures(way) if measure else _unmeasured(param)
    return _follow(param, way, lr, out), state, measured


def stable_adamw_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.01,
    bias_correction: bool | Tensor = True,
    measure: bool = True,
    out: State | None = None,
) -> tuple[Tensor, State, UpdateMeasures]:
    """Take AdamW's step with lr / max(1, RMS_t): a stale second moment shortens the step, decay and all.

    RMS_t is ONE number for this tensor: call it per weight, not on a flat vector of them.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1), eps < 0 or weight_decay < 0
    Source: Wortsman et al. 2023, arXiv:2304.13013, StableAdamW; update clipping from Adafactor,
            arXiv:1804.04235
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> state = adam_init(param) | {"step": torch.tensor(1000.0), "second_moment": torch.tensor([1.0])}
    >>> stable_adamw_step(param, torch.tensor([10.0]), state, lr=0.1)[2].second_moment_ratio > 7
    tensor(True)
    """
    grad = _checked(
        "stable_adamw_step",
        param,
        grad,
        state,
        adam_init,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )
    state = _next_moments(grad, state, beta1, beta2, out)
    way = _adam_way(grad, state["second_moment"], state, beta1, beta2, eps, bias_correction)
    ratio = _staleness(way)
    lr_t = lr / ratio.clamp(min=1)
    shrunk = _shrunk(param, weight_decay, lr_t, out)
    rms = _measures(way).update_rms / ratio.clamp(min=1) if measure else _nothing(param)
    measured = UpdateMeasures(rms, ratio if measure else rms)
    return _follow(shrunk, way, lr_t, out), state, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One optimizer: its step, the state it starts from, and what may be set."""

    init: Callable[[Tensor], State]
    """param -> state"""
    step: Callable[..., tuple[Tensor, State, UpdateMeasures]]
    """(param, grad, state, *, lr, **hyperparameters, measure) -> (param, state, UpdateMeasures)"""
    hyperparameters: dict[str, float | bool]
    """Name -> default of every keyword of `step` but lr (which has none) and measure."""
    per_tensor: bool = False
    """True if the step mixes elements, so that a flat vector of all weights gives another result."""


_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": True}

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(init=sgd_init, step=sgd_step, hyperparameters={}),
    "momentum": Optimizer(init=momentum_init, step=momentum_step, hyperparameters={"beta1": 0.9}),
    "nesterov": Optimizer(init=momentum_init, step=nesterov_step, hyperparameters={"beta1": 0.9}),
    "rmsprop": Optimizer(init=rmsprop_init, step=rmsprop_step, hyperparameters={"beta2": 0.99, "eps": 1e-8}),
    "adam": Optimizer(init=adam_init, step=adam_step, hyperparameters=_ADAM),
    "adamw": Optimizer(init=adam_init, step=adamw_step, hyperparameters=_ADAM | {"weight_decay": 0.01}),
    "adamw_independent": Optimizer(
        init=adam_init, step=adamw_independent_step, hyperparameters=_ADAM | {"weight_decay": 1e-4}
    ),
    "amsgrad": Optimizer(init=amsgrad_init, step=amsgrad_step, hyperparameters=_ADAM),
    "stable_adamw": Optimizer(
        init=adam_init,
        step=stable_adamw_step,
        hyperparameters=_ADAM | {"weight_decay": 0.01},
        per_tensor=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Way:
    """Adam's update is lr * gain * along / below: the bias corrections are scalars and cost no pass."""

    along: Tensor
    below: Tensor
    gain: Scalar
    grad: Tensor
    root: Tensor
    eps: Scalar
    root_scale: Scalar

    @cached_property
    def direction(self) -> Tensor:
        return self.along / self.below


def _place(out: State | None, name: str) -> Tensor | None:
    return out[name] if out else None


def _next_moments(grad: Tensor, state: State, beta1: Scalar, beta2: Scalar, out: State | None) -> State:
    return {
        "step": state["step"] + 1,
        # 1 - beta before the cast to grad's dtype: bfloat16 has no 0.999.
        "first_moment": torch.lerp(
            state["first_moment"], grad, _like(1 - beta1, grad), out=_place(out, "first_moment")
        ),
        "second_moment": _mean_of_squares(state["second_moment"], grad, beta2, out),
    }


def _adam_way(grad, second_moment, state, beta1, beta2, eps, bias_correction) -> _Way:
    """m_hat / (sqrt(v_hat) + eps) = sqrt(c2)/c1 * m / (sqrt(v) + eps sqrt(c2)), with c = 1 - beta^t."""
    c1 = _correction(beta1, state["step"], bias_correction)
    c2 = _correction(beta2, state["step"], bias_correction)
    root_scale = c2**0.5
    eps = _like(eps * root_scale, grad)
    root = second_moment.sqrt()
    return _Way(
        along=state["first_moment"],
        below=root + eps,
        gain=root_scale / c1,
        grad=grad,
        root=root,
        eps=eps,
        root_scale=root_scale,
    )


def _correction(beta: Scalar, step: Scalar, bias_correction: bool | Tensor) -> Scalar:
    if bias_correction is False:
        return 1.0
    # float64: 1 - 0.999 keeps only three digits in float32's 1 - x.
    beta, step = (x.double() if isinstance(x, Tensor) else x for x in (beta, step))
    correction = 1 - beta**step
    return correction if bias_correction is True else torch.where(bias_correction, correction, 1.0)


def _mean_of_squares(old: Tensor, grad: Tensor, beta2: Scalar, out: State | None) -> Tensor:
    # Not lerp: an infinite second moment stays infinite here, and becomes NaN there.
    place = _place(out, "second_moment")
    kept = torch.mul(old, _like(beta2, grad), out=place)
    if isinstance(beta2, Tensor):
        return torch.addcmul(kept, grad * _like(1 - beta2, grad), grad, out=place)
    return torch.addcmul(kept, grad, grad, value=1 - beta2, out=place)


def _shrunk(param: Tensor, weight_decay: Scalar, lr: Scalar, out: State | None) -> Tensor:
    if not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return param
    return torch.mul(param, _like(1 - lr * weight_decay, param), out=_place(out, "param"))


def _descend(param: Tensor, direction: Tensor, length: Scalar, out: State | None) -> Tensor:
    place = _place(out, "param")
    if isinstance(length, Tensor):
        return torch.addcmul(param, direction, _like(length, param), value=-1, out=place)
    return torch.sub(param, direction, alpha=length, out=place)


def _follow(param: Tensor, way: _Way, lr: Scalar, out: State | None) -> Tensor:
    """param - lr gain along / below, in one pass where the length is a number."""
    length = lr * way.gain
    if isinstance(length, Tensor):
        return _descend(param, way.direction, length, out)
    return torch.addcdiv(param, way.along, way.below, value=-length, out=_place(out, "param"))


def _measures(way: _Way) -> UpdateMeasures:
    rms, ratio = _rms(way.direction), _staleness(way)
    return UpdateMeasures(rms * _like(way.gain, rms), ratio)


def _staleness(way: _Way) -> Tensor:
    """RMS_t: g^2 / max(v_hat, eps^2) is the square of sqrt(c2) * g / max(sqrt(v), eps sqrt(c2))."""
    ratio = _rms(way.grad / way.root.clamp(min=way.eps))
    return ratio * _like(way.root_scale, ratio)


def _rms(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dtype=wide) / math.sqrt(max(x.numel(), 1))


def _nothing(param: Tensor) -> Tensor:
    return torch.full((), math.nan, device=param.device)


def _unmeasured(param: Tensor) -> UpdateMeasures:
    nothing = _nothing(param)
    return UpdateMeasures(nothing, nothing)


def _like(value: Scalar, other: Tensor) -> Scalar:
    return value.to(other.device, other.dtype) if isinstance(value, Tensor) else value


def _checked(function: str, param: Tensor, grad: Tensor, state: State, init, **hyperparameters) -> Tensor:
    """Refuse what cannot work and return the gradient in the parameter's dtype."""
    if grad.shape != param.shape:
        raise ValueError(
            f"{function}: grad must be of param's shape {tuple(param.shape)}; got {tuple(grad.shape)!r}"
        )
    if state.keys() != (expected := _STATE_KEYS[init]):
        raise ValueError(
            f"{function}: state must be a dict of {sorted(expected)}; got {sorted(state)!r}. "
            f"Make it with {init.__name__}(param)."
        )
    for name, value in hyperparameters.items():
        if isinstance(value, Tensor):
            continue
        if name.startswith("beta") and not 0 <= value < 1:
            raise ValueError(f"{function}: {name} must be in [0, 1); got {value!r}")
        if not value >= 0:
            raise ValueError(f"{function}: {name} must be at least 0; got {value!r}")
    return grad.to(param.dtype)


_STATE_KEYS = {
    init: init(torch.zeros(())).keys()
    for init in (sgd_init, momentum_init, rmsprop_init, adam_init, amsgrad_init)
}
