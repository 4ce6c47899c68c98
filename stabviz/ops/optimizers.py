"""One optimizer step on ONE tensor of any shape; a flat vector of all parameters works as well.

The shape of every step is the same:

    param, state, measured = step(param, grad, state, *, lr, ...)

`state` comes from the `init` that stands beside the step in `OPTIMIZERS`. Nothing is edited in place. Every
hyperparameter may be a Python number or a tensor that broadcasts against `param`: a scalar per run under
`torch.vmap`, or one entry per parameter (a weight decay that spares the biases). Numbers are checked, tensors
are not: looking at a value would break vmap and wait for the device.

Our symbol -> the papers': m first_moment, v second_moment, t step, u velocity, lr alpha or eta.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
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
    param: Tensor, grad: Tensor, state: State, *, lr: Scalar, measure: bool = True
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
    grad = _checked("sgd_step", sgd_init, param, grad, state, lr)
    measured = _measures(measure, grad)
    return param - lr * grad, {"step": state["step"] + 1}, measured


def momentum_step(
    param: Tensor, grad: Tensor, state: State, *, lr: Scalar, beta1: Scalar = 0.9, measure: bool = True
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along a decaying SUM of gradients, u = beta1 u + grad: up to 1/(1-beta1) times sgd's step.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0 or beta1 outside [0, 1)
    Source: Polyak 1964; in the form of torch.optim.SGD(momentum=beta1)
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> first, state, _ = momentum_step(param, torch.tensor([1.0]), momentum_init(param), lr=0.1, beta1=0.5)
    >>> momentum_step(first, torch.tensor([1.0]), state, lr=0.1, beta1=0.5)[0]
    tensor([0.7500])
    """
    grad = _checked("momentum_step", momentum_init, param, grad, state, lr, beta1)
    u = beta1 * state["velocity"] + grad
    measured = _measures(measure, u)
    return param - lr * u, {"step": state["step"] + 1, "velocity": u}, measured


def nesterov_step(
    param: Tensor, grad: Tensor, state: State, *, lr: Scalar, beta1: Scalar = 0.9, measure: bool = True
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along grad + beta1 u, where u = beta1 u + grad: momentum that looks one step ahead.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0 or beta1 outside [0, 1)
    Source: Nesterov 1983; in the form of torch.optim.SGD(momentum=beta1, nesterov=True)

    >>> param = torch.tensor([1.0])
    >>> nesterov_step(param, torch.tensor([1.0]), momentum_init(param), lr=0.1, beta1=0.5)[0]
    tensor([0.8500])
    """
    grad = _checked("nesterov_step", momentum_init, param, grad, state, lr, beta1)
    u = beta1 * state["velocity"] + grad
    direction = grad + beta1 * u
    measured = _measures(measure, direction)
    return param - lr * direction, {"step": state["step"] + 1, "velocity": u}, measured


def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: Scalar,
    beta2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    measure: bool = True,
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
    grad = _checked("rmsprop_step", rmsprop_init, param, grad, state, lr, beta2=beta2, eps=eps)
    v = beta2 * state["second_moment"] + (1 - beta2) * grad**2
    direction = grad / (torch.sqrt(v) + eps)
    state = {"step": state["step"] + 1, "second_moment": v}
    measured = _measures(measure, direction, grad, state, eps=eps)
    return param - lr * direction, state, measured


def bias_corrected(
    moment: Tensor, beta: Scalar, step: Tensor, bias_correction: bool | Tensor = True
) -> Tensor:
    """Divide a running mean that began at 0 by 1 - beta^t, the share of it that has been filled so far.

    Shapes: moment any, step () -> moment's shape
    Source: Kingma and Ba 2015, arXiv:1412.6980, section 3

    >>> bias_corrected(torch.tensor([1.0]), beta=0.75, step=torch.tensor(1.0))
    tensor([4.])
    """
    if bias_correction is False:
        return moment
    # 1 - beta^t as -expm1(t log beta): float32's 1 - x would keep three digits of 1 - 0.999, and not every
    # device has float64. beta = 0 has the logarithm -inf, and is filled at once.
    log_beta = torch.log(beta) if isinstance(beta, Tensor) else math.log(beta) if beta else -math.inf
    t = step.to(torch.promote_types(moment.dtype, torch.float32))
    filled = -torch.expm1(t * log_beta)
    if bias_correction is not True:
        filled = torch.where(bias_correction, filled, 1.0)
    return moment / filled.to(moment.dtype)


def adam_direction(
    grad: Tensor,
    state: State,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool | Tensor = True,
) -> tuple[Tensor, State]:
    """Return Adam's update over lr, m_hat / (sqrt(v_hat) + eps), and the state with the new moments.

    Shapes: grad any equal shape, as the moments in state -> direction the same, state
    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1

    >>> adam_direction(torch.tensor([-7.0]), adam_init(torch.zeros(1)))[0]     # at first the sign alone
    tensor([-1.0000])
    """
    t = state["step"] + 1
    m = beta1 * state["first_moment"] + (1 - beta1) * grad
    # Not lerp: an infinite second moment stays infinite here, and becomes NaN there.
    v = beta2 * state["second_moment"] + (1 - beta2) * grad**2
    direction = adam_direction_from(m, v, t, beta1, beta2, eps, bias_correction)
    return direction, state | {"step": t, "first_moment": m, "second_moment": v}


def adam_direction_from(
    first_moment: Tensor,
    second_moment: Tensor,
    step: Tensor,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool | Tensor = True,
) -> Tensor:
    """Return Adam's update over lr from moments that already hold step `step`.

    Shapes: first_moment, second_moment any equal shape, step () -> the same
    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1

    >>> moments = torch.tensor([3.0]), torch.tensor([4.0])
    >>> adam_direction_from(*moments, torch.tensor(1.0), bias_correction=False)
    tensor([1.5000])
    """
    m_hat = bias_corrected(first_moment, beta1, step, bias_correction)
    v_hat = bias_corrected(second_moment, beta2, step, bias_correction)
    return m_hat / (torch.sqrt(v_hat) + eps)


def second_moment_ratio(grad: Tensor, second_moment: Tensor, eps: Scalar = 1e-8) -> Tensor:
    """Return RMS_t = sqrt(mean(g^2 / max(v, eps^2))), v bias-corrected: far above 1 = v is stale.

    Shapes: grad, second_moment any equal shape -> ()
    Source: Wortsman et al. 2023, arXiv:2304.13013, StableAdamW

    >>> second_moment_ratio(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(3.)
    """
    return _rms(grad / torch.sqrt(second_moment).clamp(min=eps))  # g^2 and eps^2 could leave float32


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
) -> tuple[Tensor, State, UpdateMeasures]:
    """Step along m_hat / (sqrt(v_hat) + eps); with bias_correction=False along m / (sqrt(v) + eps).

    Without the correction the step is (1 - beta1^t) / sqrt(1 - beta2^t) times as long: 3.16 at t = 1, 6.5 at
    t = 10.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1) or eps < 0
    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> adam_step(param, torch.tensor([123.0]), adam_init(param), lr=0.25)[0]     # the first step is lr
    tensor([0.7500])
    """
    grad = _checked("adam_step", adam_init, param, grad, state, lr, beta1, beta2, eps)
    direction, state = adam_direction(grad, state, beta1, beta2, eps, bias_correction)
    measured = _measures(measure, direction, grad, state, beta2, eps, bias_correction)
    return param - lr * direction, state, measured


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
) -> tuple[Tensor, State, UpdateMeasures]:
    """Shrink the parameter by lr * weight_decay, then take Adam's step: lr multiplies the decay, as in torch.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1), eps < 0 or weight_decay < 0
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; in the form of torch.optim.AdamW
    Lesson: 03-gradient-descent-to-adam

    >>> param = torch.tensor([1.0])
    >>> adamw_step(param, torch.tensor([0.0]), adam_init(param), lr=0.5, weight_decay=0.5)[0]
    tensor([0.7500])
    """
    grad = _checked("adamw_step", adam_init, param, grad, state, lr, beta1, beta2, eps, weight_decay)
    direction, state = adam_direction(grad, state, beta1, beta2, eps, bias_correction)
    measured = _measures(measure, direction, grad, state, beta2, eps, bias_correction)
    # Decoupled: added to the gradient the decay would be divided by sqrt(v) too.
    param = param * (1 - lr * weight_decay)
    return param - lr * direction, state, measured


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
) -> tuple[Tensor, State, UpdateMeasures]:
    """Shrink the parameter by weight_decay, NOT multiplied by lr, then take Adam's step.

    The papers multiply both lr and the decay by the schedule: pass `weight_decay * multiplier` for that.

    Shapes: param, grad any equal shape
    Raises: ValueError if shapes differ, lr < 0, a beta outside [0, 1), eps < 0 or weight_decay < 0
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; "independent" in Wortsman et al. 2023,
            arXiv:2309.14322

    >>> param = torch.tensor([1.0])
    >>> adamw_independent_step(param, torch.tensor([0.0]), adam_init(param), lr=0.5, weight_decay=0.5)[0]
    tensor([0.5000])
    """
    grad = _checked(
        "adamw_independent_step", adam_init, param, grad, state, lr, beta1, beta2, eps, weight_decay
    )
    direction, state = adam_direction(grad, state, beta1, beta2, eps, bias_correction)
    measured = _measures(measure, direction, grad, state, beta2, eps, bias_correction)
    # Without lr: a search over rates leaves the strength of the decay as it is.
    param = param * (1 - weight_decay)
    return param - lr * direction, state, measured


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
    grad = _checked("amsgrad_step", amsgrad_init, param, grad, state, lr, beta1, beta2, eps)
    t = state["step"] + 1
    m = beta1 * state["first_moment"] + (1 - beta1) * grad
    v = beta2 * state["second_moment"] + (1 - beta2) * grad**2
    # v itself is kept too: a maximum of maxima would never be a running mean again.
    largest = torch.maximum(state["largest_second_moment"], v)
    direction = adam_direction_from(m, largest, t, beta1, beta2, eps, bias_correction)
    used = {"step": t, "second_moment": largest}
    measured = _measures(measure, direction, grad, used, beta2, eps, bias_correction)
    state = {"step": t, "first_moment": m, "second_moment": v, "largest_second_moment": largest}
    return param - lr * direction, state, measured


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
    grad = _checked("stable_adamw_step", adam_init, param, grad, state, lr, beta1, beta2, eps, weight_decay)
    direction, state = adam_direction(grad, state, beta1, beta2, eps, bias_correction)
    v_hat = bias_corrected(state["second_moment"], beta2, state["step"], bias_correction)
    # Measured with the new v: the gradient of this step is in it already.
    clipped = 1 / second_moment_ratio(grad, v_hat, eps).clamp(min=1)
    measured = _measures(measure, clipped * direction, grad, state, beta2, eps, bias_correction)
    param = param * (1 - lr * clipped * weight_decay)
    return param - lr * clipped * direction, state, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One optimizer: its step, and the state it starts from."""

    init: Callable[[Tensor], State]
    """param -> state"""
    step: Callable[..., tuple[Tensor, State, UpdateMeasures]]
    """(param, grad, state, *, lr, **hyperparameters, measure) -> (param, state, UpdateMeasures)"""
    per_tensor: bool = False
    """True if the step mixes elements, so that a flat vector of all weights gives another result."""

    @property
    def hyperparameters(self) -> dict[str, float | bool]:
        """Name -> default of every keyword of `step` but lr (which has none) and measure."""
        keywords = inspect.signature(self.step).parameters.values()
        named = {p.name: p.default for p in keywords if p.kind is inspect.Parameter.KEYWORD_ONLY}
        return {name: default for name, default in named.items() if name not in ("lr", "measure")}


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(init=sgd_init, step=sgd_step),
    "momentum": Optimizer(init=momentum_init, step=momentum_step),
    "nesterov": Optimizer(init=momentum_init, step=nesterov_step),
    "rmsprop": Optimizer(init=rmsprop_init, step=rmsprop_step),
    "adam": Optimizer(init=adam_init, step=adam_step),
    "adamw": Optimizer(init=adam_init, step=adamw_step),
    "adamw_independent": Optimizer(init=adam_init, step=adamw_independent_step),
    "amsgrad": Optimizer(init=amsgrad_init, step=amsgrad_step),
    "stable_adamw": Optimizer(init=adam_init, step=stable_adamw_step, per_tensor=True),
}


def _measures(
    measure, direction, grad=None, state=None, beta2=0.0, eps=0.0, bias_correction=False
) -> UpdateMeasures:
    # NaN, not None: vmap maps tensors.
    nothing = torch.full((), math.nan, device=direction.device)
    if not measure:
        return UpdateMeasures(nothing, nothing)
    if state is None:
        return UpdateMeasures(_rms(direction), nothing)
    v_hat = bias_corrected(state["second_moment"], beta2, state["step"], bias_correction)
    return UpdateMeasures(_rms(direction), second_moment_ratio(grad, v_hat, eps))


def _rms(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    # In float32 at least: the square of a float16 above 255 is inf.
    return torch.linalg.vector_norm(x, dtype=wide) / math.sqrt(max(x.numel(), 1))


def _checked(
    function, init, param, grad, state, lr, beta1=0.0, beta2=0.0, eps=0.0, weight_decay=0.0
) -> Tensor:
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
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not isinstance(beta, Tensor) and not 0 <= beta < 1:
            raise ValueError(f"{function}: {name} must be in [0, 1); got {beta!r}")
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        # `not value >= 0` refuses NaN too.
        if not isinstance(value, Tensor) and not value >= 0:
            raise ValueError(f"{function}: {name} must be at least 0; got {value!r}")
    return grad.to(param.dtype)


_STATE_KEYS = {
    init: init(torch.zeros(())).keys()
    for init in (sgd_init, momentum_init, rmsprop_init, adam_init, amsgrad_init)
}
