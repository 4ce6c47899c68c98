"""How far a run has come: with weights, moments and averages, all that its next step depends on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from tqdm.auto import tqdm

from stabviz.ops import loss_scale_state, update_loss_scale
from stabviz.trace.spikes import SPIKE_WINDOW

SUSPECT_BATCHES = 3
"""After a second spike in a row the batches before it are suspect too, and left out."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Plain numbers, which a checkpoint keeps as they stand: a name, once given, stays."""

    updates: int = 0
    """Updates made; the schedule's clock."""
    attempts: int = 0
    """Batches taken, skipped ones included: the `step` of metrics.jsonl. It only grows."""
    position: int = 0
    """Place in the stream of batches that comes next."""
    micro_batch: int = 1
    """Rows that go through the model at once, in each process; halved when memory runs out."""
    loss_scale: float = 1.0
    good_steps: float = 0.0
    """Finite steps since the loss scale last changed."""
    bad_steps: int = 0
    """Non-finite steps in a row."""
    spikes: int = 0
    last_spike: int = -2
    """Attempt at which the loss last spiked."""
    recent_losses: list[float] = field(default_factory=list)
    recent_rows: list[list[int]] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    """Indices of rows that are not used any more, after spikes."""
    scheduled: list[int] = field(default_factory=list)
    """Attempts of the newest `keep` checkpoints that were due: a spike goes back to one, stopped in between
    or not."""
    evaluated_at: int = 0
    """Updates at the last evaluation."""
    best_score: float | None = None
    best_at: int = 0
    stale_evaluations: int = 0
    finished: str = ""
    """"" while there is more to do; else why it ended: "all steps", "no better score"."""

    def count_update(self, loss: float, rows: list[int]) -> None:
        """Count a step that reached the weights, with its loss and the rows of its batch."""
        self.updates, self.bad_steps = self.updates + 1, 0
        self.recent_losses = [*self.recent_losses, loss][-SPIKE_WINDOW:]
        self.recent_rows = [*self.recent_rows, rows][-SUSPECT_BATCHES:]

    def adapt_loss_scale(self, finite: bool) -> None:
        """Halve the loss scale after an overflow, double it after many finite steps in a row."""
        state = loss_scale_state(self.loss_scale) | {"good_steps": torch.tensor(self.good_steps)}
        state = update_loss_scale(state, finite)
        self.loss_scale, self.good_steps = state["scale"].item(), state["good_steps"].item()

    def count_checkpoint(self, keep: int) -> None:
        """Remember a checkpoint that was due as a place to rewind to."""
        earlier = [attempt for attempt in self.scheduled if attempt != self.attempts]
        self.scheduled = [*earlier, self.attempts][-keep:]

    def is_better(self, score: float) -> bool:
        """Tell whether a score is above the best one; any number is above NaN."""
        best = self.best_score
        return best is None or score > best or (math.isnan(best) and not math.isnan(score))

    def count_evaluation(self, score: float, *, steps: int, patience: int | None) -> None:
        """Note a score, and whether the run ends with it: after its last step, or out of patience."""
        self.evaluated_at = self.updates
        if self.is_better(score):
            self.best_score, self.best_at, self.stale_evaluations = score, self.updates, 0
        else:
            self.stale_evaluations += 1
        if self.updates >= steps:
            self.finished = "all steps"
        elif patience is not None and self.stale_evaluations >= patience:
            self.finished = "no better score"

    def leave_out(self, rows: Sequence[int]) -> None:
        """Use these rows no more."""
        self.left_out = sorted({*self.left_out, *rows})

    def rewound_to(self, saved: "Progress") -> "Progress":
        """Return the progress of a checkpoint, but for what was learned since: a rewind must not forget it.

        Attempts go on growing, so that the log has every step once; the spikes are counted, or a run could be
        rewound for ever; the rows that are left out stay out, and memory has not become more.
        """
        return replace(
            saved,
            attempts=self.attempts,
            spikes=self.spikes,
            last_spike=self.last_spike,
            left_out=self.left_out,
            micro_batch=self.micro_batch,
        )


def progress_bar(progress: Progress, steps: int, name: str, *, shown: bool) -> tqdm:
    """Return a bar over the updates of a run, which begins where the run stands."""
    return tqdm(
        total=steps, initial=progress.updates, desc=name, unit="step", mininterval=0.2, disable=not shown
    )
