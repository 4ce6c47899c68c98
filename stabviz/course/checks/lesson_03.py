"""Checks of lesson 03: Adam's step, the largest safe rate, the starved optimizer."""

import numpy as np
import torch

from stabviz.course.exercises import check, expect


def _without_correction(param, grad, m, v, t, lr, beta1, beta2, eps):
    m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
    return param - lr * m / (v**0.5 + eps), m, v


def _epsilon_inside_the_root(param, grad, m, v, t, lr, beta1, beta2, eps):
    m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
    return param - lr * m / (1 - beta1**t) / (v / (1 - beta2**t) + eps) ** 0.5, m, v


@check("03-adam-step", wrong=[_without_correction, _epsilon_inside_the_root])
def adam_step_equals_torch(solution):
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.9), eps=0.01)
    param, m, v = start, torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, 4):
        grad = torch.tensor([0.3, -1.0, 0.02], dtype=torch.float64) * t
        theirs.grad = grad.clone()
        reference.step()
        param, m, v = solution(param, grad, m, v, t, 0.1, 0.8, 0.9, 0.01)
        expect(f"the parameter after step {t}", param, theirs.detach(), rtol=1e-9)


@check(
    "03-largest-rate",
    wrong=[
        lambda hessian: 2 / torch.linalg.eigvalsh(hessian)[0],
        lambda hessian: 1 / torch.linalg.eigvalsh(hessian)[-1],
        lambda hessian: 2 / hessian.diagonal().max(),
    ],
)
def largest_rate_is_two_over_the_sharpness(solution):
    expect("for curvatures 1 and 50 on the axes", solution(torch.diag(torch.tensor([1.0, 50.0]))), 0.04)
    turned = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    expect("for [[3, 1], [1, 3]], whose eigenvalues are 2 and 4", solution(turned), 0.5)


@check(
    "03-starved",
    wrong=[
        lambda update_rms_RS: np.nanmean(update_rms_RS, axis=1) < 0.05,
        lambda update_rms_RS: update_rms_RS[:, 20:].mean(axis=1) < 0.05,
        lambda update_rms_RS: np.nanmean(update_rms_RS[:, 20:]) < 0.05,
    ],
)
def starved_reads_the_later_steps(solution):
    update_rms_RS = np.full((4, 60), 0.3)
    update_rms_RS[1] = 0.003
    update_rms_RS[2, :20], update_rms_RS[2, 20:] = 1.0, 0.01  # long first steps hide nothing
    update_rms_RS[3], update_rms_RS[3, 40:] = 0.004, np.nan  # frozen at step 40
    words = "healthy, starved, starved after long first steps, starved then frozen"
    expect(words, solution(update_rms_RS), [False, True, True, True])
