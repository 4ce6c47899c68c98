"""Adam steps for the lab that treat some parameters, or some steps, in a way of their own."""

from collections.abc import Callable

import torch

from stabviz.lab.experiment import Run
from stabviz.lab.problems import problem_of
from stabviz.ops import adam_direction_from

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def _none(name: str) -> bool:
    return False


def adam_by_part(
    run: Run, *, uncorrected: Callable[[str], bool] = _none, frozen: Callable[[str], bool] = _none
) -> Callable:
    """Make Adam's step, without bias correction for the parameters that `uncorrected` picks by their name.

    Those that `frozen` picks stay as drawn. The step fits runs of the structure of `run`; beta 0.9 and 0.999.
    Names are those of `models.init_transformer`, such as "block0.attention.output.weight".

    Shapes: -> a function (param_P, grad_P, m_P, v_P, t, lr) -> (param_P, m_P, v_P)
    Lesson: 11-classification
    """
    sizes = {name: tensor.numel() for name, tensor in problem_of(run).init(run).items()}

    def mask(picks):
        return torch.cat([torch.full((size,), bool(picks(name))) for name, size in sizes.items()])

    is_uncorrected_P, moves_P = mask(uncorrected), ~mask(frozen)

    def adam(param, grad, m, v, t, lr):
        m = BETA1 * m + (1 - BETA1) * grad
        v = BETA2 * v + (1 - BETA2) * grad**2
        direction_P = adam_direction_from(m, v, t, BETA1, BETA2, EPS, ~is_uncorrected_P)
        return (param - lr * moves_P * direction_P).to(param.dtype), m, v

    return adam


def guarded_adam(param, grad, m, v, t, lr):
    """Take Adam's step if the gradient is finite; else leave parameters and moments to the bit as they are.

    Shapes: param (P,), grad (P,), m (P,), v (P,), t () -> param (P,), m (P,), v (P,)
    Lesson: 11-classification
    """
    new_m = BETA1 * m + (1 - BETA1) * grad
    new_v = BETA2 * v + (1 - BETA2) * grad**2
    step = lr * adam_direction_from(new_m, new_v, t, BETA1, BETA2, EPS)
    fine = grad.isfinite().all()
    # where, not a product: NaN times 0 is NaN.
    new = (param - step).to(param.dtype)
    return torch.where(fine, new, param), torch.where(fine, new_m, m), torch.where(fine, new_v, v)
