"""The learning rate of every step: known before a run starts, but for the schedule that looks at the loss."""

import torch
from torch import Tensor

from stabviz.lab.experiment import Run
from stabviz.lab.functions import your_multipliers
from stabviz.ops import SCHEDULES, cosine, plateau_state, reduce_on_plateau

PLATEAU_EVERY = 10
"""Steps between two looks of the "plateau" schedule at the mean loss since the last look."""


def rates(run: Run) -> Tensor:
    """Return the rate of every step, (S,) float64; for "plateau" the rate before any cut."""
    if callable(run.schedule):
        return run.lr * your_multipliers(run.schedule, run)
    step_S = torch.arange(run.steps, dtype=torch.float64)
    warmup_steps = min(run.warmup_steps, run.steps)  # a run shorter than its warm-up ends at the peak
    if run.schedule == "cosine":
        return run.lr * cosine(step_S, run.steps, warmup_steps, run.final_lr_share)
    schedule = SCHEDULES["warmup" if run.schedule == "plateau" else run.schedule]
    return run.lr * schedule(step_S, total_steps=run.steps, warmup_steps=warmup_steps)


class Plateau:
    """The schedule that looks at the loss: every PLATEAU_EVERY steps, at the mean since the last look.

    Its state lasts from step to step and is edited in place, so that a recorded step can be replayed.
    """

    def __init__(self, runs: int, device: torch.device):
        self.state = {name: value.to(device).expand(runs).clone() for name, value in plateau_state().items()}
        self.sum_R = torch.zeros(runs, device=device)

    def multiplier(self, loss_R: Tensor, step_index: Tensor) -> Tensor:
        """Take in the losses of a step and return the factor on each run's rate, (R,)."""
        self.sum_R += loss_R.to(self.sum_R.dtype)
        look = (step_index + 1) % PLATEAU_EVERY == 0

        def one(state, value):
            return reduce_on_plateau(state, value, factor=0.5, patience=2, threshold=1e-2)[0]

        after = torch.vmap(one)(self.state, self.sum_R / PLATEAU_EVERY)
        for name, value in self.state.items():
            torch.where(look, after[name], value, out=value)
        self.sum_R *= ~look
        return self.state["multiplier"].to(loss_R.dtype)
