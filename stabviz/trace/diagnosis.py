"""What went wrong in a run, told from its signals: `diagnose` names it, with evidence, remedy and lesson.

Rules are asked in the order of RULES: what can be proved from one signal first, then what ruined a run, then
what only held-out data shows. The first that answers names the kind. What was not measured is said, and
nothing is concluded from it: a log of losses alone can be told to have diverged, not why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stabviz.trace.symptoms import arithmetic, attention, gradient, loss, update, validation
from stabviz.trace.symptoms.seen import Finding, Seen
from stabviz.trace.trace import Trace

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
    "healthy",
    "not_known",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What one run has, and what to do."""

    kind: Kind
    """"not_known": something is wrong, and the signals at hand do not tell what."""
    step: int | None
    """Step at which it showed first; None where it has no moment."""
    evidence: tuple[str, ...]
    """The figures that decided, then what was looked at, then what could not be."""
    remedy: str
    """One or two sentences."""
    lesson: str
    """The lesson that shows it, "" for a healthy run."""


RULES: tuple[tuple[Kind, Callable[[Seen], Finding | None]], ...] = (
    ("fp16_overflow", arithmetic.fp16_overflow),
    ("hidden_nan", arithmetic.hidden_nan),
    ("missing_bias_correction", update.missing_bias_correction),
    ("epsilon_too_large", update.epsilon_too_large),
    ("explosion", gradient.explosion),
    ("no_warmup", loss.no_warmup),
    ("attention_logit_growth", attention.attention_logit_growth),
    ("not_known", loss.unclear_loss),
    ("rate_too_high", loss.rate_too_high),
    ("label_noise", validation.label_noise),
    ("overfit", validation.overfit),
    ("stall", loss.stall),
)

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
        "Raise the rate by 10; if the loss then still stays, see whether gradients reach all layers (post-LN "
        "in depth, frozen parameters) and whether inputs and labels belong together.",
        "07-transformer",
    ),
    "overfit": (
        "Keep the weights of the best evaluation (early stopping), then more data, augmentation, dropout or "
        "weight decay.",
        "12-entities",
    ),
    "label_noise": (
        "Read the training rows with the highest loss and mend their labels; label smoothing and early "
        "stopping limit the harm.",
        "11-classification",
    ),
    "healthy": ("Nothing to mend.", ""),
    "not_known": (
        "Log the gradient norm before clipping, the rate and the raw loss of every step, and look again.",
        "11-classification",
    ),
}
"""Kind -> what to do, and the lesson that shows it."""

ENOUGH_STEPS = 10
"""Fewer rows than this show no course."""
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
    labels were smoothed. A run that a skipped step or a single spike did not harm is healthy, and the
    evidence mentions it.

    Raises: ValueError if run is out of range
    Lesson: 11-classification

    >>> trace = Trace(steps=range(40), signals={"loss_nats": [[2.0] * 20 + [0.0] * 20]}, runs=[{}])
    >>> diagnose(trace).kind, diagnose(trace).step
    ('hidden_nan', 20)
    """
    if isinstance(run, bool) or not isinstance(run, (int, np.integer)) or not 0 <= run < trace.n_runs:
        raise ValueError(f"diagnose: run must be an index in 0..{trace.n_runs - 1}; got {run!r}")
    seen = Seen(trace=trace, run=int(run))
    about = _looked_at(seen)
    if "loss_nats" not in trace or trace.n_steps < ENOUGH_STEPS:
        short = f"a diagnosis needs a loss at {ENOUGH_STEPS} steps or more; got {trace.n_steps} steps"
        return _diagnosis("not_known", None, (short, *about))
    # rules compute with runs that went non-finite: inf - inf and 0/0 are data here, and compare as False
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for kind, rule in RULES:
            found = rule(seen)
            if found is not None:
                return _diagnosis(kind, found[0], (found[1], *about))
    judged = seen.verdict
    if judged.kind == "diverged":
        return _diagnosis("not_known", judged.step, (judged.evidence, *about))
    return _diagnosis("healthy", None, (judged.evidence, *about))


def _diagnosis(kind: Kind, step: int | None, evidence: tuple[str, ...]) -> Diagnosis:
    remedy, lesson = _REMEDIES[kind]
    return Diagnosis(kind=kind, step=step, evidence=evidence, remedy=remedy, lesson=lesson)


def _looked_at(seen: Seen) -> tuple[str, ...]:
    there = [name for name in ("loss_nats", *_LOOKED_AT) if seen.has(name)]
    lines = [f"looked at {', '.join(there)}" if there else "no signal that a rule knows was measured"]
    lines += [
        f"{name} was not measured: not known whether {what} had a part in it"
        for name, what in _LOOKED_AT.items()
        if not seen.has(name)
    ]
    return tuple(lines)
