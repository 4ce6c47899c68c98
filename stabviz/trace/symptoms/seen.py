"""What a rule sees of one run."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from stabviz.trace.curve import Curve
from stabviz.trace.trace import Trace
from stabviz.trace.verdicts import Verdict, verdict

Confidence = Literal["shown", "likely", "open"]
"""A signal shows the fault itself; it is the usual cause of what was seen; or the outcome alone was seen."""


class Finding(NamedTuple):
    """What a rule found."""

    step: int | None
    """Where it decided."""
    evidence: str
    """A sentence with the figures."""
    confidence: Confidence = "shown"


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
    def norm_S(self) -> np.ndarray:
        return self["grad_norm_preclip"]

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.trace, self.run)

    @cached_property
    def loss(self) -> Curve:
        return Curve(self.loss_S)

    @property
    def rows(self) -> str:
        """What a row of the record is: a log with a line every ten steps has lines."""
        return "steps" if self.trace.n_steps == self.step(-1) - self.step(0) + 1 else "rows"

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
