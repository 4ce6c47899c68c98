"""Learning-rate schedules: a multiplier of the peak learning rate for each step.

`step` counts the updates ALREADY taken, so the first update asks for step 0. It may be an int or a tensor
(all steps at once, for a plot); the lengths may be tensors too (a grid of warm-ups). Numbers are checked,
tensors are not. A floating-point `step` keeps its dtype, anything else gives torch's default dtype.
"""

import math

import torch
from torch import Tensor

Steps = int | float | Tensor
State = dict[str, Tensor]


def constant(step: Steps) -> Tensor:
    """Return 1 at every step.

    Shapes: step any -> same
    Lesson: 05-schedules

    >>> constant(7)
    tensor(1.)
    """
    return torch.ones_like(_step("constant", step))


def linear_warmup(step: Steps, warmup_steps: Steps) -> Tensor:
    """Rise to 1 in equal parts: 1/warmup at the first update, 1 at update number `warmup_steps` and after.

    Shapes: step any -> same
    Raises: ValueError if step or warmup_steps is negative
    Source: Goyal et al. 2017, arXiv:1706.02677 (gradual warm-up)
    Lesson: 05-schedules

    >>> linear_warmup(torch.arange(5), 4)
    tensor([0.2500, 0.5000, 0.7500, 1.0000, 1.0000])
    """
    step = _step("linear_warmup", step)
    warmup_steps = _length("linear_warmup", "warmup_steps", warmup_steps, step)
    # step + 1: the first update would otherwise have rate 0 and change nothing.
    return ((step + 1) / warmup_steps.clamp(min=1)).clamp(max=1)


def cosine(
    step: Steps, total_steps: Steps, warmup_steps: Steps = 0, final_share: float | Tensor = 0.0
) -> Tensor:
    """Warm up, then fall along half a cosine to `final_share`, reached at step = total_steps and kept.

    The last of total_steps updates has step total_steps - 1 and is therefore just above the end.

    Shapes: step any -> same
    Raises: ValueError if total_steps < warmup_steps or a length is negative
    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts
    Lesson: 05-schedules

    >>> cosine(torch.tensor([0, 4, 8]), 8)
    tensor([1.0000, 0.5000, 0.0000])
    """
    step = _step("cosine", step)
    progress = _progress("cosine", step, total_steps, warmup_steps)
    fall = (1 + torch.cos(math.pi * progress)) / 2
    return linear_warmup(step, warmup_steps) * (final_share + (1 - final_share) * fall)


def inverse_sqrt(step: Steps, warmup_steps: Steps) -> Tensor:
    """Warm up, then fall as sqrt(warmup / (step + 1)); the peak is 1, at update number `warmup_steps`.

    Shapes: step any -> same
    Raises: ValueError if step or warmup_steps is negative
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 5.3; deviation: scaled to a peak of 1
    Lesson: 05-schedules

    >>> inverse_sqrt(torch.tensor([0, 3, 15]), 4)
    tensor([0.2500, 1.0000, 0.5000])
    """
    step = _step("inverse_sqrt", step)
    warmup_steps = _length("inverse_sqrt", "warmup_steps", warmup_steps, step).clamp(min=1)
    return torch.minimum((step + 1) / warmup_steps, torch.sqrt(warmup_steps / (step + 1)))


def linear_decay(step: Steps, total_steps: Steps, warmup_steps: Steps = 0) -> Tensor:
    """Warm up, then fall in a straight line to 0, reached at step = total_steps and kept.

    Shapes: step any -> same
    Raises: ValueError if total_steps < warmup_steps or a length is negative
    Lesson: 05-schedules

    >>> linear_decay(torch.tensor([0, 2, 4, 5]), 4)
    tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    step = _step("linear_decay", step)
    return linear_warmup(step, warmup_steps) * (
        1 - _progress("linear_decay", step, total_steps, warmup_steps)
    )


def warmup_stable_decay(
    step: Steps, total_steps: Steps, warmup_steps: Steps = 0, decay_share: float | Tensor = 0.2
) -> Tensor:
    """Warm up, stay at 1, and fall as 1 - sqrt(p) over the last `decay_share` of the steps, to 0.

    Before the fall it does not depend on total_steps: a run may go on at the peak and fall when it must end.
    A warm-up longer than the rest leaves a shorter fall. p is the share of the fall that is done.

    Shapes: step any -> same
    Raises: ValueError if total_steps < warmup_steps, a length is negative or decay_share outside [0, 1]
    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395, the WSD schedule; the fall 1 - sqrt(p): Hägele et al.
            2024, arXiv:2405.18392; MiniCPM's own fall is exponential
    Lesson: 05-schedules

    >>> warmup_stable_decay(torch.tensor([0, 5, 6, 7, 10]), 10, 2, decay_share=0.4)
    tensor([0.5000, 1.0000, 1.0000, 0.5000, 0.0000])
    """
    if not isinstance(decay_share, Tensor) and not 0 <= decay_share <= 1:
        raise ValueError(f"warmup_stable_decay: decay_share must be in [0, 1]; got {decay_share!r}")
    step = _step("warmup_stable_decay", step)
    total, warmup = _lengths("warmup_stable_decay", step, total_steps, warmup_steps)
    # Whole steps: the root makes a fall that starts 1e-7 of a step early visible.
    decay_start = torch.maximum(warmup, total - torch.round(decay_share * total))
    p = _progress("warmup_stable_decay", step, total, decay_start)
    return linear_warmup(step, warmup) * (1 - torch.sqrt(p))


def plateau_state(device: torch.device | str | None = None) -> State:
    """Make the state of `reduce_on_plateau`: best value inf, nothing bad yet, multiplier 1.

    >>> plateau_state()["multiplier"]
    tensor(1.)
    """
    return {
        "best": torch.full((), math.inf, device=device),
        "bad_checks": torch.zeros((), device=device),
        "multiplier": torch.ones((), device=device),
    }


def reduce_on_plateau(
    state: State,
    value: float | Tensor,
    *,
    factor: float | Tensor = 0.1,
    patience: int | Tensor = 10,
    threshold: float | Tensor = 1e-4,
) -> tuple[State, Tensor]:
    """Multiply the multiplier by `factor` once `value` has not fallen for MORE than `patience` checks.

    Better means below best * (1 - threshold), so values should be positive (a loss). NaN is never better.

    Shapes: value () -> state, multiplier ()
    Raises: ValueError if factor outside (0, 1), patience < 0 or threshold outside [0, 1)
    Source: torch.optim.lr_scheduler.ReduceLROnPlateau, mode="min", threshold_mode="rel", no cooldown
    Lesson: 05-schedules

    >>> state = plateau_state()
    >>> for loss in (2.0, 1.0, 1.0, 1.0):
    ...     state, multiplier = reduce_on_plateau(state, loss, factor=0.5, patience=1)
    >>> multiplier
    tensor(0.5000)
    """
    for name, number, fits, constraint in (
        ("factor", factor, lambda x: 0 < x < 1, "in (0, 1)"),
        ("patience", patience, lambda x: x >= 0, "at least 0"),
        ("threshold", threshold, lambda x: 0 <= x < 1, "in [0, 1)"),
    ):
        if not isinstance(number, Tensor) and not fits(number):
            raise ValueError(f"reduce_on_plateau: {name} must be {constraint}; got {number!r}")
    best = state["best"]
    value = torch.as_tensor(value, dtype=best.dtype, device=best.device)
    # Comparisons with NaN are False: a NaN counts as a check without progress.
    better = value < best * (1 - threshold)
    # No `if`: under vmap, and in a recorded step, the values are not known.
    bad_checks = torch.where(better, 0.0, state["bad_checks"] + 1)
    patience_over = bad_checks > patience
    multiplier = torch.where(patience_over, state["multiplier"] * factor, state["multiplier"])
    state = {
        "best": torch.where(better, value, best),
        "bad_checks": torch.where(patience_over, 0.0, bad_checks),
        "multiplier": multiplier,
    }
    return state, multiplier


SCHEDULES = {
    "constant": lambda step, *, total_steps, warmup_steps=0: constant(step),
    "warmup": lambda step, *, total_steps, warmup_steps=0: linear_warmup(step, warmup_steps),
    "cosine": lambda step, *, total_steps, warmup_steps=0: cosine(step, total_steps, warmup_steps),
    "inverse_sqrt": lambda step, *, total_steps, warmup_steps=0: inverse_sqrt(step, warmup_steps),
    "linear": lambda step, *, total_steps, warmup_steps=0: linear_decay(step, total_steps, warmup_steps),
    "warmup_stable_decay": lambda step, *, total_steps, warmup_steps=0: warmup_stable_decay(
        step, total_steps, warmup_steps
    ),
}
"""Name -> f(step, *, total_steps, warmup_steps=0): one signature, so that a run may choose by name."""


def _step(function: str, step: Steps) -> Tensor:
    if not isinstance(step, Tensor) and step < 0:
        raise ValueError(
            f"{function}: step must be at least 0; got {step!r}. It counts updates already taken."
        )
    step = torch.as_tensor(step)
    return step if step.is_floating_point() else step.to(torch.get_default_dtype())


def _length(function: str, name: str, value: Steps, step: Tensor) -> Tensor:
    if not isinstance(value, Tensor) and not value >= 0:
        raise ValueError(f"{function}: {name} must be at least 0; got {value!r}")
    return torch.as_tensor(value, dtype=step.dtype, device=step.device)


def _progress(function: str, step: Tensor, total_steps: Steps, warmup_steps: Steps) -> Tensor:
    """Share of the way from the end of the warm-up to the end, between 0 and 1."""
    total, warmup = _lengths(function, step, total_steps, warmup_steps)
    # A run that is all warm-up would divide 0 by 0.
    return ((step - warmup) / (total - warmup).clamp(min=1)).clamp(0, 1)


def _lengths(function: str, step: Tensor, total_steps: Steps, warmup_steps: Steps) -> tuple[Tensor, Tensor]:
    numbers = not isinstance(total_steps, Tensor) and not isinstance(warmup_steps, Tensor)
    if numbers and total_steps < warmup_steps:
        raise ValueError(f"{function}: total_steps must be at least warmup_steps; got {total_steps!r}")
    return (
        _length(function, "total_steps", total_steps, step),
        _length(function, "warmup_steps", warmup_steps, step),
    )
