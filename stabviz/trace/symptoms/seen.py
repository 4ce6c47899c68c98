"""What a rule sees of one run."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stabviz.trace.spikes import MAD_TO_SIGMA
from stabviz.trace.trace import Trace
from stabviz.trace.verdicts import FINAL_SHARE, Verdict, verdict

Finding = tuple[int | None, str]
"""Step that decided, and the sentence of evidence with its figures."""


@dataclass(frozen=True)
class Seen:
    """What there is to see of one run; a signal that was not measured is all NaN."""

    trace: Trace
    run: int

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.trace:
            return np.full(self.trace.n_steps, np.nan)
        return self.trace[name][self.run].astype(np.float64)

    def has(self, name: str) -> bool:
        """Whether a signal was measured with a finite value at least once."""
        return bool(np.isfinite(self[name]).any())

    def step(self, s: int) -> int:
        return int(self.trace.steps[s])

    def most(self, signal: str) -> np.ndarray:
        """The largest over layers and total: a layer that gets no gradient does not hide the others."""
        names = [n for n in self.trace.signals if n == signal or n.startswith(signal + "/")]
        rows = np.array([self[n] for n in names]).reshape(len(names), self.trace.n_steps)
        return np.fmax.reduce(np.where(np.isfinite(rows), rows, np.nan), axis=0, initial=np.nan)

    def typical(self, signal: str) -> np.ndarray:
        """The median over the layers, where there are any: one odd layer does not speak for all."""
        rows = np.array([self[n] for n in self.trace.signals if n.startswith(signal + "/")])
        if not rows.size:
            return self[signal]
        known_S = np.isfinite(rows).any(axis=0)
        return np.where(known_S, np.nanmedian(np.where(known_S, rows, 0.0), axis=0), np.nan)

    @cached_property
    def loss_S(self) -> np.ndarray:
        return self["loss_nats"]

    @cached_property
    def finite_loss(self) -> np.ndarray:
        """The losses that are finite, in their order."""
        return self.loss_S[np.isfinite(self.loss_S)]

    @cached_property
    def norm_S(self) -> np.ndarray:
        return self["grad_norm_preclip"]

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.trace, self.run)

    @cached_property
    def first(self) -> float:
        """Median of the first three losses."""
        return float(np.median(self.finite_loss[:3])) if self.finite_loss.size else np.nan

    @cached_property
    def final(self) -> float:
        """Mean of the last tenth of the steps."""
        tail = self.loss_S[-max(1, round(FINAL_SHARE * len(self.loss_S))) :]
        return float(tail[np.isfinite(tail)].mean()) if np.isfinite(tail).any() else np.inf

    @cached_property
    def noise(self) -> float:
        """Standard deviation of single batches, from steps between neighbours, in the quietest third."""
        thirds = [np.diff(part) for part in np.array_split(self.finite_loss, 3) if len(part) > 2]
        # the difference of two batches has twice the variance of one
        return min((MAD_TO_SIGMA * float(np.median(np.abs(d))) / np.sqrt(2) for d in thirds), default=0.0)

    @cached_property
    def adaptive(self) -> bool:
        """Whether the optimizer divides by a second moment: its ratio was measured, or settings say so."""
        named = str(self.trace.setting(self.run, "optimizer", "")).lower()
        return self.has("second_moment_ratio") or "adam" in named

    @cached_property
    def bad_S(self) -> np.ndarray:
        """Steps whose loss or gradient norm is not finite."""
        return self.trace.non_finite(self.run)

    @cached_property
    def scaled(self) -> bool:
        """Whether fp16's loss scaling is at work, whose skipped steps are no accident."""
        return self.has("loss_scale") or any(
            e["kind"] == "overflow" for e in self.trace.events if e["run"] == self.run
        )
