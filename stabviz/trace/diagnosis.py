"""What went wrong in a run, told from its signals: `diagnose` names it, with evidence, remedy and lesson.

The outcome is the verdict's; a cause is looked for among those that such an outcome can have, so that the two
cannot contradict one another. Rules are asked in the order of RULES: what can be proved from one signal
first, then what ruined a run, then what only held-out data shows. The first that answers names the kind; if
none does, the outcome names itself. What was not measured is said, and nothing is concluded from it: a log of
losses alone can be told to have diverged, not why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stabviz.trace.symptoms import arithmetic, attention, gradient, loss, update, validation
from stabviz.trace.symptoms.seen import Confidence, Finding, Seen
from stabviz.trace.trace import Trace
from stabviz.trace.verdicts import ENOUGH_ROWS, Verdict
from stabviz.trace.verdicts import Kind as Outcome

Kind = Literal[
    "rate_too_high",
    "no_warmup",
    "missing_bias_correction",
    "explosion",
    "hidden_nan",
    "fp16_overflow",
    "attention_logit_growth",
    "epsilon_too_large",
    "stall",
    "overfit",
    "label_noise",
    "spike",
    "healthy",
    "too_short",
    "not_known",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What one run has, and what to do."""

    verdict: Verdict
    """How the run went; the kind below is a cause of it, or the same in other words."""
    kind: Kind
    """"not_known": the run was lost, and the signals at hand do not tell by what."""
    step: int | None
    """Step at which it showed first; None where it has no moment."""
    confidence: Confidence
    """Whether the kind was shown, is the likely cause, or is left open."""
    evidence: tuple[str, ...]
    """The figures that decided, then what was looked at, then what could not be."""
    remedy: str
    """One or two sentences; "" where nothing needs a mend."""
    lesson: str
    """The lesson that shows it, "" for a healthy run."""

    @property
    def headline(self) -> str:
        """Outcome and cause in one line."""
        outcome = self.verdict.kind.replace("_", " ") + _at(self.verdict.step)
        if self.kind == "not_known":
            return f"{outcome}, cause not known"
        if _ITSELF[self.verdict.kind] == self.kind:
            return outcome
        joined = {"healthy": " by its loss, with a fault", "too_short": ", with a fault"}
        where = _at(self.step) if self.step != self.verdict.step else ""
        named = f"{joined.get(self.verdict.kind, ', cause')}: {self.kind}{where}"
        return f"{outcome}{named} ({self.confidence})"


_ITSELF: dict[Outcome, Kind] = {
    "healthy": "healthy",
    "spiked": "spike",
    "stalled": "stall",
    "overfit": "overfit",
    "diverged": "not_known",
    "too_short": "too_short",
}
"""Verdict -> kind where no rule knows a cause."""
_ANY: tuple[Outcome, ...] = ("healthy", "spiked", "stalled", "overfit", "diverged")
_PROVEN: tuple[Outcome, ...] = (*_ANY, "too_short")
RULES: tuple[tuple[Kind, Callable[[Seen], Finding | None], tuple[Outcome, ...]], ...] = (
    ("fp16_overflow", arithmetic.fp16_overflow, _PROVEN),
    ("hidden_nan", arithmetic.hidden_nan, _PROVEN),
    ("missing_bias_correction", update.missing_bias_correction, _PROVEN),
    ("epsilon_too_large", update.epsilon_too_large, _PROVEN),
    ("explosion", gradient.explosion, ("diverged",)),
    ("no_warmup", loss.no_warmup, ("healthy", "spiked", "overfit", "diverged")),
    ("attention_logit_growth", attention.attention_logit_growth, _PROVEN),
    ("not_known", loss.unclear_loss, ("diverged",)),
    ("rate_too_high", loss.rate_too_high, _ANY),
    ("label_noise", validation.label_noise, ("healthy", "spiked", "overfit")),
)
"""Kind, its sign, and the outcomes that it may be a cause of."""

_REMEDIES: dict[Kind, tuple[str, str]] = {
    "rate_too_high": (
        "Divide the learning rate by 3 to 10, or sweep it on a logarithmic grid and keep the left edge of "
        "the best region.",
        "05-schedules",
    ),
    "no_warmup": (
        "Let the rate rise linearly over the first 5 to 10 % of the steps; if that is not enough, lower it.",
        "05-schedules",
    ),
    "missing_bias_correction": (
        "Use an Adam that corrects its moments for starting at zero (torch's AdamW does).",
        "03-gradient-descent-to-adam",
    ),
    "explosion": (
        "Clip the gradient by its global norm, at about its usual size, before the optimizer's step.",
        "04-gradient-clipping",
    ),
    "hidden_nan": (
        "Check loss and gradient norm for finiteness at every step, skip such a step before it reaches the "
        "weights, log the raw value, and look at that batch (empty targets, log 0, 0/0).",
        "04-gradient-clipping",
    ),
    "fp16_overflow": (
        "Use bfloat16, or keep what overflows (large activations, sums, softmax) in float32: no loss scale "
        "helps a forward pass that overflows.",
        "10-precision-and-memory",
    ),
    "attention_logit_growth": (
        "Normalise queries and keys (QK-norm), give their weights a smaller rate or clip them by their "
        "logits (QK-clip); a soft-cap hides the logit from the softmax and leaves it to grow.",
        "08-attention-logits",
    ),
    "epsilon_too_large": (
        "Lower Adam's epsilon below the gradient's size (1e-8 to 1e-15), or mend the loss whose gradients "
        "are so small.",
        "03-gradient-descent-to-adam",
    ),
    "stall": (
        "What held it is not shown. Try a tenth and ten times the rate for a few hundred steps; if the loss "
        "still stays, see whether gradients reach all layers (post-LN in depth, frozen parameters) and "
        "whether inputs and labels belong together.",
        "07-transformer",
    ),
    "overfit": ("More data, augmentation, dropout, weight decay or fewer epochs.", "12-entities"),
    "spike": (
        "Look at the batches of those steps; clip the gradient by its norm, or skip such a step, if jumps "
        "come again. What causes them is not shown.",
        "04-gradient-clipping",
    ),
    "too_short": ("Train or log for longer, then look again.", ""),
    "label_noise": (
        "Read the training rows with the highest loss and mend their labels; label smoothing and early "
        "stopping limit the harm.",
        "11-classification",
    ),
    "healthy": ("", ""),
    "not_known": (
        "Log the gradient norm before clipping, the rate and the raw loss of every step, and look again.",
        "11-classification",
    ),
}
"""Kind -> what to do, and the lesson that shows it."""

_LOOKED_AT = {
    "lr": "rate or warm-up",
    "grad_norm_preclip": "explosion or a NaN behind a finite loss",
    "update_rms": "bias correction or epsilon",
    "max_attention_logit": "attention",
    "validation_loss_nats": "overfitting or wrong labels",
    "loss_scale": "overflow of float16",
}
"""Signal -> what cannot be told without it."""


def diagnose(trace: Trace, run: int = 0) -> Diagnosis:
    """Name what went wrong in one run, with the evidence, the remedy and the lesson.

    Rests on the signals that were measured; settings are asked only which optimizer was in use and whether
    labels were smoothed.

    Raises: ValueError if run is out of range
    Lesson: 11-classification

    >>> trace = Trace(steps=range(40), signals={"loss_nats": [[2.0] * 20 + [0.0] * 20]}, runs=[{}])
    >>> diagnose(trace).kind, diagnose(trace).headline
    ('hidden_nan', 'diverged at step 20, cause: hidden_nan (shown)')
    """
    seen = Seen(trace=trace, run=run)
    judged = seen.verdict
    found = None if trace.n_steps < ENOUGH_ROWS else _cause(seen)
    kind: Kind = found[0] if found else _ITSELF[judged.kind]
    sure: Confidence = "open" if kind in _OPEN else "shown"
    cause = found[1] if found else Finding(judged.step, judged.evidence, sure)
    evidence = dict.fromkeys([cause.evidence, judged.evidence, *judged.noted, *_looked_at(seen)])
    remedy, lesson = _REMEDIES[kind]
    if kind == "overfit":
        remedy = f"{_best_checkpoint(seen)} {remedy}"
    return Diagnosis(
        verdict=judged,
        kind=kind,
        step=cause.step,
        confidence=cause.confidence,
        evidence=tuple(evidence),
        remedy=remedy,
        lesson=lesson,
    )


_OPEN = ("not_known", "stall", "spike", "too_short")
"""Kinds that name the outcome alone."""


def _cause(seen: Seen) -> tuple[Kind, Finding] | None:
    """The first kind whose rule answers, of those that the outcome allows."""
    # rules compute with runs that went non-finite: inf - inf and 0/0 are data here, and compare as False
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for kind, rule, outcomes in RULES:
            found = rule(seen) if seen.verdict.kind in outcomes else None
            if found is not None:
                return kind, found
    return None


def _best_checkpoint(seen: Seen) -> str:
    """Which weights to keep: those of the best score, since those of the lowest loss often score worse."""
    score_S = seen["validation_score"] * (-1 if seen.trace.config.get("score_is_error") else 1)
    if not seen.has("validation_score"):
        return "Choose the weights by the task's score (not logged): those of the lowest loss often do worse."
    at = int(np.nanargmax(score_S))
    return f"Keep the weights of step {seen.step(at)}, which scored best ({abs(score_S[at]):.3g})."


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


def _looked_at(seen: Seen) -> tuple[str, ...]:
    there = [name for name in ("loss_nats", *_LOOKED_AT) if seen.has(name)]
    lines = [f"looked at {', '.join(there)}" if there else "no signal that a rule knows was measured"]
    if "assumed" in seen.trace.config:
        lines.append(f"not in this log, and assumed: {seen.trace.config['assumed']}")
    if seen.trace.config.get("lines_without_step"):
        lines.append(f"{seen.trace.config['lines_without_step']} lines without a step were passed over")
    lines += [
        f"{name} was not measured: not known whether {what} had a part in it"
        for name, what in _LOOKED_AT.items()
        if not seen.has(name)
    ]
    return tuple(lines)
